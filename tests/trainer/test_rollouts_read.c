/* Claims: what pl_rollouts_write wrote comes back to the bit, denormal and negative zero too; lines
 * of other systems are understood by their own names; whatever is broken, hostile or too much is
 * refused in a sentence that names the line, and before memory is taken for it. */
#include "core/file.h"
#include "core/json.h"
#include "core/rng.h"
#include "trainer/rollouts_internal.h"
#include "trainer/trainer.h"

#include <criterion/criterion.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

enum { VOCAB = 100, LONGEST = 64 };
static pl_error err;

static pl_status parse(pl_rollouts **out, const char *text)
{
    return rollouts_parse(out, text, strlen(text), "r.jsonl", NULL, VOCAB, LONGEST, &err);
}

static void refuses(const char *text, pl_status code, const char *why)
{
    pl_rollouts *r = NULL;

    cr_assert_eq(parse(&r, text), code, "'%s' for: %s", err.msg, text);
    cr_assert_null(r);
    cr_assert_not_null(strstr(err.msg, why), "'%s' does not say '%s'", err.msg, why);
    cr_assert_eq(strncmp(err.msg, "r.jsonl", 7), 0, "%s", err.msg);
}

/* ---- the round trip ---- */

enum { N = 12, TOKENS = 9 };

typedef struct record {
    pl_prompt prompt;
    pl_response response;
    int32_t tokens[TOKENS];
    float logprobs[TOKENS];
    uint8_t sources[TOKENS];
} record;

static int32_t ids[2][3] = {{1, 2, 3}, {4, 5, 6}};
static char truth[] = "56", messages[] = "[{\"role\":\"user\",\"content\":\"q \\u00e9\"}]";
static char text[] = "a\"\n\0b \xc3\xa9";
static record records[N];
static pl_sample samples[N];

/* Bits that a text may lose: denormals, the smallest normal, zeros, neighbours of a power of two.
 */
static const uint32_t hard[] = {0x80000001, 0x807fffff, 0x80800000, 0x80000000, 0x00000000,
    0xbf800001, 0xbf7fffff, 0xff7fffff, 0x8012d687};

static void fill(void)
{
    for (int i = 0; i < N; i++) {
        record *k = &records[i];
        k->prompt = (pl_prompt){
            .ground_truth = truth, .messages_json = messages, .ids = ids[i / 4 % 2], .n_ids = 3};
        for (int t = 0; t < TOKENS; t++) {
            const uint32_t bits = i == 0 ? hard[t]
                                         : 0x80000000 | pl_noise_word(7, (uint32_t)i, (uint32_t)t,
                                                            PL_NOISE_SAMPLE, 0) %
                                                            0x7f800000;
            memcpy(&k->logprobs[t], &bits, sizeof bits);
            k->tokens[t] = (i * 7 + t) % VOCAB;
            k->sources[t] = (uint8_t)(t % 3);
        }
        k->response = (pl_response){.uid = 4000000000u + (uint32_t)i,
            .n_prompt = 3,
            .prompt = k->prompt.ids,
            .n_tokens = TOKENS,
            .tokens = k->tokens,
            .logprobs = k->logprobs,
            .token_source = k->sources,
            .finish = i % 2 ? PL_FINISH_STOP : PL_FINISH_LENGTH,
            .policy_version = 4294967295u,
            .spec_num_draft_tokens = 5,
            .spec_num_accepted_tokens = 2,
            .spec_num_verify_steps = 1};
        samples[i] = (pl_sample){.response = &k->response,
            .prompt = &k->prompt,
            .reward = 0.1f * (float)i,
            .advantage = -0.3f,
            .text = text,
            .n_text = sizeof text - 1};
    }
}

static void is_same(const pl_sample *a, const pl_sample *b)
{
    const pl_response *x = a->response, *y = b->response;

    cr_assert_eq(x->uid, y->uid);
    cr_assert_eq(y->n_prompt, 3);
    cr_assert_arr_eq(x->prompt, y->prompt, 3 * sizeof *x->prompt);
    cr_assert_eq(y->n_tokens, TOKENS);
    cr_assert_arr_eq(x->tokens, y->tokens, TOKENS * sizeof *x->tokens);
    cr_assert_arr_eq(x->token_source, y->token_source, TOKENS);
    for (int t = 0; t < TOKENS; t++)
        cr_assert_eq(memcmp(&x->logprobs[t], &y->logprobs[t], sizeof(float)), 0, "%a came as %a",
            (double)x->logprobs[t], (double)y->logprobs[t]);
    cr_assert_eq(memcmp(&a->reward, &b->reward, sizeof a->reward), 0);
    cr_assert_eq(memcmp(&a->advantage, &b->advantage, sizeof a->advantage), 0);
    cr_assert_eq(x->finish, y->finish);
    cr_assert_eq(x->policy_version, y->policy_version);
    cr_assert_eq(y->spec_num_draft_tokens, 5);
    cr_assert_eq(y->spec_num_accepted_tokens, 2);
    cr_assert_eq(y->spec_num_verify_steps, 1);
    cr_assert_eq(a->n_text, b->n_text);
    cr_assert_arr_eq(a->text, b->text, a->n_text);
    cr_assert_str_eq(b->prompt->ground_truth, truth);
    cr_assert_str_eq(b->prompt->messages_json, messages);
}

static char *compressed(size_t *n, char dir[])
{
    char path[128], *packed;

    cr_assert_not_null(mkdtemp(dir));
    fill();
    cr_assert_eq(pl_rollouts_write(dir, 7, samples, N, 4294967295u, &err), PL_OK, "%s", err.msg);
    cr_assert(snprintf(path, sizeof path, "%s/rollouts/step_000007.jsonl.zst", dir) > 0);
    cr_assert_eq(pl_file_read(&packed, n, path, 1 << 20, &err), PL_OK, "%s", err.msg);
    return packed;
}

Test(rollouts_read, what_was_written_comes_back_to_the_bit)
{
    char dir[] = "/tmp/pl_rollouts_read_XXXXXX", path[128];
    pl_rollouts *r = NULL;
    size_t n;

    free(compressed(&n, dir));
    cr_assert(snprintf(path, sizeof path, "%s/rollouts/step_000007.jsonl.zst", dir) > 0);
    cr_assert_eq(pl_rollouts_read(&r, path, NULL, VOCAB, LONGEST, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(r->n, N);
    cr_assert_eq(r->step, 7);
    cr_assert_eq(r->n_groups, 3);
    cr_assert_eq(r->group_size, 4);
    cr_assert(r->has_logprobs);
    for (int i = 0; i < N; i++) {
        is_same(&samples[i], &r->samples[i]);
        cr_assert_eq(r->samples[i].response->group, (uint32_t)i / 4);
    }
    pl_rollouts_free(r);
    cr_assert_eq(
        pl_rollouts_read(&r, "/tmp/pl-not-there.jsonl", NULL, VOCAB, LONGEST, &err), PL_E_NOENT);
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK);
}

Test(rollouts_read, a_compressed_file_that_was_cut_or_changed_is_refused)
{
    char dir[] = "/tmp/pl_rollouts_read_XXXXXX";
    size_t n;
    char *packed = compressed(&n, dir);
    pl_rollouts *r = NULL;
    int n_harmless = 0;

    for (size_t cut = 4; cut < n; cut++) {
        cr_assert_eq(rollouts_parse(&r, packed, cut, "f", NULL, VOCAB, LONGEST, &err), PL_E_FORMAT,
            "cut at %zu of %zu", cut, n);
        cr_assert_not_null(strstr(err.msg, "f:"));
    }
    for (size_t at = 4; at < n; at++) { /* some bits say nothing; none says something else */
        packed[at] ^= 0x10;
        if (rollouts_parse(&r, packed, n, "f", NULL, VOCAB, LONGEST, &err) == PL_OK) {
            cr_assert_eq(r->n, N);
            for (int i = 0; i < N; i++)
                is_same(&samples[i], &r->samples[i]);
            pl_rollouts_free(r);
            n_harmless++;
        }
        packed[at] ^= 0x10;
    }
    cr_assert_lt(n_harmless, 8);
    free(packed);
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK);
}

static float one_float(const char *number)
{
    char line[256];
    pl_rollouts *r = NULL;

    cr_assert(snprintf(line, sizeof line, "{\"prompt_ids\":[1],\"tokens\":[2],\"reward\":%s}\n",
                  number) > 0);
    cr_assert_eq(parse(&r, line), PL_OK, "%s", err.msg);
    const float v = r->samples[0].reward;
    pl_rollouts_free(r);
    return v;
}

/* The first lies so little above the middle of two floats that a double is the middle itself, which
 * rounds to even, down. */
Test(rollouts_read, a_number_is_rounded_once)
{
    const char *text_of = "1.00000005960464477550";

    cr_assert_eq((float)strtod(text_of, NULL), 1.0f);
    cr_assert_eq(one_float(text_of), 1.00000012f);
    cr_assert(signbit(one_float("-0.0")));
    cr_assert_eq(one_float("-12.5E-1"), -1.25f);
    cr_assert_eq(one_float("1e-45"), 0x1p-149f);
    cr_assert_eq(one_float("3.4028235e+38"), 0x1.fffffep127f);
    cr_assert_eq(one_float("1e-99999999999999999999"), 0.0f);
    cr_assert_eq(one_float("true"), 1.0f);
}

/* ---- other systems ---- */

Test(rollouts_read, slime_lists_prompt_and_response_together)
{
    pl_rollouts *r = NULL;

    cr_assert_eq(parse(&r, "{\"index\":0,\"group_index\":3,\"prompt\":\"p\",\"tokens\":[9,8,7,6],"
                           "\"response\":\"xy\",\"response_length\":2,\"label\":\"4\",\"reward\":1,"
                           "\"loss_mask\":[1,1],\"rollout_log_probs\":[-1.5,-0.25],"
                           "\"status\":\"truncated\",\"metadata\":{\"a\":[{}]}}\n"),
        PL_OK, "%s", err.msg);
    const pl_response *x = r->samples[0].response;
    cr_assert_eq(x->n_prompt, 2);
    cr_assert_eq(x->prompt[1], 8);
    cr_assert_eq(x->n_tokens, 2);
    cr_assert_eq(x->tokens[0], 7);
    cr_assert_eq(x->logprobs[1], -0.25f);
    cr_assert_eq(x->finish, PL_FINISH_LENGTH);
    cr_assert_str_eq(r->samples[0].text, "xy");
    cr_assert_str_eq(r->samples[0].prompt->ground_truth, "4");
    cr_assert_eq(r->step, 0);
    pl_rollouts_free(r);
}

/* Two groups: TRL's lists, verl's names; the group's name in uid; one sample without log-probs. */
Test(rollouts_read, trl_and_verl_names_are_known)
{
    pl_rollouts *r = NULL;

    cr_assert_eq(parse(&r, "{\"uid\":\"g\",\"prompt_token_ids\":[1],\"completion_ids\":[2,3],"
                           "\"completion\":[{\"role\":\"assistant\",\"content\":\"t\"}],"
                           "\"logprobs\":[-1,-2],\"score\":0.5,\"gts\":\"8\",\"step\":4}\n"
                           "{\"uid\":\"h\",\"prompt_ids\":[1],\"response_ids\":[2,3],"
                           "\"output\":\"u\",\"score\":0,\"step\":4,\"unknown\":null}"),
        PL_OK, "%s", err.msg);
    cr_assert_eq(r->n, 2);
    cr_assert_eq(r->n_groups, 2);
    cr_assert_eq(r->group_size, 1);
    cr_assert_eq(r->step, 4);
    cr_assert_not(r->has_logprobs);
    cr_assert_null(r->samples[0].response->logprobs);
    cr_assert_eq(r->samples[1].response->uid, 1);
    cr_assert_str_eq(r->samples[0].text, "t");
    cr_assert_str_eq(r->samples[1].text, "u");
    cr_assert_eq(r->samples[0].reward, 0.5f);
    pl_rollouts_free(r);
}

#define LINE(uid, prompt)                                                                          \
    "{\"uid\":" #uid ",\"prompt_ids\":[" #prompt "],\"tokens\":[2],\"reward\":0}\n"

Test(rollouts_read, groups_are_found)
{
    pl_rollouts *r = NULL;

    cr_assert_eq(
        parse(&r, LINE(4, 1) LINE(5, 1) LINE(6, 2) LINE(7, 2) LINE(8, 2) LINE(9, 2)), PL_OK);
    cr_assert_eq(r->n_groups, 3, "one prompt, twice in a row, is two groups of %d", r->group_size);
    cr_assert_eq(r->group_size, 2);
    pl_rollouts_free(r);
    cr_assert_eq(parse(&r, LINE(4, 1) LINE(5, 1) LINE(6, 2)), PL_OK);
    cr_assert_eq(r->n_groups, 3); /* of one sample each: uids allow it */
    pl_rollouts_free(r);
    cr_assert_eq(parse(&r, LINE(4, 1) LINE(50, 1) LINE(6, 2)), PL_OK);
    cr_assert_eq(r->n_groups, 2);
    cr_assert_eq(r->group_size, 0, "groups of two sizes have none");
    pl_rollouts_free(r);
}

/* ---- hostile ---- */

#define HEAD "{\"prompt_ids\":[1],\"tokens\":[2]"

Test(rollouts_read, what_is_wrong_is_named_by_line)
{
    refuses("", PL_E_FORMAT, "holds no sample");
    refuses("\n", PL_E_FORMAT, "r.jsonl:1: is empty");
    refuses("[1]\n", PL_E_FORMAT, "not a JSON object");
    refuses(HEAD ",\"reward\":1}\n" HEAD ",\"reward\":1", PL_E_FORMAT, "r.jsonl:2: is not valid");
    refuses(HEAD ",\"reward\":1} {}", PL_E_FORMAT, "goes on after");
    refuses(HEAD ",\"x\":[1 2],\"reward\":1}", PL_E_FORMAT, "not valid JSON");
    refuses(HEAD ",\"reward\":1,\"reward\":2}", PL_E_FORMAT, "'reward' twice");
    refuses(HEAD "}", PL_E_FORMAT, "no 'reward' or 'score'");
    refuses(HEAD ",\"reward\":NaN}", PL_E_FORMAT, "'reward' is NaN, not a finite");
    refuses(HEAD ",\"reward\":-Infinity}", PL_E_FORMAT, "not a finite");
    refuses(HEAD ",\"reward\":1e39}", PL_E_FORMAT, "not a finite");
    refuses(HEAD ",\"reward\":null}", PL_E_FORMAT, "no 'reward'");
    refuses(HEAD ",\"reward\":\"1\"}", PL_E_FORMAT, "not a finite");
    refuses(HEAD ",\"reward\":1,\"logprobs\":[-1,-1]}", PL_E_FORMAT, "2 elements for 1 tokens");
    refuses(HEAD ",\"reward\":1,\"logprobs\":[null]}", PL_E_FORMAT, "element 1 of 'logprobs'");
    refuses(HEAD ",\"reward\":1,\"logprobs\":[NaN]}", PL_E_FORMAT, "element 1 of 'logprobs'");
    refuses(HEAD ",\"reward\":1,\"uid\":4294967296}", PL_E_FORMAT, "'uid' is 4294967296");
    refuses(HEAD ",\"reward\":1,\"uid\":-1}", PL_E_FORMAT, "'uid' is -1");
    refuses(HEAD ",\"reward\":1,\"loss_mask\":[0]}", PL_E_FORMAT, "several turns");
    refuses(HEAD ",\"reward\":1,\"token_source\":[\"me\"]}", PL_E_FORMAT, "none of target");
    refuses(HEAD ",\"reward\":1,\"text\":\"\xff\"}", PL_E_FORMAT, "'text'");
    refuses(HEAD ",\"reward\":1,\"temperature\":-1}", PL_E_FORMAT, "negative");
    refuses("{\"prompt_ids\":[100],\"tokens\":[2],\"reward\":1}", PL_E_FORMAT,
        "element 1 of 'prompt_ids' is 100, not an id of 0 to 99");
    refuses("{\"prompt_ids\":[1],\"tokens\":[-1],\"reward\":1}", PL_E_FORMAT, "is -1, not an id");
    refuses("{\"prompt_ids\":[1],\"tokens\":[1.0],\"reward\":1}", PL_E_FORMAT, "is 1.0, not an");
    refuses("{\"prompt_ids\":[1],\"tokens\":[],\"reward\":1}", PL_E_FORMAT, "no tokens");
    refuses("{\"prompt_ids\":[],\"tokens\":[1],\"reward\":1}", PL_E_FORMAT, "no tokens");
    refuses("{\"prompt_ids\":[1],\"tokens\":{},\"reward\":1}", PL_E_FORMAT, "is no list");
    refuses("{\"tokens\":[1],\"reward\":1}", PL_E_FORMAT, "no 'prompt_ids'");
    refuses("{\"prompt_ids\":[1],\"reward\":1}", PL_E_FORMAT, "no 'tokens'");
    refuses(LINE(5, 1) LINE(6, 1) LINE(5, 1), PL_E_FORMAT,
        "r.jsonl:3: uid 5 stands twice, first on line 1");
    refuses(LINE(5, 1) HEAD ",\"reward\":1}", PL_E_FORMAT, "no 'uid'");
    refuses(HEAD ",\"reward\":1,\"step\":3}\n" HEAD ",\"reward\":1,\"step\":4}", PL_E_FORMAT,
        "one file a step");
    refuses("PAR1....", PL_E_FORMAT, "Parquet");
    refuses("\x1f\x8b\x08", PL_E_FORMAT, "gzip");
}

/* Ids of a list of n ones. */
static char *long_line(int n)
{
    pl_json j = {0};

    pl_json_text(&j, "{\"prompt_ids\":[1],\"reward\":0,\"tokens\":[1");
    for (int i = 1; i < n; i++)
        pl_json_text(&j, ",1");
    pl_json_text(&j, "]}\n");
    cr_assert_eq(pl_json_check(&j, "line", &err), PL_OK);
    return j.data;
}

Test(rollouts_read, too_much_is_refused)
{
    pl_rollouts *r = NULL;
    char *line = long_line(LONGEST - 1);

    cr_assert_eq(parse(&r, line), PL_OK, "%s", err.msg);
    pl_rollouts_free(r);
    free(line);
    line = long_line(LONGEST);
    refuses(line, PL_E_SHAPE, "together at most 64");
    free(line);
    line = long_line(LONGEST + 1);
    refuses(line, PL_E_SHAPE, "more than 64 elements");
    free(line);

    char deep[256] = HEAD ",\"x\":";
    memset(deep + strlen(deep), '[', 100);
    refuses(deep, PL_E_FORMAT, "nested too deep");
}

/* 64 MiB without a line's end, in some kilobytes: refused at 8 MiB. */
Test(rollouts_read, a_bomb_is_refused)
{
    enum { PIECE = 1 << 20, PIECES = 64 };
    const size_t room = 1 << 20;
    char *piece = malloc(PIECE), *packed = malloc(room);
    ZSTD_CCtx *z = ZSTD_createCCtx();
    ZSTD_outBuffer out = {packed, room, 0};
    pl_rollouts *r = NULL;

    cr_assert(piece && packed && z);
    memset(piece, ' ', PIECE);
    for (int i = 0; i < PIECES; i++) {
        ZSTD_inBuffer in = {piece, PIECE, 0};
        cr_assert_not(ZSTD_isError(
            ZSTD_compressStream2(z, &out, &in, i + 1 < PIECES ? ZSTD_e_continue : ZSTD_e_end)));
    }
    cr_assert_lt(out.pos, 1 << 16);
    cr_assert_eq(rollouts_parse(&r, packed, out.pos, "f", NULL, VOCAB, LONGEST, &err), PL_E_FORMAT);
    cr_assert_not_null(strstr(err.msg, "f:1: longer than 8 MiB"), "%s", err.msg);
    ZSTD_freeCCtx(z);
    free(piece);
    free(packed);
}

/* Two frames in a row, cut between two lines, are one file. */
Test(rollouts_read, frames_may_follow_one_another)
{
    const char *const lines[] = {LINE(0, 1), LINE(1, 1)};
    char packed[512];
    size_t n = 0;
    pl_rollouts *r = NULL;

    for (int i = 0; i < 2; i++) {
        const size_t added =
            ZSTD_compress(packed + n, sizeof packed - n, lines[i], strlen(lines[i]), 3);
        cr_assert_not(ZSTD_isError(added));
        n += added;
    }
    cr_assert_eq(
        rollouts_parse(&r, packed, n, "f", NULL, VOCAB, LONGEST, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(r->n, 2);
    pl_rollouts_free(r);
}

/* strtof reads a comma there: numbers must not. */
Test(rollouts_read, the_locale_does_not_matter)
{
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE"};
    int found = 0;

    for (int i = 0; i < 3 && !found; i++)
        found = setlocale(LC_ALL, names[i]) != NULL;
    if (!found)
        cr_skip_test("no locale with a decimal comma here");
    cr_assert_eq(one_float("-12.5"), -12.5f);
    (void)setlocale(LC_ALL, "C");
}
