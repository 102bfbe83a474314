/* tests/oracle/tokenizer_driver.c - the tokenizer on lines of JSON, for tests/oracle/tokenizer.py.
 *
 *   tokenizer_driver MODEL encode [special]   JSON strings in, {"tokens": [...]} out, one a line
 *   tokenizer_driver MODEL roundtrip          JSON strings in, "1" or "0" out
 *   tokenizer_driver MODEL save DIR           write the Hugging Face files
 *   tokenizer_driver MODEL time FILE          seconds to load and to encode FILE
 *
 * MODEL is a model, or a directory that needs nothing but tokenizer.json and tokenizer_config.json.
 */
#include "core/file.h"
#include "model/source.h"
#include "model/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int fail(const pl_error *err)
{
    fprintf(stderr, "tokenizer_driver: %s\n", err->msg);
    return 1;
}

static pl_status load(pl_tokenizer **out, const char *path, pl_error *err)
{
    char file[4096];
    char *json = NULL, *config = NULL;
    size_t n = 0, n_config = 0;
    pl_source *src = NULL;
    snprintf(file, sizeof file, "%s/config.json", path);
    const int is_model = pl_path_exists(file);
    snprintf(file, sizeof file, "%s/tokenizer.json", path);
    pl_status st;
    if (is_model || !pl_path_exists(file)) {
        st = pl_source_open(&src, path, err);
        if (st == PL_OK)
            st = pl_tokenizer_open(out, src, err);
        pl_source_close(src);
        return st;
    }
    st = pl_file_read(&json, &n, file, 1 << 28, err);
    snprintf(file, sizeof file, "%s/tokenizer_config.json", path);
    if (st == PL_OK && pl_path_exists(file))
        st = pl_file_read(&config, &n_config, file, 1 << 24, err);
    if (st == PL_OK)
        st = pl_tokenizer_parse(out, json, n, config, NULL, 1 << 20, err);
    free(json);
    free(config);
    return st;
}

static int lines(const pl_tokenizer *t, int with_special, int is_roundtrip)
{
    char *line = NULL;
    size_t cap = 0;
    pl_error err;
    while (getline(&line, &cap, stdin) > 0) {
        int32_t *ids = NULL;
        int n = 0;
        json_t *s = json_loads(line, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        if (!s || pl_tokenizer_encode(t, json_string_value(s), json_string_length(s), with_special,
                      &ids, &n, &err) != PL_OK)
            return fail(&err);
        if (is_roundtrip) {
            char *text = NULL;
            size_t n_text = 0;
            if (pl_tokenizer_decode(t, ids, n, 0, &text, &n_text, &err) != PL_OK)
                return fail(&err);
            puts(n_text == json_string_length(s) && !memcmp(text, json_string_value(s), n_text)
                     ? "1"
                     : "0");
            free(text);
        } else {
            printf("{\"tokens\":[");
            for (int i = 0; i < n; i++)
                printf("%s%d", i ? "," : "", ids[i]);
            puts("]}");
        }
        free(ids);
        json_decref(s);
    }
    free(line);
    return 0;
}

static int time_file(const pl_tokenizer *t, const char *path)
{
    pl_error err;
    char *text = NULL;
    size_t n = 0;
    int32_t *ids = NULL;
    int n_ids = 0;
    if (pl_file_read(&text, &n, path, 1 << 28, &err) != PL_OK)
        return fail(&err);
    const double start = now_s();
    if (pl_tokenizer_encode(t, text, n, 1, &ids, &n_ids, &err) != PL_OK)
        return fail(&err);
    const double s = now_s() - start;
    printf("%zu bytes, %d tokens, %.3f s, %.2f MB/s\n", n, n_ids, s, 1e-6 * (double)n / s);
    free(ids);
    free(text);
    return 0;
}

int main(int argc, char **argv)
{
    pl_error err;
    pl_tokenizer *t = NULL;
    int rc = 64;
    if (argc < 3)
        return rc;
    const double start = now_s();
    if (load(&t, argv[1], &err) != PL_OK)
        return fail(&err);
    if (strcmp(argv[2], "encode") == 0)
        rc = lines(t, argc > 3, 0);
    else if (strcmp(argv[2], "roundtrip") == 0)
        rc = lines(t, 0, 1);
    else if (strcmp(argv[2], "save") == 0 && argc > 3)
        rc = pl_tokenizer_save(t, argv[3], &err) == PL_OK ? 0 : fail(&err);
    else if (strcmp(argv[2], "time") == 0 && argc > 3) {
        printf("loading %.1f ms\n", 1e3 * (now_s() - start));
        rc = time_file(t, argv[3]);
    }
    pl_tokenizer_free(t);
    return rc;
}
