/* cli/bench_arms.h - the arms of paceline bench arms, and its report. */
#ifndef PL_CLI_BENCH_ARMS_H
#define PL_CLI_BENCH_ARMS_H

#include "cli/bench.h"

typedef enum arm_kind {
    NONE,
    NONE_1,
    SUFFIX,
    FROZEN,
    ADAPTIVE,
    FROZEN_1,
    ADAPTIVE_1,
    ARMS
} arm_kind;

/* The last quarter of `total` steps of a seed, from dir/arms.csv: all sittings count.  names: of
 * the arms, as they stand there.  Errors: PL_E_IO, PL_E_NOMEM. */
pl_status bench_arms_report(bench *b, const char *dir, int64_t seed, int64_t total,
    const char *const names[ARMS], pl_error *err);

#endif
