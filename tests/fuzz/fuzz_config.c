/* tests/fuzz/fuzz_config.c - the configuration reader against any bytes.  What is accepted must
 * survive the dump: read back, it gives the same dump. */
#define _GNU_SOURCE
#include "core/config.h"

#include <float.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct options {
    int64_t n;
    double rate;
    int enable;
    char path[PL_CONFIG_STR];
    char method[PL_CONFIG_STR];
} options;

static const pl_config_key keys[] = {
    {"a.b.n", offsetof(options, n), PL_INT, -0x1p63, 0x1p63, "1", NULL, "a count"},
    {"a.b.rate", offsetof(options, rate), PL_FLOAT, -DBL_MAX, DBL_MAX, "0.5", NULL, "a rate"},
    {"c.enable", offsetof(options, enable), PL_BOOL, 0, 0, "true", NULL, "a switch"},
    {"a.path", offsetof(options, path), PL_STRING, 0, 0, "", NULL, "a text"},
    {"c.method", offsetof(options, method), PL_ENUM, 0, 0, "auto", "auto|suffix|off", "a word"},
    {0},
};

static const pl_config_alias aliases[] = {{"b.", "a.b."}, {"count", "a.b.n"}, {NULL, NULL}};

static pl_status parse(options *o, const char *text, size_t n, pl_error *err)
{
    const pl_config_section section = {keys, o};
    return pl_config_parse(&section, 1, aliases, text, n, "fuzz.yaml", err);
}

static char *dump(options *o, size_t *n)
{
    const pl_config_section section = {keys, o};
    char *text = NULL;
    FILE *out = open_memstream(&text, n);
    if (!out)
        abort();
    pl_config_dump(&section, 1, 1, out);
    if (fclose(out) != 0)
        abort();
    return text;
}

/* libfyaml 0.7.12 leaks 2 KiB when a quoted scalar holds some twenty escapes. */
const char *__lsan_default_suppressions(void);

const char *__lsan_default_suppressions(void)
{
    return "leak:libfyaml.so\n";
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static options first, second;
    pl_error err;
    size_t n_first, n_second;

    const pl_status st = parse(&first, (const char *)data, size, &err);
    if (st != PL_OK) {
        if (st != err.code || strlen(err.msg) < 5)
            abort();
        return 0;
    }
    char *text = dump(&first, &n_first);
    if (parse(&second, text, n_first, &err) != PL_OK)
        abort();
    char *again = dump(&second, &n_second);
    if (n_first != n_second || memcmp(text, again, n_first) != 0)
        abort();
    free(text);
    free(again);
    return 0;
}
