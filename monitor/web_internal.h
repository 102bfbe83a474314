/* monitor/web_internal.h - what the parts of the page's server share. */
#ifndef PL_MONITOR_WEB_INTERNAL_H
#define PL_MONITOR_WEB_INTERNAL_H

#include "core/json.h"
#include "monitor/monitor.h"
#include "monitor/samples.h"
#include "monitor/view.h"
#include "monitor/web.h"
#include "monitor/web_query.h"

#include <microhttpd.h>

/* RELIABILITY 2.7 and what follows from it. */
enum {
    WEB_CONNECTIONS = 32,
    WEB_STREAMS = 24, /* of them, that may listen to events */
    WEB_HEADERS = 64,
    WEB_HEADER_BYTES = 16 << 10,
    WEB_READ_MS = 5000,  /* until a request is whole, and of silence between two */
    WEB_HURRY_MS = 1000, /* of it, when nearly all connections are taken */
    WEB_SEND_MS = 20000, /* until an answer is taken */
    WEB_STALL_S = 10,    /* of no progress at all, in an answer or a stream */
    WEB_SNAPSHOT_MS = 500,
    WEB_HISTORY_MS = 1000,
    WEB_BEAT_MS = 10000,
    WEB_SEND_BUFFER = 128 << 10, /* bytes the kernel may hold for one client */
    WEB_HOSTS = 8,
    WEB_REASON = 640,
};

/* Text that several streams send at their own speed. */
typedef struct web_blob {
    int n_users;
    size_t n;
    char data[];
} web_blob;

typedef enum web_doing { WEB_READING, WEB_ANSWERING, WEB_STREAMING } web_doing;

/* One connection.  A stream holds at most one blob: what came meanwhile is skipped, the newest is
 * sent next. */
typedef struct web_client {
    struct pl_web *web; /* NULL: the place is free */
    struct MHD_Connection *connection;
    int fd;
    web_doing doing;
    int is_suspended;
    int64_t since_ms; /* of doing */
    int64_t sent_ms;  /* of the last event */
    web_blob *blob;
    size_t at;                      /* bytes of it that were sent */
    uint64_t snapshot, steps, beat; /* numbers of what was sent last */
} web_client;

/* An answer that is asked for again as long as nothing changes. */
typedef struct web_kept {
    char *data;
    size_t n;
    uint64_t polls; /* of the history it was made of */
    int64_t from, points;
} web_kept;

struct pl_web {
    char run_dir[3072];
    char url[320];
    char cookie[32]; /* its name has the port: hosts share cookies over ports */
    char token[PL_WEB_TOKEN + 1];
    char token_path[4096];
    int wants_token;
    int port, listen_fd;
    int n_hosts, any_address; /* Host headers that are taken; any_address: every IP with the port */
    char hosts[WEB_HOSTS][272];
    struct MHD_Daemon *daemon;
    web_client clients[WEB_CONNECTIONS * 2]; /* closing ones beside new ones */
    int n_streams;
    /* what is told to streams; each with the number of its last change */
    web_blob *snapshot_event, *step_event;
    uint64_t snapshot, steps, beat;
    int64_t snapshot_at, history_at, beat_at; /* when to look again, monotonic ms */
    int64_t updated_ms, updated_step;
    uint32_t updated_pid;
    pl_view_life updated_life;
    int is_gone; /* the run's directory: told */
    pl_history *history;
    uint64_t n_polls, told_polls; /* that found something; of which streams were told */
    pl_samples *samples;
    int64_t samples_at;
    web_kept kept;
    int (*piece)(void *ctx, int32_t token, const char **bytes);
    void *piece_ctx;
};

int64_t web_now_ms(void);  /* monotonic */
int64_t web_unix_ms(void); /* CLOCK_REALTIME */

/* ---- web_address.c ---- */
/* Bind and listen, fill in port, url and hosts. */
pl_status web_listen(pl_web *w, const char *address, pl_error *err);

/* ---- web_token.c ---- */
/* Take the token that stands in the file, or make one and write it, mode 0600. */
pl_status web_token_open(pl_web *w, const pl_web_options *o, pl_error *err);
/* 1 when text is the token; the time does not tell where they differ. */
int web_token_is(const pl_web *w, const char *text, size_t n);

/* ---- web_guard.c ---- */
/* HTTP status of a refusal, with why [WEB_REASON] in words, or 0. */
int web_guard(
    const pl_web *w, struct MHD_Connection *c, const web_query *q, const char *method, char *why);
/* 1 when the request has shown the token in a header or in its cookie. */
int web_guard_knows_token(const pl_web *w, struct MHD_Connection *c);

/* ---- web_reply.c ---- */
typedef enum web_memory { WEB_STATIC, WEB_OWNED } web_memory; /* OWNED: of malloc, *taken* */
enum MHD_Result web_reply(struct MHD_Connection *c, int status, const char *type, const void *data,
    size_t n, web_memory memory);
enum MHD_Result web_reply_copy(
    struct MHD_Connection *c, const char *type, const void *data, size_t n);
enum MHD_Result web_reply_json(struct MHD_Connection *c, int status, pl_json *j); /* *takes* j */
/* {"error":"..."} for /api, a line of text for the rest. */
enum MHD_Result web_refuse(struct MHD_Connection *c, const char *path, int status, const char *why);
/* Headers of every answer. */
int web_headers(struct MHD_Response *r, const char *type);

/* ---- web_assets.c ---- */
typedef struct web_asset {
    const char *path, *type;
    const char *data, *end;
} web_asset;
const web_asset *web_asset_find(const char *path);

/* ---- web_api.c ---- */
void web_look_at_history(pl_web *w);
pl_view_life web_life(const pl_web *w, const pl_snapshot *s); /* s may be NULL */
/* The snapshot's object, with "life" as its first member. */
void web_put_snapshot(pl_json *out, const pl_snapshot *s, pl_view_life life);
/* The answer to a path of /api, or to /metrics and /healthz. */
enum MHD_Result web_api(pl_web *w, struct MHD_Connection *c, const web_query *q);

/* ---- web_columns.c, web_timeline.c: JSON of /api/metrics, /api/versions, /api/timeline ---- */
void web_columns(pl_json *j, const pl_history *h, int64_t from, int64_t points);
void web_versions(pl_json *j, const pl_history *h);
pl_status web_timeline(pl_json *j, const char *run_dir, int64_t from, pl_error *err);

/* ---- web_samples.c ---- */
enum MHD_Result web_samples(pl_web *w, struct MHD_Connection *c, const web_query *q);
enum MHD_Result web_sample(pl_web *w, struct MHD_Connection *c, const web_query *q);
enum MHD_Result web_prompt(pl_web *w, struct MHD_Connection *c, const web_query *q);

/* ---- web_events.c ---- */
enum MHD_Result web_events(pl_web *w, struct MHD_Connection *c, web_client *client);
/* Look at the files, and wake the streams that have something to send. */
void web_events_tick(pl_web *w);
void web_events_drop(web_client *client); /* its connection ends */
void web_events_done(pl_web *w);

#endif
