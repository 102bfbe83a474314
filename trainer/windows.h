/* trainer/windows.h - the data buffer of the spot trainer: windows of recorded samples with the
 * target's features, in one file of fixed size that its worker maps and writes and others on the
 * machine map and read.  It outlives sessions, steps and processes, and never takes more than the
 * bytes that it was given.
 *
 * One writer.  A slot is written under a sequence number, odd while it changes: a reader copies,
 * and takes the copy only if the number stood still.  A file of another build, target or size is
 * replaced by its writer and refused by readers: nothing in it is trusted. */
#ifndef PL_TRAINER_WINDOWS_H
#define PL_TRAINER_WINDOWS_H

#include "core/error.h"
#include "model/features.h"

typedef struct pl_windows_options {
    size_t max_bytes; /* of the file, at least one window */
    int window;       /* rows of a window at most */
    int n_embd;       /* C of the target */
    uint64_t target;  /* names the target's shape: files of another are refused */
    int n_vocab;      /* tokens are below it, or a window is refused; 0: any that is not negative */
} pl_windows_options;

typedef struct pl_windows pl_windows;

/* The writer's view: the file is made, or taken over with what it holds.  Errors: PL_E_IO (disk
 * full: says the bytes; the space is taken at once), PL_E_INVAL, PL_E_PEER (another writer has it),
 * PL_E_NOENT (no such directory), PL_E_FORMAT (the path is of a file that is no data buffer, which
 * is left as it is), PL_E_NOMEM. */
pl_status pl_windows_open(
    pl_windows **out, const char *path, const pl_windows_options *o, pl_error *err);
/* A reader's view.  Errors: PL_E_NOENT, PL_E_FORMAT (another target or layout, truncated). */
pl_status pl_windows_attach(
    pl_windows **out, const char *path, const pl_windows_options *o, pl_error *err);
void pl_windows_close(pl_windows *b);

/* Keep a copy; a window that is there already (sample, version, position) is replaced.  When full:
 * the window that goes is one of the oldest policy version; of the version before the newest, those
 * of long responses (position far behind the prompt) stay longest (TLT's one-step-off sampling).
 * The newest version is that of this view's own puts: those above it are of a run that was set
 * back, and go before all others.  PL_E_INVAL for counts, settings or tokens that no sample has.  A
 * window with numbers that are not finite is refused: PL_E_NUMERIC, and counted. */
pl_status pl_windows_put(pl_windows *b, const pl_feature_window *w, pl_error *err);

typedef struct pl_windows_stats {
    int n_slots, n_used;
    int64_t n_put, n_bad, n_evicted;
    int64_t n_tokens; /* held */
    size_t bytes;     /* of the file */
} pl_windows_stats;
void pl_windows_get_stats(const pl_windows *b, pl_windows_stats *out);

/* Windows of several buffers, copied out: held-out ones are those of uid % 8 = 0, and never train.
 */
enum { PL_HELD_OUT = 8 };
typedef struct pl_windows_pick {
    int is_held_out;
    uint32_t served_by; /* not 0: in place of those held out, all with rounds that this version of
                           the drafter was in service for, which came after its training */
    uint32_t newest;    /* policy version at hand: windows of it and the one before are preferred */
    uint64_t seed;      /* of the choice: the same contents and seed give the same windows */
    int min_rows;       /* shorter windows are left out */
    int (*should_stop)(void *ctx); /* asked between two windows, each a megabyte or more; may be
                                      NULL.  Those that were copied until then are chosen */
    void *stop_ctx;
} pl_windows_pick;
/* Choose at most max windows; out[i] point into arena memory of *b[0]'s* owner: storage [bytes] of
 * the caller, aligned as malloc's, max times pl_windows_room bytes.  Everything is checked: a
 * window that is torn, damaged or impossible is passed over.  Training picks: a window is chosen
 * less often the more often it was chosen (the count is this view's), long responses of the version
 * before as often as they are missing in the newest.  Held out, and served_by: the newest first, all
 * of a uid together. Returns how many. */
int pl_windows_choose(pl_windows *const *b, int n_buffers, const pl_windows_pick *p, void *storage,
    pl_feature_window *out, int max);
size_t pl_windows_room(const pl_windows_options *o);
/* The same windows as text alone, features and hidden states NULL, in storage [max][o->window] of
 * the caller; it does not count as choosing them. */
int pl_windows_read(pl_windows *const *b, int n_buffers, const pl_windows_pick *p, int32_t *storage,
    pl_feature_window *out, int max);

#endif
