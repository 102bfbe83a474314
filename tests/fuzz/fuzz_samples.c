/* tests/fuzz/fuzz_samples.c - the index of rollouts/ against any bytes.  The first byte chooses:
 * even, the rest is the file as it stands; odd, the rest is what a whole file unpacks to.  Whatever
 * is in it, every answer is JSON, and what is found by text can be fetched and holds that text. */
#include "core/file.h"
#include "monitor/samples.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

static void must(int is_true)
{
    if (!is_true)
        abort();
}

static json_t *parse(pl_json *j)
{
    json_t *o = json_loadb(j->data, j->n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);

    must(json_is_object(o));
    pl_json_done(j);
    return o;
}

static void write_file(const char *path, const uint8_t *data, size_t n)
{
    FILE *f = fopen(path, "w");
    must(f && fwrite(data, 1, n, f) == n && fclose(f) == 0);
}

static void write_packed(const char *path, const uint8_t *data, size_t n)
{
    const size_t room = ZSTD_compressBound(n);
    uint8_t *packed = malloc(room);
    const size_t n_packed = ZSTD_compress(packed, room, data, n, 1);

    must(packed && !ZSTD_isError(n_packed));
    write_file(path, packed, n_packed);
    free(packed);
}

static void check_pieces(const json_t *o)
{
    const json_t *pieces = json_object_get(o, "pieces"), *piece;
    size_t n = 0, i;

    json_array_foreach(pieces, i, piece) n += json_string_length(piece);
    must(!json_is_array(pieces) || n >= json_string_length(json_object_get(o, "text")));
}

static void check_row(pl_samples *s, const pl_samples_row *row)
{
    pl_json j = {0};

    if (pl_samples_get(s, row->step, row->uid, &j, NULL) == PL_OK) {
        json_t *o = parse(&j);
        must(json_is_array(json_object_get(o, "tokens")));
        check_pieces(o);
        json_decref(o);
    }
    pl_json_done(&j);
    must(pl_samples_prompt_json(s, row->prompt, &j, NULL) == PL_OK);
    json_decref(parse(&j));
}

static void check(pl_samples *s)
{
    static pl_samples_row rows[8];
    pl_samples_query q = pl_samples_any();
    int64_t n_match, searched;
    pl_json j = {0};

    q.limit = 8;
    for (int order = 0; order < PL_SAMPLES_ORDERS; order++) {
        q.order = (pl_samples_order)order;
        const int n = pl_samples_rows(s, &q, rows, &n_match, &searched, NULL);
        must(n >= 0 && n <= n_match);
        for (int i = 0; order == 0 && i < n; i++)
            check_row(s, &rows[i]);
        must(pl_samples_query_json(s, &q, &j, NULL) == PL_OK);
        json_decref(parse(&j));
    }
    q.text = "a";
    must(pl_samples_query_json(s, &q, &j, NULL) == PL_OK);
    json_t *o = parse(&j), *row;
    size_t i;
    json_array_foreach(json_object_get(o, "samples"), i, row)
        must(strchr(json_string_value(json_object_get(row, "excerpt")), 'a') != NULL ||
             strlen(json_string_value(json_object_get(row, "excerpt"))) <
                 json_string_length(json_object_get(row, "excerpt")));
    json_decref(o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char dir[] = "/tmp/fuzz_samples_XXXXXX", folder[64], path[128];
    pl_samples *s = NULL;

    if (size < 1)
        return 0;
    must(mkdtemp(dir) != NULL);
    must(snprintf(folder, sizeof folder, "%s/rollouts", dir) > 0);
    must(snprintf(path, sizeof path, "%s/step_000003.jsonl.zst", folder) > 0);
    must(pl_dir_make(folder, NULL) == PL_OK);
    if (data[0] % 2 == 0)
        write_file(path, data + 1, size - 1);
    else
        write_packed(path, data + 1, size - 1);
    must(pl_samples_open(&s, dir, NULL) == PL_OK);
    must(pl_samples_poll(s, 0) == 1);
    check(s);
    pl_samples_close(s);
    must(unlink(path) == 0 && rmdir(folder) == 0 && rmdir(dir) == 0);
    return 0;
}
