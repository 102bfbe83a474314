/* Claims: a line of a reward command is one object with a whole "id" and a score, or an error, or
 * it is refused; what Python writes for NaN and infinity is no score, but still has its id. */
#include "trainer/reward_internal.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static pl_error err;
static reward_reply reply;

static pl_status parse(const char *line)
{
    return reward_reply_parse(&reply, line, strlen(line), &err);
}

Test(reward_reply, scores_are_read_to_the_nearest_float)
{
    static const struct {
        const char *line;
        int64_t id;
        float score;
    } cases[] = {
        {"{\"id\":0,\"score\":1}", 0, 1},
        {" { \"score\" : -0.1 , \"id\" : 9223372036854775799 } \r", 9223372036854775799, -0.1f},
        {"{\"id\":-3,\"score\":1E-2}", -3, 0.01f},
        {"{\"id\":1,\"score\":2.5e+3,\"error\":null}", 1, 2500},
        {"{\"id\":1,\"reward\":3}", 1, 3},
        {"{\"id\":1,\"reward\":3,\"score\":4}", 1, 4},
        {"{\"id\":1,\"score\":true}", 1, 1},
        {"{\"id\":1,\"score\":false}", 1, 0},
        {"{\"id\":1,\"score\":123456789012345678901234567890}", 1,
            123456789012345678901234567890.f},
        {"{\"x\":[{\"id\":5},[],{},\"\\\"}\\u00e9\"],\"id\":1,\"score\":0}", 1, 0},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        cr_assert_eq(parse(cases[i].line), PL_OK, "%s: %s", cases[i].line, err.msg);
        cr_expect_eq(reply.answer, REWARD_SCORE, "%s", cases[i].line);
        cr_expect_eq(reply.id, cases[i].id, "%s", cases[i].line);
        cr_expect_float_eq(reply.score, cases[i].score, 0, "%s", cases[i].line);
    }
}

Test(reward_reply, what_is_no_finite_number_is_no_score)
{
    static const char *const values[] = {"NaN", "-NaN", "Infinity", "-Infinity", "1e39", "-1e400",
        "null", "\"1\"", "[1]", "{\"score\":1}"};
    char line[128];

    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        (void)snprintf(line, sizeof line, "{\"id\":8,\"score\":%s}", values[i]);
        cr_assert_eq(parse(line), PL_OK, "%s: %s", line, err.msg);
        cr_expect_eq(reply.answer, REWARD_NO_SCORE, "%s", line);
        cr_expect_eq(reply.id, 8, "%s", line);
    }
    cr_assert_eq(parse("{\"id\":8}"), PL_OK);
    cr_assert_eq(reply.answer, REWARD_NO_SCORE);
}

Test(reward_reply, an_error_wins_over_a_score_and_keeps_its_words)
{
    cr_assert_eq(parse("{\"id\":2,\"score\":1,\"error\":\"caf\xc3\xa9\"}"), PL_OK);
    cr_assert_eq(reply.answer, REWARD_ERROR);
    cr_assert_str_eq(reply.text, "caf\\xc3\\xa9");
    cr_assert_eq(parse("{\"id\":2,\"error\":{\"a\":1}}"), PL_OK);
    cr_assert_eq(reply.answer, REWARD_ERROR);
}

Test(reward_reply, what_is_not_one_object_with_an_id_is_refused)
{
    static const char *const lines[] = {"", "x", "1", "[]", "{", "{}", "{\"id\":1", "{\"id\":1,}",
        "{\"id\" 1}", "{id:1}", "{\"id\":1}x", "{\"id\":1}{\"id\":2}", "{\"id\":1.0,\"score\":1}",
        "{\"id\":1e3}", "{\"id\":\"1\"}", "{\"id\":null}", "{\"id\":99999999999999999999}",
        "{\"id\":NaN}", "{\"id\":-}", "{\"id\":01}", "{\"id\":1,\"id\":1}",
        "{\"id\":1,\"score\":1,\"score\":1}", "{\"id\":1,\"score\":.5}", "{\"id\":1,\"score\":1.}",
        "{\"id\":1,\"score\":1e}", "{\"id\":1,\"score\":+1}", "{\"id\":1,\"score\":tru}",
        "{\"id\":1,\"a\":\"\\x\"}", "{\"id\":1,\"a\":\"\\u12g4\"}", "{\"id\":1,\"a\":\"\t\"}",
        "{\"id\":1,\"a\":\"", "{\"id\":1,\"a\":\"\\", "{\"id\":1,\"a\":\"\\u1",
        "{\"id\":1,\"a\":[1,]}", "{\"id\":1,\"a\":[}}", "{\"score\":1}"};

    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        cr_expect_eq(parse(lines[i]), PL_E_FORMAT, "%s", lines[i]);
        cr_expect_gt(strlen(err.msg), 5);
    }
    cr_assert_eq(reward_reply_parse(&reply, "{\"id\":1}\0", 9, &err), PL_E_FORMAT);
}

/* n brackets, one inside the other. */
static pl_status parse_nested(int n)
{
    char line[8192];
    size_t at = (size_t)snprintf(line, sizeof line, "{\"id\":1,\"score\":1,\"a\":");

    memset(line + at, '[', (size_t)n);
    at += (size_t)n;
    memset(line + at, ']', (size_t)n);
    at += (size_t)n;
    line[at++] = '}';
    return reward_reply_parse(&reply, line, at, &err);
}

Test(reward_reply, nesting_is_bounded)
{
    cr_assert_eq(parse_nested(31), PL_OK);
    cr_assert_eq(parse_nested(32), PL_E_FORMAT);
    cr_assert_eq(parse_nested(4000), PL_E_FORMAT);
}

Test(reward_reply, escaped_text_fits_and_is_cut_with_dots)
{
    char out[12];

    reward_escape(out, sizeof out, "a\x1b", 2);
    cr_assert_str_eq(out, "a\\x1b");
    reward_escape(out, sizeof out, "abcdefghijkl", 12);
    cr_assert_str_eq(out, "abcdefgh...");
    reward_escape(out, sizeof out, "abcdef\x1bg", 8);
    cr_assert_str_eq(out, "abcdef...");
    reward_escape(out, sizeof out, "", 0);
    cr_assert_str_eq(out, "");
}
