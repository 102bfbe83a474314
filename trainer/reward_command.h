/* trainer/reward_command.h - rewards by the user's own code, run as a child process.
 *
 * The command line (reward.command) is run by /bin/sh -c in a process group of its own, with limits
 * of memory, files and core dumps.  One JSON object a line goes to its stdin:
 *
 *   {"id":0,"data_source":"...","solution_str":"...","ground_truth":"...","extra_info":{...}|null}
 *
 * and one comes back on its stdout, in any order:
 *
 *   {"id":0,"score":1.0}    the reward ("reward" means the same; true is 1, false is 0)
 *   {"id":0,"error":"..."}  the user's code failed for this sample
 *
 * Other keys are ignored.  Up to 64 requests are under way, so a command may score them in
 * parallel, and must flush its output after each line.  "id" numbers the requests of this rewarder,
 * from 0; a sample keeps it when it is asked for again.
 *
 * What goes wrong, and what becomes of it:
 * - A sample's deadline passes.  Its clock runs from when its request was written, but not while an
 *   older request is unanswered: a queue inside the command costs nobody a try.  The first answer
 *   of a fresh child may take longer, by what it needs to start (four times the deadline, but no
 *   more than a minute if the deadline is shorter).  The child is killed; the sample is tried once
 *   more, at four times the deadline, behind all others.
 * - An "error", or a score that is not a finite float: tried once more in the same way.
 * - The second try fails: reward.timeout_value, marked.
 * - The child ends, closes a pipe or writes more than 1 MiB without a usable reply: it is killed
 *   with its group and started anew, and what it owed is asked for again.  If that was one sample
 *   alone it has lost a try, and is asked again at once; if it was several, they are asked one at a
 *   time until it is known which of them it is.  A child that was killed from outside (SIGKILL,
 * SIGTERM, SIGINT, SIGHUP) blames no sample.
 * - More than five deaths a minute that no sample answers for: PL_E_PEER.
 * What a process that left the group (setsid) does is out of reach.
 *
 * One thread at a time.  The child dies with the *thread* that started it (the one in the call of
 * pl_rewarder_poll): keep that thread for the life of the rewarder. */
#ifndef PL_TRAINER_REWARD_COMMAND_H
#define PL_TRAINER_REWARD_COMMAND_H

#include "core/error.h"
#include "core/log.h"

#include <poll.h>
#include <stddef.h>
#include <stdint.h>

typedef enum pl_reward_mark {
    PL_REWARD_OK,
    PL_REWARD_TIMED_OUT, /* score is timeout_value: both tries took too long, or the last did */
    PL_REWARD_FAILED,    /* score is timeout_value: an error, no finite score, or the child died */
} pl_reward_mark;

typedef struct pl_rewarder_options {
    const char *command; /* for /bin/sh -c; copied */
    double timeout_s;    /* of one sample's first try, > 0; wall clock */
    float timeout_value; /* the reward of a sample that got none */
    int64_t memory_mb;   /* address space of each process of the child, MiB; 0: no limit */
    const pl_log *log;   /* borrowed; NULL: none.  Gets little: see pl_rewarder_settle */
} pl_rewarder_options;

typedef struct pl_rewarder_stats {
    int64_t n_scored, n_timed_out, n_failed; /* samples delivered, by mark */
    int64_t n_retries;                       /* second tries */
    int64_t n_starts;                        /* of the child, the first included */
    int64_t n_bad_lines; /* no reply, unknown id, an id twice, or too long: dropped */
} pl_rewarder_stats;

typedef struct pl_rewarder pl_rewarder;

/* Nothing is started yet.  Errors: PL_E_CONFIG for an empty command or a timeout that is not
 * positive, PL_E_NOMEM. */
pl_status pl_rewarder_new(pl_rewarder **out, const pl_rewarder_options *o, pl_error *err);
/* Kill the child with its group and reap it.  Accepts NULL. */
void pl_rewarder_free(pl_rewarder *r);

/* Queue one sample; nothing is written yet.  Everything is copied.  id is the caller's: it comes
 * back with the score, and need not be unique.  solution [n_solution] any bytes: what is not UTF-8
 * goes out as U+FFFD.  ground_truth, extra_info_json (JSON text) may be NULL: then null.
 * Errors: PL_E_NOMEM. */
pl_status pl_rewarder_submit(pl_rewarder *r, int64_t id, const char *data_source,
    const char *solution, size_t n_solution, const char *ground_truth, const char *extra_info_json,
    pl_error *err);

/* Called once for each sample; may call pl_rewarder_submit and pl_rewarder_clear, no other. */
typedef void (*pl_reward_fn)(void *ctx, int64_t id, float score, pl_reward_mark mark);

/* Start the child if there is something to ask, write, read, and deliver what is finished.  Returns
 * as soon as one is, when nothing is pending, or after timeout_ms (0: only what is ready now).
 * Errors: PL_E_PEER when the command cannot be kept alive (names it, how it ended and its last
 * line on stderr): what was finished is delivered before, and every later call fails alike until
 * pl_rewarder_clear.  PL_E_IO when no child could be made (files, memory, processes are short):
 * nothing is lost, call again. */
pl_status pl_rewarder_poll(
    pl_rewarder *r, int timeout_ms, pl_reward_fn fn, void *ctx, pl_error *err);

/* Samples that were submitted and not delivered. */
int pl_rewarder_pending(const pl_rewarder *r);
/* Forget all of them.  A child that still owes replies is killed, so none can come late. */
void pl_rewarder_clear(pl_rewarder *r);

/* For a caller that waits for other things too: fill fds with what to poll for, return how many (0
 * without a child), and call pl_rewarder_poll(r, 0, ...) when one is ready or after
 * pl_rewarder_wait_ms, whichever is first.  Both change with every call of _submit and _poll. */
enum { PL_REWARDER_FDS = 3 };
int pl_rewarder_fds(const pl_rewarder *r, struct pollfd fds[PL_REWARDER_FDS]);
/* Milliseconds until pl_rewarder_poll has something to do by itself; -1: never. */
int pl_rewarder_wait_ms(const pl_rewarder *r);

/* What is awaited, for a stall report: the child's process, how many scores, the sample whose clock
 * runs.  Returns how many; 0: nothing is awaited. */
int pl_rewarder_describe(const pl_rewarder *r, char *out, size_t n);
/* A step is over.  The log gets the first three lines on stderr and the first three failures whole;
 * later ones are counted, and the count is said here, or once a minute, with the last of them. */
void pl_rewarder_settle(pl_rewarder *r);

void pl_rewarder_stats_get(const pl_rewarder *r, pl_rewarder_stats *out);

#endif
