/* Claims: a rollout file holds one line of JSON a sample with exactly the promised keys, log-probs
 * read back to their bits, broken text is clean, and a full disk leaves no file. */
#include "core/file.h"
#include "trainer/trainer.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <zstd.h>

static char dir[] = "/tmp/pl_rollouts_XXXXXX";
static pl_error err;

static int32_t prompt_ids[] = {1, 2, 3};
static int32_t tokens[] = {40, 50, 2};
static float logprobs[] = {-0.1f, -1.17549435e-38f, -12.5f};
static uint8_t sources[] = {0, 1, 2};
static char text[] = "a\"\xf0\x9f\x98";
static char truth[] = "56", messages[] = "[{\"role\":\"user\",\"content\":\"q\"}]";
static pl_prompt prompt = {.ground_truth = truth, .messages_json = messages};
static pl_response response = {.uid = 4000000000u,
    .n_prompt = 3,
    .prompt = prompt_ids,
    .n_tokens = 3,
    .tokens = tokens,
    .logprobs = logprobs,
    .token_source = sources,
    .finish = PL_FINISH_STOP,
    .spec_num_draft_tokens = 5,
    .spec_num_accepted_tokens = 2,
    .spec_num_verify_steps = 1};

static pl_sample sample(void)
{
    return (pl_sample){.response = &response,
        .prompt = &prompt,
        .reward = 1,
        .advantage = -0.5f,
        .text = text,
        .n_text = sizeof text - 1};
}

static void begin(void)
{
    cr_assert_not_null(mkdtemp(dir));
}

static void end(void)
{
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK, "%s", err.msg);
}

TestSuite(rollouts, .init = begin, .fini = end);

/* Decompressed contents of RUN/rollouts/step_000007.jsonl.zst. */
static char *read_back(size_t *n)
{
    char path[128], *packed;
    size_t n_packed;
    const size_t room = 8 << 20;
    char *out = malloc(room + 1);

    cr_assert_not_null(out);
    cr_assert(snprintf(path, sizeof path, "%s/rollouts/step_000007.jsonl.zst", dir) > 0);
    cr_assert_eq(pl_file_read(&packed, &n_packed, path, 1 << 20, &err), PL_OK, "%s", err.msg);
    *n = ZSTD_decompress(out, room, packed, n_packed);
    if (ZSTD_isError(*n)) { /* streamed: no size in the frame */
        ZSTD_DCtx *z = ZSTD_createDCtx();
        ZSTD_inBuffer in = {packed, n_packed, 0};
        ZSTD_outBuffer to = {out, room, 0};
        cr_assert_eq(ZSTD_decompressStream(z, &to, &in), 0);
        *n = to.pos;
        ZSTD_freeDCtx(z);
    }
    out[*n] = '\0';
    free(packed);
    return out;
}

Test(rollouts, a_line_has_exactly_the_promised_keys)
{
    const pl_sample s = sample();
    size_t n;

    cr_assert_eq(pl_rollouts_write(dir, 7, &s, 1, 6, &err), PL_OK, "%s", err.msg);
    char *line = read_back(&n);
    cr_assert_str_eq(line,
        "{\"uid\":4000000000,\"step\":7,\"prompt\":[{\"role\":\"user\",\"content\":\"q\"}],"
        "\"prompt_ids\":[1,2,3],\"tokens\":[40,50,2],\"logprobs\":[-0.1,-1.1754944e-38,-12.5],"
        "\"text\":\"a\\\"\xef\xbf\xbd\",\"reward\":1,\"advantage\":-0.5,"
        "\"finish_reason\":\"stop\",\"policy_version\":6,\"spec_num_draft_tokens\":5,"
        "\"spec_num_accepted_tokens\":2,\"spec_num_verify_steps\":1,\"ground_truth\":\"56\","
        "\"token_source\":[\"target\",\"suffix\",\"learned\"]}\n");
    free(line);
}

Test(rollouts, ends_of_tokens_are_places_in_the_text_as_it_is_written)
{
    /* a, an emoji of four bytes that two tokens make, a broken one of two bytes, an end token */
    static char torn[] = "a\xf0\x9f\x98\x80\xe2\x82z";
    static int32_t ids[] = {1, 2, 3, 4, 5, 6}, ends[] = {3, 5, 6, 8, 8, 8};
    static float logs[6];
    static pl_response r;
    pl_sample s = sample();
    size_t n;

    r = response;
    r.n_tokens = 6;
    r.tokens = ids;
    r.logprobs = logs;
    r.token_source = NULL;
    s.response = &r;
    s.text = torn;
    s.n_text = sizeof torn - 1;
    s.token_ends = ends;
    cr_assert_eq(pl_rollouts_write(dir, 7, &s, 1, 6, &err), PL_OK, "%s", err.msg);
    char *line = read_back(&n);
    cr_assert_not_null(strstr(line, "\"text\":\"a\xf0\x9f\x98\x80\xef\xbf\xbdz\""), "%s", line);
    cr_assert_not_null(strstr(line, ",\"token_ends\":[3,5,5,9,9,9]}\n"), "%s", line);
    free(line);
}

Test(rollouts, every_line_parses_and_log_probs_read_back)
{
    enum { N = 300 };
    static pl_sample samples[N];
    json_error_t cause;
    size_t n;
    int n_lines = 0;

    for (int i = 0; i < N; i++)
        samples[i] = sample();
    logprobs[1] = -0.33333334f;
    cr_assert_eq(pl_rollouts_write(dir, 7, samples, N, 6, &err), PL_OK, "%s", err.msg);
    char *all = read_back(&n);
    for (char *at = all; *at; n_lines++) {
        char *stop = strchr(at, '\n');
        json_t *o = json_loadb(at, (size_t)(stop - at), JSON_REJECT_DUPLICATES, &cause);
        cr_assert_not_null(o, "%s", cause.text);
        const double v = json_number_value(json_array_get(json_object_get(o, "logprobs"), 1));
        cr_assert_eq((float)v, logprobs[1]);
        json_decref(o);
        at = stop + 1;
    }
    cr_assert_eq(n_lines, N);
    free(all);
}

Test(rollouts, a_full_disk_leaves_no_file)
{
    const struct rlimit small = {16, 16};
    const pl_sample s = sample();
    char path[128];

    (void)signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    cr_assert_eq(pl_rollouts_write(dir, 7, &s, 1, 6, &err), PL_E_IO);
    cr_assert_not_null(strstr(err.msg, "rollouts of step 7"), "%s", err.msg);
    cr_assert(snprintf(path, sizeof path, "%s/rollouts/step_000007.jsonl.zst", dir) > 0);
    cr_assert_not(pl_path_exists(path));
}
