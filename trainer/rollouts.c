/* trainer/rollouts.c - rollout records: one JSON line a sample, compressed with zstd.  The keys and
 * their order are NAMES 5.7; other people's scripts read them. */
#include "core/file.h"
#include "core/json.h"
#include "model/draft.h"
#include "trainer/trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

enum { LEVEL = 3, PATH_ROOM = 4096 };

static const char *finish_name(pl_finish finish)
{
    switch (finish) {
    case PL_FINISH_STOP:
        return "stop";
    case PL_FINISH_LENGTH:
        return "length";
    case PL_FINISH_NONE:
    case PL_FINISH_ABORTED:
        break;
    }
    return "aborted";
}

static const char *source_name(uint8_t source)
{
    return source == PL_SOURCE_SUFFIX    ? "\"suffix\""
           : source == PL_SOURCE_LEARNED ? "\"learned\""
                                         : "\"target\"";
}

static void put_int(pl_json *j, const char *key, int64_t v)
{
    pl_json_text(j, key);
    pl_json_int(j, v);
}

static void put_ids(pl_json *j, const char *key, const int32_t *ids, int n)
{
    pl_json_text(j, key);
    for (int i = 0; i < n; i++)
        put_int(j, i == 0 ? "" : ",", ids[i]);
    pl_json_text(j, "]");
}

static void put_arrays(pl_json *j, const pl_response *r)
{
    put_ids(j, ",\"prompt_ids\":[", r->prompt, r->n_prompt);
    put_ids(j, ",\"tokens\":[", r->tokens, r->n_tokens);
    pl_json_text(j, ",\"logprobs\":[");
    for (int i = 0; i < r->n_tokens; i++) {
        pl_json_text(j, i == 0 ? "" : ",");
        pl_json_float(j, r->logprobs[i]);
    }
    pl_json_text(j, "]");
}

/* Where each token ends in the text as it is written: bytes that are no UTF-8 become U+FFFD there,
 * and a token that ends among them ends where they begin. */
static void put_ends(pl_json *j, const pl_sample *s)
{
    size_t raw = 0, clean = 0; /* begin of the same character in both */
    int is_valid = 1;

    pl_json_text(j, ",\"token_ends\":[");
    for (int i = 0; i < s->response->n_tokens; i++) {
        const size_t end = (size_t)s->token_ends[i];
        size_t n = 0;
        while (raw < end && raw < s->n_text) {
            n = pl_json_sequence(s->text + raw, s->n_text - raw, &is_valid);
            if (raw + n > end)
                break;
            raw += n;
            clean += is_valid ? n : 3;
        }
        const size_t inside = end > raw && is_valid ? end - raw : 0;
        put_int(j, i == 0 ? "" : ",", (int64_t)(clean + inside));
    }
    pl_json_text(j, "]");
}

static void put_sample(pl_json *j, int64_t step, const pl_sample *s, uint32_t policy_version)
{
    const pl_response *r = s->response;
    const char *truth = s->prompt->ground_truth ? s->prompt->ground_truth : "";

    put_int(j, "{\"uid\":", r->uid);
    put_int(j, ",\"step\":", step);
    pl_json_text(j, ",\"prompt\":");
    pl_json_text(j, s->prompt->messages_json ? s->prompt->messages_json : "[]");
    put_arrays(j, r);
    pl_json_text(j, ",\"text\":");
    pl_json_string(j, s->text, s->text ? s->n_text : 0);
    pl_json_text(j, ",\"reward\":");
    pl_json_float(j, s->reward);
    pl_json_text(j, ",\"advantage\":");
    pl_json_float(j, s->advantage);
    pl_json_text(j, ",\"finish_reason\":\"");
    pl_json_text(j, finish_name(r->finish));
    put_int(j, "\",\"policy_version\":", policy_version);
    put_int(j, ",\"spec_num_draft_tokens\":", r->spec_num_draft_tokens);
    put_int(j, ",\"spec_num_accepted_tokens\":", r->spec_num_accepted_tokens);
    put_int(j, ",\"spec_num_verify_steps\":", r->spec_num_verify_steps);
    pl_json_text(j, ",\"ground_truth\":");
    pl_json_string(j, truth, strlen(truth));
    pl_json_text(j, ",\"token_source\":[");
    for (int i = 0; r->token_source && i < r->n_tokens; i++) {
        pl_json_text(j, i == 0 ? "" : ",");
        pl_json_text(j, source_name(r->token_source[i]));
    }
    pl_json_text(j, "]");
    if (s->token_ends && s->text)
        put_ends(j, s);
    pl_json_text(j, "}\n");
}

/* Compress bytes into the file; is_last ends the frame. */
static pl_status press(
    ZSTD_CCtx *z, pl_writer *w, const char *data, size_t n, int is_last, pl_error *err)
{
    char buffer[16 << 10];
    ZSTD_inBuffer in = {data, n, 0};
    size_t left;

    do {
        ZSTD_outBuffer out = {buffer, sizeof buffer, 0};
        left = ZSTD_compressStream2(z, &out, &in, is_last ? ZSTD_e_end : ZSTD_e_continue);
        if (ZSTD_isError(left))
            return pl_fail(err, PL_E_NOMEM, "zstd: %s", ZSTD_getErrorName(left));
        const pl_status st = pl_writer_put(w, buffer, out.pos, err);
        if (st != PL_OK)
            return st;
    } while (is_last ? left > 0 : in.pos < in.size);
    return PL_OK;
}

static pl_status put_all(ZSTD_CCtx *z, pl_writer *w, int64_t step, const pl_sample *samples, int n,
    uint32_t policy_version, pl_error *err)
{
    pl_json j = {0};
    pl_status st = PL_OK;

    for (int i = 0; i < n && st == PL_OK; i++) {
        pl_json_clear(&j);
        put_sample(&j, step, &samples[i], policy_version);
        st = pl_json_check(&j, "rollout record", err);
        if (st == PL_OK)
            st = press(z, w, j.data, j.n, 0, err);
    }
    if (st == PL_OK)
        st = press(z, w, NULL, 0, 1, err);
    pl_json_done(&j);
    return st;
}

static pl_status write_file(const char *path, int64_t step, const pl_sample *samples, int n,
    uint32_t policy_version, pl_error *err)
{
    pl_writer *w = NULL;
    ZSTD_CCtx *z = ZSTD_createCCtx();

    if (!z || ZSTD_isError(ZSTD_CCtx_setParameter(z, ZSTD_c_compressionLevel, LEVEL)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, 1))) {
        ZSTD_freeCCtx(z);
        return pl_fail(err, PL_E_NOMEM, "zstd: no memory");
    }
    pl_status st = pl_writer_open(&w, path, err);
    if (st == PL_OK) {
        st = put_all(z, w, step, samples, n, policy_version, err);
        if (st == PL_OK)
            st = pl_writer_commit(w, err);
        else
            pl_writer_abort(w);
    }
    ZSTD_freeCCtx(z);
    return st;
}

pl_status pl_rollouts_write(const char *run_dir, int64_t step, const pl_sample *samples, int n,
    uint32_t policy_version, pl_error *err)
{
    char path[PATH_ROOM];
    const int len = snprintf(path, sizeof path, "%s/rollouts", run_dir);

    if (len < 0 || len + 64 > (int)sizeof path)
        return pl_fail(err, PL_E_IO, "'%s': name too long", run_dir);
    pl_status st = pl_dir_make(path, err);
    if (st == PL_OK && snprintf(path + len, sizeof path - (size_t)len, "/step_%06lld.jsonl.zst",
                           (long long)step) > 0)
        st = write_file(path, step, samples, n, policy_version, err);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "rollouts of step %lld", (long long)step);
}
