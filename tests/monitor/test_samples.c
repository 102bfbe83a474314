/* Claims: the samples found are those of rollouts/, by step, reward, length, text and prompt, each
 * with its record in clean JSON; files that are damaged, hostile or replaced cost only themselves.
 */
#include "core/file.h"
#include "ipc/schema.h"
#include "monitor/samples.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

static char dir[] = "/tmp/pl_samples_XXXXXX";
static char path[160];
static pl_error err;
static pl_samples *s;

static void begin(void)
{
    cr_assert_not_null(mkdtemp(dir));
    cr_assert(snprintf(path, sizeof path, "%s/rollouts", dir) > 0);
    cr_assert_eq(pl_dir_make(path, &err), PL_OK);
    cr_assert_eq(pl_samples_open(&s, dir, &err), PL_OK, "%s", err.msg);
}

static void end(void)
{
    pl_samples_close(s);
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK, "%s", err.msg);
}

TestSuite(samples, .init = begin, .fini = end);

/* Write bytes as the file of a step; packed: with zstd. */
static void put_file(int64_t step, const char *text, size_t n, int is_packed)
{
    const size_t room = ZSTD_compressBound(n);
    char *packed = malloc(room);

    cr_assert_not_null(packed);
    cr_assert(
        snprintf(path, sizeof path, "%s/rollouts/step_%06lld.jsonl.zst", dir, (long long)step) > 0);
    const size_t n_packed = ZSTD_compress(packed, room, text, n, 1);
    cr_assert_not(ZSTD_isError(n_packed));
    cr_assert_eq(
        pl_file_write(path, is_packed ? packed : text, is_packed ? n_packed : n, &err), PL_OK);
    free(packed);
}

static void put_text(int64_t step, const char *text)
{
    put_file(step, text, strlen(text), 1);
}

/* Four samples a step of two prompts: reward k % 2, length step + k, text "answer STEP k K". */
static void put_step(int64_t step)
{
    pl_json j = {0};
    char line[512];

    for (int k = 0; k < 4; k++) {
        cr_assert(snprintf(line, sizeof line,
                      "{\"uid\":%d,\"step\":%d,\"prompt\":[{\"role\":\"user\",\"content\":\"Say "
                      "%d\"}],\"prompt_ids\":[1,2,3],\"tokens\":[",
                      (int)(4 * step) + k, (int)step, k / 2) > 0);
        pl_json_text(&j, line);
        for (int i = 0; i < step + k; i++)
            pl_json_text(&j, i ? ",7" : "7");
        cr_assert(snprintf(line, sizeof line,
                      "],\"logprobs\":[],\"text\":\"answer %d k%d \\u00e9\\n\",\"reward\":%d,"
                      "\"advantage\":0.5,\"finish_reason\":\"%s\",\"policy_version\":%d,"
                      "\"spec_num_draft_tokens\":5,\"spec_num_accepted_tokens\":2,"
                      "\"spec_num_verify_steps\":2,\"ground_truth\":\"%d\",\"token_source\":[]}\n",
                      (int)step, k, k % 2, k == 3 ? "length" : "stop", (int)step - 1, k / 2) > 0);
        pl_json_text(&j, line);
    }
    put_file(step, j.data, j.n, 1);
    pl_json_done(&j);
}

static pl_samples_info info(void)
{
    pl_samples_info i;
    pl_samples_info_get(s, &i);
    return i;
}

/* "step/uid " of the rows that match. */
static const char *found(const pl_samples_query *q, int64_t want_match)
{
    static char text[4096];
    pl_samples_row rows[PL_SAMPLES_PAGE];
    int64_t n_match, searched;
    size_t at = 0;

    const int n = pl_samples_rows(s, q, rows, &n_match, &searched, &err);
    cr_assert(n >= 0, "%s", err.msg);
    cr_assert_eq(n_match, want_match, "%lld match", (long long)n_match);
    cr_assert_eq(searched, -1);
    text[0] = '\0';
    for (int i = 0; i < n; i++)
        at += (size_t)snprintf(
            text + at, sizeof text - at, "%lld/%u ", (long long)rows[i].step, rows[i].uid);
    return text;
}

static json_t *parse(pl_json *j)
{
    json_error_t cause;
    json_t *o = json_loadb(j->data, j->n, JSON_REJECT_DUPLICATES, &cause);

    cr_assert_not_null(o, "%s in %s", cause.text, j->data);
    pl_json_done(j);
    return o;
}

static double number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    cr_assert_not_null(v, "%s", key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

Test(samples, rows_are_found_by_step_reward_length_and_prompt)
{
    pl_samples_query q = pl_samples_any();
    pl_samples_row row[1];
    int64_t n_match, searched;

    for (int64_t step = 1; step <= 3; step++)
        put_step(step);
    cr_assert_eq(pl_samples_poll(s, 0), 1);
    cr_assert_str_eq(found(&q, 12), "3/12 3/13 3/14 3/15 2/8 2/9 2/10 2/11 1/4 1/5 1/6 1/7 ");
    q.offset = 3;
    q.limit = 2;
    cr_assert_str_eq(found(&q, 12), "3/15 2/8 ");
    q = pl_samples_any();
    q.step_min = q.step_max = 2;
    q.reward_min = 0.5;
    cr_assert_str_eq(found(&q, 2), "2/9 2/11 ");
    q = pl_samples_any();
    q.length_min = 5;
    cr_assert_str_eq(found(&q, 3), "3/14 3/15 2/11 ");
    q.order = PL_SAMPLES_LONGEST;
    cr_assert_str_eq(found(&q, 3), "3/15 3/14 2/11 ");
    q = pl_samples_any();
    q.order = PL_SAMPLES_BEST;
    q.step_max = 1;
    cr_assert_str_eq(found(&q, 4), "1/5 1/7 1/4 1/6 ");
    q.limit = 1;
    cr_assert_eq(pl_samples_rows(s, &q, row, &n_match, &searched, &err), 1);
    cr_assert(row[0].finish == PL_FINISH_STOP && row[0].n_prompt == 3 && row[0].n_tokens == 2);
    q = pl_samples_any();
    q.prompt = row[0].prompt;
    cr_assert_str_eq(found(&q, 6), "3/12 3/13 2/8 2/9 1/4 1/5 ");
    q.limit = 0;
    cr_assert_eq(pl_samples_rows(s, &q, row, &n_match, &searched, &err), -1);
    cr_assert_eq(err.code, PL_E_INVAL);
}

Test(samples, text_is_found_as_it_is_read_and_shown_where_it_stands)
{
    pl_samples_query q = pl_samples_any();
    pl_json j = {0};

    put_step(1);
    put_step(2);
    (void)pl_samples_poll(s, 0);
    q.text = "k2 \xc3\xa9\n";
    cr_assert_str_eq(found(&q, 2), "2/10 1/6 ");
    q.reward_min = 1;
    cr_assert_str_eq(found(&q, 0), "");
    q = pl_samples_any();
    q.text = "answer 1";
    q.offset = 3;
    cr_assert_str_eq(found(&q, 4), "1/7 ");
    cr_assert_eq(pl_samples_query_json(s, &q, &j, &err), PL_OK, "%s", err.msg);
    json_t *o = parse(&j);
    const json_t *row = json_array_get(json_object_get(o, "samples"), 0);
    cr_assert_str_eq(json_string_value(json_object_get(row, "excerpt")), "answer 1 k3 \xc3\xa9\n");
    cr_assert_eq(number(row, "acceptance_length"), 2);
    cr_assert_str_eq(json_string_value(json_object_get(row, "finish_reason")), "length");
    cr_assert_eq(number(json_object_get(o, "info"), "n_rows"), 8);
    json_decref(o);
    q = pl_samples_any();
    cr_assert_eq(pl_samples_query_json(s, &q, &j, &err), PL_OK, "%s", err.msg);
    o = parse(&j);
    for (size_t i = 0; i < 8; i++) { /* without a text too */
        row = json_array_get(json_object_get(o, "samples"), i);
        cr_assert_not_null(json_string_value(json_object_get(row, "excerpt")), "%zu", i);
    }
    json_decref(o);
}

Test(samples, a_record_comes_whole_with_the_text_of_each_token)
{
    static const char text[] =
        "{\"uid\":7,\"tokens\":[1,2,3,4],\"logprobs\":[-0.1,-3.4028235e+38,null,\"x\"],"
        "\"token_source\":[\"target\",\"suffix\",\"learned\",5],\"token_ends\":[3,5,5,6],"
        "\"text\":\"a\\ud83d\\ude00z\",\"prompt\":\"plain\",\"extra\":{\"a\":[1]},\"reward\":null}"
        "\n";
    pl_json j = {0};

    put_text(5, text);
    (void)pl_samples_poll(s, 0);
    cr_assert_eq(pl_samples_get(s, 5, 8, &j, &err), PL_E_NOENT);
    cr_assert_eq(pl_samples_get(s, 4, 7, &j, &err), PL_E_NOENT);
    cr_assert_eq(pl_samples_get(s, -1, 7, &j, &err), PL_OK, "%s", err.msg);
    const char *tail = strstr(j.data, "\"messages\":");
    cr_assert_str_eq(tail, "\"messages\":\"plain\",\"ground_truth\":null,\"tokens\":[1,2,3,4],"
                           "\"logprobs\":[-0.1,null,null,null],"
                           "\"token_source\":[\"target\",\"suffix\",\"learned\",null],"
                           "\"text\":\"a\xf0\x9f\x98\x80z\","
                           "\"pieces\":[\"a\",\"\xf0\x9f\x98\x80\",\"\",\"z\"]}");
    json_t *o = parse(&j);
    cr_assert(number(o, "step") == 5 && isnan(number(o, "reward")));
    json_decref(o);
}

Test(samples, ends_that_do_not_fit_the_text_are_not_believed)
{
    static const char *const ends[] = {
        "[1]", "[1,3]", "[2,1]", "[-1,2]", "[1.5,2]", "[[1],2]", "{}", "[1,2", "[]"};
    char text[256];

    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        pl_json j = {0};
        cr_assert(
            snprintf(text, sizeof text,
                "{\"uid\":1,\"tokens\":[1,2],\"text\":\"ab\",\"token_ends\":%s}\n", ends[i]) > 0);
        put_text(1, text);
        (void)pl_samples_poll(s, 0);
        if (pl_samples_get(s, 1, 1, &j, &err) != PL_OK)
            continue;
        json_t *o = parse(&j);
        cr_assert(json_is_null(json_object_get(o, "pieces")), "%s", ends[i]);
        json_decref(o);
    }
}

Test(samples, a_prompt_is_followed_across_steps)
{
    pl_json j = {0};
    pl_samples_query q = pl_samples_any();
    pl_samples_row row;
    int64_t n_match, searched;

    for (int64_t step = 1; step <= 3; step++)
        put_step(step);
    (void)pl_samples_poll(s, 0);
    q.limit = 1;
    cr_assert_eq(pl_samples_rows(s, &q, &row, &n_match, &searched, &err), 1);
    cr_assert_eq(pl_samples_prompt_json(s, row.prompt, &j, &err), PL_OK, "%s", err.msg);
    json_t *o = parse(&j);
    cr_assert_eq(
        pl_samples_prompt_key(json_string_value(json_object_get(o, "prompt"))), row.prompt);
    const json_t *message = json_array_get(json_object_get(o, "messages"), 0);
    cr_assert_str_eq(json_string_value(json_object_get(message, "content")), "Say 0");
    const json_t *steps = json_object_get(o, "steps"), *second = json_array_get(steps, 1);
    cr_assert_eq(json_array_size(steps), 3);
    cr_assert(number(second, "step") == 2 && number(second, "n") == 2);
    cr_assert(number(second, "reward_mean") == 0.5 && number(second, "reward_max") == 1);
    cr_assert(number(second, "length_mean") == 2.5 && number(second, "acceptance_length") == 1.25);
    cr_assert_eq(json_array_size(json_object_get(second, "uids")), 2);
    json_decref(o);
    cr_assert_eq(pl_samples_prompt_json(s, 12345, &j, &err), PL_E_NOENT);
    cr_assert_eq(pl_samples_prompt_key("0123"), 0);
    cr_assert_eq(pl_samples_prompt_key("0123456789abcdeg"), 0);
}

Test(samples, files_are_taken_newest_first_a_few_at_a_time_and_anew_when_replaced)
{
    pl_samples_query q = pl_samples_any();
    pl_json j = {0};

    for (int64_t step = 1; step <= 3; step++)
        put_step(step);
    cr_assert_eq(pl_samples_poll(s, 1), 1);
    cr_assert(info().n_files == 3 && info().n_pending == 2 && info().first_step == 3);
    cr_assert_eq(pl_samples_poll(s, 1), 1);
    cr_assert_eq(pl_samples_poll(s, 1), 1);
    cr_assert(info().n_pending == 0 && info().n_rows == 12 && info().first_step == 1);
    cr_assert_eq(pl_samples_poll(s, 1), 0);
    put_text(2, "{\"uid\":99,\"tokens\":[1]}\n");
    cr_assert_eq(pl_samples_get(s, 2, 8, &j, &err), PL_E_NOENT); /* as it was, it is gone */
    pl_json_done(&j);
    cr_assert_eq(pl_samples_poll(s, 0), 1);
    q.step_min = q.step_max = 2;
    cr_assert_str_eq(found(&q, 1), "2/99 ");
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(pl_samples_poll(s, 0), 1);
    cr_assert(info().n_files == 2 && info().n_rows == 8);
}

Test(samples, broken_lines_and_damaged_files_cost_only_themselves)
{
    static const char good[] = "{\"uid\":1,\"tokens\":[1],\"text\":\"good\"}\n";
    const size_t n_long = PL_SAMPLES_LINE + 100;
    char *long_line = malloc(n_long);
    char *packed;
    size_t n;

    put_text(1,
        "{\"uid\":1,\"tokens\":[1]}\nnot json\n{\"tokens\":[]}\n{\"uid\":2,\"tokens\":[1,2]}\n"
        "\n{\"uid\":-3}\n{\"uid\":3,\"tokens\":[3]}");
    put_text(2, good);
    cr_assert_eq(pl_file_read(&packed, &n, path, 1 << 20, &err), PL_OK);
    put_file(2, packed, n - 3, 0); /* cut */
    free(packed);
    put_file(3, good, sizeof good - 1, 0); /* no zstd */
    put_file(4, "", 0, 0);
    cr_assert_not_null(long_line);
    memset(long_line, 'x', n_long);
    long_line[n_long - sizeof good] = '\n';
    memcpy(long_line + n_long - sizeof good + 1, good, sizeof good - 1);
    put_file(5, long_line, n_long, 1);
    free(long_line);
    cr_assert(snprintf(path, sizeof path, "%s/rollouts/step_000006.jsonl.zst", dir) > 0);
    cr_assert_eq(symlink("step_000001.jsonl.zst", path), 0); /* files only */
    cr_assert(snprintf(path, sizeof path, "%s/rollouts/step_7.jsonl.zst", dir) > 0);
    cr_assert_eq(pl_file_write(path, good, 5, &err), PL_OK); /* not the name of a step */
    (void)pl_samples_poll(s, 0);
    const pl_samples_info i = info();
    cr_assert_eq(i.n_files, 5);
    cr_assert_eq(i.n_bad_files, 3);
    cr_assert_eq(i.n_bad_lines, 4);
    cr_assert_eq(i.n_rows, 4, "%lld rows", (long long)i.n_rows);
}

Test(samples, a_bomb_is_defused)
{
    /* 1.5 GiB of spaces in a file of 150 KB: frames of one block that repeats a byte */
    static const unsigned char frame[] = {
        0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0x00, 0x00, 0x02, 0x00, 0x03, 0x00, 0x10, ' '};
    enum { FRAMES = 12000 };
    unsigned char *file = malloc(FRAMES * sizeof frame);

    cr_assert_not_null(file);
    for (int i = 0; i < FRAMES; i++)
        memcpy(file + (size_t)i * sizeof frame, frame, sizeof frame);
    put_file(1, (const char *)file, FRAMES * sizeof frame, 0);
    free(file);
    (void)pl_samples_poll(s, 0);
    cr_assert(info().n_bad_files == 1 && info().n_rows == 0);
}

Test(samples, a_run_without_rollouts_is_empty_and_one_that_is_not_there_is_named)
{
    pl_samples_query q = pl_samples_any();
    pl_samples *none = NULL;

    cr_assert_eq(rmdir(path), 0);
    cr_assert_eq(pl_samples_poll(s, 0), 0);
    cr_assert_str_eq(found(&q, 0), "");
    cr_assert_eq(pl_samples_open(&none, "/nowhere/at/all", &err), PL_E_NOENT);
    cr_assert_not_null(strstr(err.msg, "/nowhere/at/all"));
}
