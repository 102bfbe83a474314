/* Claims: every fault of a prompts file is named with its line; the order of an epoch is a
 * permutation, keyed by seed and epoch; the committed data hold what the quickstart promises. */
#include "core/file.h"
#include "model/source.h"
#include "trainer/trainer.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REWARD "\"reward_model\":{\"style\":\"rule\",\"ground_truth\":\"56\"}"
#define GOOD                                                                                       \
    "{\"data_source\":\"last_number\",\"prompt\":[{\"role\":\"user\",\"content\":\"7 x 8?\"}],"    \
    "\"ability\":\"math\"," REWARD ",\"extra_info\":{\"split\":\"train\",\"index\":3}}"

static pl_error err;

static pl_dataset *parse(const char *text)
{
    pl_dataset *d = NULL;
    cr_assert_eq(
        pl_dataset_parse(&d, text, strlen(text), "p.jsonl", NULL, 0, &err), PL_OK, "%s", err.msg);
    return d;
}

static void expect_error(const char *text, size_t n, pl_status status, const char *words)
{
    pl_dataset *d = NULL;
    cr_expect_eq(pl_dataset_parse(&d, text, n, "p.jsonl", NULL, 0, &err), status, "%.60s", text);
    cr_expect_not_null(strstr(err.msg, words), "'%s' lacks '%s'", err.msg, words);
    cr_expect_null(d);
}

Test(dataset, a_record_is_read_whole)
{
    pl_dataset *d = parse(GOOD "\n" GOOD);
    const pl_prompt *p = &d->prompts[1];

    cr_assert_eq(d->n, 2);
    cr_assert_str_eq(p->data_source, "last_number");
    cr_assert_str_eq(p->ground_truth, "56");
    cr_assert_str_eq(p->extra_info, "{\"split\":\"train\",\"index\":3}");
    cr_assert_str_eq(p->messages_json, "[{\"role\":\"user\",\"content\":\"7 x 8?\"}]");
    cr_assert_eq(p->n_messages, 1);
    cr_assert_str_eq(p->messages[0].role, "user");
    cr_assert_str_eq(p->messages[0].content, "7 x 8?");
    cr_assert_eq(p->line, 2);
    pl_dataset_free(d);
}

Test(dataset, a_plain_string_is_a_user_message_and_more_fields_are_ignored)
{
    pl_dataset *d = parse("{\"data_source\":\"exact\",\"prompt\":\"Say \\u00e9\\n\"," REWARD
                          ",\"agent_name\":[1,2]}\r\n");

    cr_assert_eq(d->n, 1);
    cr_assert_str_eq(
        d->prompts[0].messages_json, "[{\"role\":\"user\",\"content\":\"Say \xc3\xa9\\n\"}]");
    cr_assert_null(d->prompts[0].extra_info);
    pl_dataset_free(d);
}

typedef struct fault {
    const char *text;
    pl_status status;
    const char *words;
} fault;

Test(dataset, every_fault_is_named_with_its_line)
{
    static const fault faults[] = {
        {"", PL_E_FORMAT, "holds no prompt"},
        {"\n", PL_E_FORMAT, "p.jsonl:1: is empty"},
        {GOOD "\n \t\r\n" GOOD, PL_E_FORMAT, "p.jsonl:2: is empty"},
        {GOOD "\n{\"data_source\":", PL_E_FORMAT, "p.jsonl:2: is not valid JSON"},
        {GOOD GOOD, PL_E_FORMAT, "p.jsonl:1: is not valid JSON"},
        {"[1]", PL_E_FORMAT, "not a JSON object"},
        {"{}", PL_E_FORMAT, "'data_source' is missing"},
        {"{\"data_source\":1}", PL_E_FORMAT, "'data_source' must be a string"},
        {"{\"data_source\":\"a\",\"data_source\":\"a\"}", PL_E_FORMAT, "duplicate"},
        {"{\"data_source\":\"exact\"}", PL_E_FORMAT, "'prompt' is missing"},
        {"{\"data_source\":\"exact\",\"prompt\":1}", PL_E_FORMAT, "'prompt' must be"},
        {"{\"data_source\":\"exact\",\"prompt\":[]}", PL_E_FORMAT, "empty"},
        {"{\"data_source\":\"exact\",\"prompt\":\"\"}", PL_E_FORMAT, "empty"},
        {"{\"data_source\":\"exact\",\"prompt\":[1]}", PL_E_FORMAT, "message 1"},
        {"{\"data_source\":\"exact\",\"prompt\":[{\"role\":\"user\"}]}", PL_E_FORMAT, "'content'"},
        {"{\"data_source\":\"exact\",\"prompt\":[{\"role\":\"tool\",\"content\":\"a\"}]}",
            PL_E_FORMAT, "'tool' is not known"},
        {"{\"data_source\":\"exact\",\"prompt\":\"a\"}", PL_E_FORMAT, "'reward_model' is missing"},
        {"{\"data_source\":\"exact\",\"prompt\":\"a\",\"reward_model\":\"5\"}", PL_E_FORMAT,
            "'reward_model' must be"},
        {"{\"data_source\":\"exact\",\"prompt\":\"a\",\"reward_model\":{}}", PL_E_FORMAT,
            "'ground_truth' is missing"},
        {"{\"data_source\":\"exact\",\"prompt\":\"a\",\"reward_model\":{\"ground_truth\":5}}",
            PL_E_FORMAT, "'ground_truth' must be a string"},
        {"{\"data_source\":\"exact\",\"prompt\":\"a\",\"reward_model\":{\"ground_truth\":\" \"}}",
            PL_E_FORMAT, "ground_truth is empty"},
        {"{\"data_source\":\"gsm8k\",\"prompt\":\"a\",\"reward_model\":{\"ground_truth\":\"x\"}}",
            PL_E_FORMAT, "'x' is not a number"},
        {"{\"data_source\":\"exact\",\"prompt\":\"a\",\"reward_model\":{\"style\":\"model\"}}",
            PL_E_FORMAT, "style must be 'rule'"},
        {"{\"data_source\":\"magic\",\"prompt\":\"a\"," REWARD "}", PL_E_CONFIG, "'magic'"},
        {"{\"data_source\":\"exact\",\"prompt\":\"a\"," REWARD ",\"ability\":1}", PL_E_FORMAT,
            "'ability'"},
        {"{\"data_source\":\"exact\",\"prompt\":\"a\"," REWARD ",\"extra_info\":1}", PL_E_FORMAT,
            "'extra_info'"},
        {"{\"data_source\":\"exact\",\"prompt\":\"a\\u0000b\"," REWARD "}", PL_E_FORMAT,
            "p.jsonl:1"},
        {"{\"data_source\":\"exact\",\"prompt\":\"\xff\"," REWARD "}", PL_E_FORMAT, "p.jsonl:1"},
        {"\xef\xbb\xbf" GOOD, PL_E_FORMAT, "byte order mark"},
    };

    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        expect_error(faults[i].text, strlen(faults[i].text), faults[i].status, faults[i].words);
    expect_error("{}\0{}", 5, PL_E_FORMAT, "NUL");
}

Test(dataset, long_lines_and_deep_json_are_refused)
{
    const size_t n = (1 << 20) + 2;
    char *text = malloc(n);

    cr_assert_not_null(text);
    memset(text, 'a', n);
    expect_error(text, n, PL_E_FORMAT, "p.jsonl:1: longer than 1048576 bytes");
    memset(text, '[', n - 2);
    expect_error(text, n - 2, PL_E_FORMAT, "p.jsonl:1: is not valid JSON");
    free(text);
}

Test(dataset, a_file_that_is_not_there_is_named)
{
    pl_dataset *d = NULL;
    cr_assert_eq(pl_dataset_open(&d, "no/such.jsonl", NULL, 0, &err), PL_E_NOENT);
    cr_assert_not_null(strstr(err.msg, "no/such.jsonl"));
}

Test(dataset, prompts_are_rendered_and_a_long_one_is_named)
{
    char dir[] = "/tmp/pl_dataset_XXXXXX";
    pl_tiny_options tiny;
    pl_source *src = NULL;
    pl_tokenizer *tok = NULL;
    pl_dataset *d = NULL;
    char words[80];

    cr_assert_not_null(mkdtemp(dir));
    pl_tiny_defaults(&tiny);
    cr_assert_eq(pl_tiny_write(dir, &tiny, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_source_open(&src, dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_tokenizer_open(&tok, src, &err), PL_OK, "%s", err.msg);

    static const char text[] =
        GOOD "\n{\"data_source\":\"exact\",\"prompt\":\"abc\"," REWARD "}\n" GOOD;
    cr_assert_eq(
        pl_dataset_parse(&d, text, sizeof text - 1, "p.jsonl", tok, 0, &err), PL_OK, "%s", err.msg);
    const pl_prompt *p = d->prompts;
    int32_t *ids = NULL;
    int n = 0;
    cr_assert_eq(pl_chat_encode(tok, p[0].messages, 1, &ids, &n, &err), PL_OK);
    cr_assert_eq(p[0].n_ids, n);
    cr_assert_eq(memcmp(p[0].ids, ids, (size_t)n * sizeof *ids), 0);
    cr_assert_eq(p[0].key, p[2].key, "the same prompt");
    cr_assert_neq(p[0].key, p[1].key);
    pl_dataset_free(d);
    free(ids);

    d = NULL;
    cr_assert_eq(
        pl_dataset_parse(&d, text, sizeof text - 1, "p.jsonl", tok, n - 1, &err), PL_E_SHAPE);
    cr_assert(
        snprintf(words, sizeof words, "p.jsonl:1: the prompt has %d tokens, %d are", n, n - 1) > 0);
    cr_assert_not_null(strstr(err.msg, words), "%s", err.msg);
    cr_assert_not_null(strstr(err.msg, "data.max_prompt_length"));
    pl_tokenizer_free(tok);
    pl_source_close(src);
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK);
}

Test(dataset, each_epoch_is_a_permutation_of_its_own)
{
    enum { N = 97 };
    const pl_dataset d = {.n = N};
    int first[N], n_moved = 0, n_other_seed = 0;

    for (int epoch = 0; epoch < 3; epoch++) {
        int seen[N] = {0};
        for (int i = 0; i < N; i++) {
            const int at = pl_dataset_order(&d, epoch * (int64_t)N + i, 1, 5);
            cr_assert(at >= 0 && at < N);
            seen[at]++;
            if (epoch == 0)
                first[i] = at;
            n_moved += epoch == 1 && first[i] != at;
            n_other_seed += epoch == 0 && pl_dataset_order(&d, i, 1, 6) != at;
            cr_assert_eq(pl_dataset_order(&d, epoch * (int64_t)N + i, 0, 5), i);
        }
        for (int i = 0; i < N; i++)
            cr_assert_eq(seen[i], 1, "epoch %d, prompt %d", epoch, i);
    }
    cr_assert_gt(n_moved, N / 2);
    cr_assert_gt(n_other_seed, N / 2);
}

/* All 24 orders of 4, over 24,000 epochs: chi-square with 23 degrees of freedom, p = 0.001. */
Test(dataset, all_orders_are_equally_likely)
{
    enum { EPOCHS = 24000 };
    const pl_dataset d = {.n = 4};
    int seen[256] = {0};
    double chi2 = 0;
    int n_orders = 0;

    for (int64_t epoch = 0; epoch < EPOCHS; epoch++) {
        int code = 0;
        for (int i = 0; i < 4; i++)
            code = code << 2 | pl_dataset_order(&d, epoch * 4 + i, 1, 1);
        seen[code]++;
    }
    for (int code = 0; code < 256; code++) {
        n_orders += seen[code] > 0;
        chi2 += seen[code] > 0 ? (seen[code] - 1000.0) * (seen[code] - 1000.0) / 1000.0 : 0;
    }
    cr_assert_eq(n_orders, 24);
    cr_assert_lt(chi2, 49.73);
}

/* ---- the committed prompts ---- */

/* Task and unordered pair of a prompt, as a number; checks the answer. */
static int pair_of(const pl_prompt *p)
{
    int a, b;
    char tail[8];
    const char *text = p->messages[0].content;
    const int is_times = sscanf(text, "What is %d times %d%7s", &a, &b, tail) == 3;

    if (!is_times)
        cr_assert_eq(sscanf(text, "What is %d + %d%7s", &a, &b, tail), 3, "%s", text);
    cr_assert_str_eq(tail, "?");
    cr_assert_eq(atoi(p->ground_truth), is_times ? a * b : a + b, "%s", text);
    cr_assert_str_eq(p->data_source, "last_number");
    return is_times * 100 + (a < b ? a * 10 + b : b * 10 + a);
}

Test(dataset, with_a_command_for_rewards_any_source_and_truth_will_do)
{
    static const char text[] =
        "{\"data_source\":\"mine\",\"prompt\":\"7 x 8?\",\"reward_model\":{\"ground_truth\":\"\"}}";
    char path[] = "/tmp/pl-test-dataset-XXXXXX";
    pl_dataset *d = NULL;

    const int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, sizeof text - 1), (ssize_t)(sizeof text - 1));
    (void)close(fd);
    cr_expect_eq(pl_dataset_open(&d, path, NULL, 0, &err), PL_E_CONFIG);
    cr_expect_null(d);
    cr_assert_eq(pl_dataset_open_any(&d, path, NULL, 0, &err), PL_OK, "%s", err.msg);
    cr_expect_str_eq(d->prompts[0].data_source, "mine");
    cr_expect_str_eq(d->prompts[0].ground_truth, "");
    pl_dataset_free(d);
    (void)unlink(path);
}

Test(dataset, the_quickstart_holds_out_a_quarter_of_the_pairs)
{
    static const char *const files[] = {
        "configs/data/arithmetic_train.jsonl", "configs/data/arithmetic_val.jsonl"};
    int where[200] = {0}, n_prompts = 0, n_pairs[2] = {0};

    for (int f = 0; f < 2; f++) {
        pl_dataset *d = NULL;
        cr_assert_eq(pl_dataset_open(&d, files[f], NULL, 0, &err), PL_OK, "%s", err.msg);
        for (int i = 0; i < d->n; i++)
            where[pair_of(&d->prompts[i])] |= 1 << f;
        n_prompts += d->n;
        pl_dataset_free(d);
    }
    for (int i = 0; i < 200; i++) {
        cr_assert_neq(where[i], 3, "pair %d is in both files", i);
        n_pairs[0] += where[i] == 1;
        n_pairs[1] += where[i] == 2;
    }
    cr_assert_eq(n_prompts, 64 + 81);
    cr_assert_eq(n_pairs[0], 36 - 9 + 45 - 11);
    cr_assert_eq(n_pairs[1], 9 + 11);
}
