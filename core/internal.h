/* core/internal.h - shared by the sources of this folder only. */
#ifndef PL_CORE_INTERNAL_H
#define PL_CORE_INTERNAL_H

#include "core/error.h"

enum { CORE_MAX_CPUS = 8192 }; /* NR_CPUS of distribution kernels for x86-64 */

/* Numbers of the CPUs in the caller's affinity mask, ascending, at most max of them written (list
 * may be NULL when max is 0).  Returns how many the mask holds, at least 1. */
int core_affinity(int *list, int max);

/* "verb 'path': reason" for an errno: PL_E_NOENT, PL_E_NOMEM, else PL_E_IO; a full disk is named
 * with the remedy. */
pl_status core_fail_errno(pl_error *err, int code, const char *verb, const char *path);

/* fsync; path only names it. */
pl_status core_sync_fd(int fd, const char *path, pl_error *err);

/* fsync the directory that holds path, so that a rename in it survives a power cut. */
pl_status core_sync_parent(const char *path, pl_error *err);

#endif
