/* Claims: each verifier finds the answer that its name says, compares numbers as decimals of any
 * length, and is fast on texts that were made to be slow. */
#include "core/file.h"
#include "trainer/trainer.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

typedef struct reward_case {
    const char *solution, *truth;
    int is_right;
} reward_case;

static float score(const char *source, const char *solution, size_t n, const char *truth)
{
    float s = -1;
    pl_error err;
    cr_assert_eq(pl_reward_score(source, solution, n, truth, &s, &err), PL_OK);
    return s;
}

static void expect(const char *source, const reward_case *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const reward_case *c = &cases[i];
        const float s = score(source, c->solution, strlen(c->solution), c->truth);
        cr_expect_eq(s, (float)c->is_right, "%s: '%s' against '%s' gave %g", source, c->solution,
            c->truth, (double)s);
    }
}

#define EXPECT(source, cases) expect(source, cases, sizeof cases / sizeof cases[0])

Test(rewards, words_once_is_the_share_of_words_that_stand_exactly_once)
{
    static const struct {
        const char *solution;
        float share;
    } cases[] = {
        {"An owl saw a Candle and a whale.", 1},
        {"An owl saw an owl, a candle, a whale.", 2.0f / 3},
        {"owls, candlestick, WHALE!", 1.0f / 3},
        {"", 0},
        {"whale\xc3\xa9 owl-candle", 2.0f / 3},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        cr_expect_float_eq(score("words_once", cases[i].solution, strlen(cases[i].solution),
                               "owl, candle,whale"),
            cases[i].share, 1e-6f, "'%s'", cases[i].solution);
}

Test(rewards, last_number_is_the_last_match_of_its_pattern)
{
    static const reward_case cases[] = {
        {"7 times 8 is 56.", "56", 1},
        {"56", "56", 1},
        {"56 or 57", "56", 0},
        {"", "56", 0},
        {"none", "56", 0},
        {"it is -5", "-5", 1},
        {"3-5", "-5", 1},
        {"3 - 5", "5", 1},
        {"1,234,567", "1234567", 1},
        {"1, 2", "2", 1},
        {"1,2", "12", 1},
        {"1,,2", "2", 1},
        {"1.5.25", "25", 1},
        {"1.5.25", "5.25", 0},
        {".5", "5", 1},
        {"5.", "5", 1},
        {"1.2,5", "1.25", 1},
        {"--7", "-7", 1},
        {"-", "0", 0},
        {"x1y", "1", 1},
        {"\\boxed{63}", "63", 1},
        {"63%", "63", 1},
        {"**63**", "63", 1},
        {"63,", "63", 1},
    };
    EXPECT("last_number", cases);
}

Test(rewards, numbers_are_decimals_and_not_doubles)
{
    static const reward_case cases[] = {
        {"0.10", "0.1", 1},
        {"007", "7", 1},
        {"-0", "0", 1},
        {"-0.0", "0", 1},
        {"0", "0.000", 1},
        {"5.0", "5", 1},
        {"5.01", "5", 0},
        {"-5", "5", 0},
        {"50", "5", 0},
        {"5", "50", 0},
        {"0.5", "5", 0},
        {"9007199254740993", "9007199254740992", 0},
        {"0.1000000000000000055511151231257827", "0.1", 0},
        {"100000000000000000000000000000", "1,000,000,000,00,0,000000000,00000000.0", 1},
        {"0,001.50", "1.5", 1},
        {"1e3", "3", 1},
    };
    EXPECT("last_number", cases);
}

Test(rewards, boxed_takes_the_last_box_with_its_own_braces)
{
    static const reward_case cases[] = {
        {"\\boxed{5}", "5", 1},
        {"\\boxed{5.0}", "5", 1},
        {"\\boxed{4} and \\boxed{5}", "5", 1},
        {"\\boxed{4} and \\boxed{5}", "4", 0},
        {"\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", 1},
        {"\\boxed{ x }", "x", 1},
        {"\\boxed{5", "5", 0},
        {"\\boxed{4} \\boxed{5", "4", 0},
        {"\\boxed{\\{1\\}}", "\\{1\\}", 1},
        {"\\boxed{\\}", "\\", 0},
        {"5", "5", 0},
        {"\\boxed{\\boxed{5}}", "5", 1},
        {"\\boxed{}", "5", 0},
        {"\\boxed{5}}}", "5", 1},
        {"\\boxed", "5", 0},
        {"\\boxed{5\\", "5", 0},
    };
    EXPECT("boxed", cases);
}

Test(rewards, gsm8k_takes_the_number_behind_the_last_hashes)
{
    static const reward_case cases[] = {
        {"so\n#### 72", "72", 1},
        {"#### 72\n#### 73", "72", 0},
        {"#### 72\n####", "72", 1},
        {"#### $1,234.00", "1234", 1},
        {"72", "72", 0},
        {"####72", "72", 1},
        {"##### 72", "72", 1},
        {"### 72", "72", 0},
        {"#### the 72", "72", 0},
        {"#### 72", "reasoning 1 + 1\n#### 72", 1},
    };
    EXPECT("gsm8k", cases);
    EXPECT("openai/gsm8k", cases);
}

Test(rewards, answer_tag_takes_the_last_pair)
{
    static const reward_case cases[] = {
        {"<answer>5</answer>", "5", 1},
        {"<answer> 5.0\n</answer>", "5", 1},
        {"<answer>4</answer><answer>5</answer>", "5", 1},
        {"<answer>5", "5", 0},
        {"5</answer>", "5", 0},
        {"<answer>4<answer>5</answer>", "5", 1},
        {"<answer>5</answer></answer>", "5", 0},
        {"<answer></answer>", "5", 0},
        {"<answer>Paris</answer>", "Paris", 1},
        {"<answer>paris</answer>", "Paris", 0},
    };
    EXPECT("answer_tag", cases);
}

Test(rewards, exact_is_exact_but_for_the_space_around)
{
    static const reward_case cases[] = {
        {" yes\n", "yes", 1}, {"Yes", "yes", 0}, {"", " ", 1}, {"5.0", "5", 0}, {"y es", "yes", 0}};
    EXPECT("exact", cases);
    cr_expect_eq(score("exact", "a\0b", 3, "a"), 0, "a NUL does not end a response");
}

/* A megabyte each: anything worse than linear would take minutes and run into the timeout. */
Test(rewards, hostile_texts_are_read_in_linear_time, .timeout = 20)
{
    static const char *const parts[] = {"9", "1,", "-", "1.", "\\boxed{", "{", "}", "\\", "####",
        "#### ", "#", "<answer>", "</answer>", "< ", " ", "\xff", "#### -"};
    static const char *const sources[] = {"last_number", "boxed", "gsm8k", "answer_tag", "exact"};
    const size_t n = 1 << 20;
    char *text = malloc(n);

    cr_assert_not_null(text);
    for (size_t p = 0; p < sizeof parts / sizeof parts[0]; p++) {
        const size_t len = strlen(parts[p]);
        for (size_t i = 0; i < n; i++)
            text[i] = parts[p][i % len];
        for (size_t s = 0; s < sizeof sources / sizeof sources[0]; s++)
            cr_expect_eq(score(sources[s], text, n, "7"), 0);
    }
    memset(text, '9', n);
    text[n - 1] = '8';
    char *truth = malloc(n + 1);
    cr_assert_not_null(truth);
    memcpy(truth, text, n);
    truth[n] = '\0';
    cr_expect_eq(score("last_number", text, n, truth), 1);
    truth[n - 1] = '9';
    cr_expect_eq(score("last_number", text, n, truth), 0, "a million digits, the last one differs");
    free(truth);
    free(text);
}

Test(rewards, an_unknown_data_source_is_named_with_the_known_ones)
{
    pl_error err;
    float s;

    cr_assert_eq(pl_reward_check("last_numbr", &err), PL_E_CONFIG);
    cr_assert_not_null(strstr(err.msg, "'last_numbr'"));
    cr_assert_not_null(strstr(err.msg, "last_number, boxed, gsm8k"));
    cr_assert_eq(pl_reward_score("x", "1", 1, "1", &s, &err), PL_E_CONFIG);
    cr_assert_eq(pl_reward_check("boxed", &err), PL_OK);
}
