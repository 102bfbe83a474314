/* trainer/reward_internal.h - shared by trainer/reward_*.c only: a reply, the child, its log. */
#ifndef PL_TRAINER_REWARD_INTERNAL_H
#define PL_TRAINER_REWARD_INTERNAL_H

#include "trainer/reward_command.h"

#include <sys/types.h>

/* ---- samples ---- */

typedef struct reward_sample {
    struct reward_sample *next;
    int64_t id;     /* the caller's */
    int64_t serial; /* on the wire */
    char *line;     /* [n_line] with its newline */
    size_t n_line;
    int n_failed;   /* tries */
    int is_suspect; /* was in flight when a child ended: asked alone */
    float score;
    pl_reward_mark mark;
} reward_sample;

typedef struct reward_queue {
    reward_sample *first, *last;
    int n;
} reward_queue;

void reward_push(reward_queue *q, reward_sample *s);
reward_sample *reward_pop(reward_queue *q); /* not of an empty one */
void reward_unlink(reward_queue *q, reward_sample *s);
/* All of from, before what q has; from is empty then. */
void reward_put_before(reward_queue *q, reward_queue *from);
void reward_sample_free(reward_sample *s);
void reward_drop_all(reward_queue *q);

/* ---- one line from the child ---- */

enum { REWARD_TEXT_MAX = 200 }; /* bytes of the child's words that are kept, with the NUL */

typedef enum reward_answer { REWARD_SCORE, REWARD_NO_SCORE, REWARD_ERROR } reward_answer;

typedef struct reward_reply {
    int64_t id;
    reward_answer answer;
    float score;                /* finite; of REWARD_SCORE */
    char text[REWARD_TEXT_MAX]; /* printable ASCII; of the other two: what is wrong */
} reward_reply;

/* Parse line [n_bytes] (no newline).  Accepts NaN, Infinity and -Infinity as numbers, because
 * Python writes them.  Errors: PL_E_FORMAT when it is no reply: not one JSON object, no integer
 * "id", a key of ours twice. */
pl_status reward_reply_parse(reward_reply *out, const char *line, size_t n_bytes, pl_error *err);

/* Copy text as printable ASCII: every other byte as \xNN.  Cut off with "..." at size. */
void reward_escape(char *out, size_t size, const char *text, size_t n_bytes);

/* ---- the child ---- */

typedef struct reward_child {
    pid_t pid;          /* and its process group; 0: none */
    int in, out, error; /* our ends of its pipes, -1: closed */
} reward_child;

typedef struct reward_end {
    int is_known;  /* 0: someone else reaped it */
    int is_signal; /* code is a signal's number, else an exit status */
    int code;
    int is_from_outside; /* asked to die by a signal that its own faults do not raise */
} reward_end;

/* Start the command.  memory_mb 0: no limit.  Errors: PL_E_IO. */
pl_status reward_child_start(
    reward_child *c, const char *command, int64_t memory_mb, pl_error *err);
/* 1 when the process itself has ended; it is not reaped. */
int reward_child_has_ended(const reward_child *c);
/* SIGKILL to the group.  The pipes stay open, what was written before can still be read. */
void reward_child_kill(const reward_child *c);
/* Kill, close, reap; *c is as zeroed then.  end may be NULL. */
void reward_child_stop(reward_child *c, reward_end *end);
void reward_child_close_in(reward_child *c);
void reward_child_close_error(reward_child *c);
/* Write as much as the pipe takes, without SIGPIPE.  Returns bytes, or -1 when the child has closed
 * its end. */
ssize_t reward_child_write(const reward_child *c, const char *data, size_t n_bytes);
/* Read what is there.  Returns bytes, 0 at the end (or on an error), -1 when there is none yet. */
ssize_t reward_child_read(int fd, char *data, size_t n_bytes);
/* "exited with status 3", "was killed by signal 9 (Killed)". */
void reward_end_text(char *out, size_t size, const reward_end *end);

int64_t reward_now_ms(void); /* CLOCK_MONOTONIC */

/* ---- what the log is told: the first lines, then how many ---- */

typedef struct reward_kind { /* stderr of the command, or what becomes of it and its samples */
    int n_shown;
    int64_t n_hidden; /* since the count was said */
    char last[REWARD_TEXT_MAX];
} reward_kind;

typedef struct reward_notes {
    const pl_log *log;
    reward_kind failures, words;
    int64_t since_ms; /* the first hidden one of these */
    char line[512];   /* the line of stderr that is not whole yet */
    size_t n_line;
    char last[REWARD_TEXT_MAX]; /* the last whole line of stderr, escaped */
} reward_notes;

/* Say how many were not shown, if any. */
void reward_notes_settle(reward_notes *n);
void reward_note(reward_notes *n, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Bytes of the child's stderr. */
void reward_note_stderr(reward_notes *n, const char *data, size_t n_bytes);
/* The child is gone: what is left of a line is a line. */
void reward_note_end(reward_notes *n);

#endif
