/* monitor/web_query.h - what a client asked for: path and fields of a request's first line. */
#ifndef PL_MONITOR_WEB_QUERY_H
#define PL_MONITOR_WEB_QUERY_H

#include <stddef.h>
#include <stdint.h>

enum {
    WEB_TARGET_MAX = 8192, /* bytes of a target: RELIABILITY 2.7 */
    WEB_PATH = 32,
    WEB_FIELDS = 12,
    WEB_NAME = 16,
    WEB_VALUE = 512,
};

typedef struct web_field {
    char name[WEB_NAME];
    char value[WEB_VALUE];
} web_field;

typedef struct web_query {
    char path[WEB_PATH]; /* "/api/samples" */
    int n;
    web_field fields[WEB_FIELDS];
} web_query;

/* Take "/path?name=value&..." apart; escapes are undone in values alone.  Returns NULL, or what is
 * wrong with it, in words.  *status gets the HTTP status then. */
const char *web_query_parse(web_query *q, const char *target, int *status);
/* Value of a field; NULL when it is not there. */
const char *web_query_text(const web_query *q, const char *name);
/* 1: *v is set; 0: no such field (or an empty one), *v is kept; -1: no number in min .. max. */
int web_query_int(const web_query *q, const char *name, int64_t min, int64_t max, int64_t *v);
int web_query_number(const web_query *q, const char *name, double *v); /* finite */

#endif
