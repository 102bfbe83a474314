/* trainer/rewards.c - built-in verifiers: pure functions of (response, ground truth), one or two
 * passes over the text by hand-written scanners, so that no response can make them slow.
 *
 * Numbers are compared digit by digit as decimals of any length: 0.10 equals .1 in value, and two
 * integers of 400 digits that differ in the last one are different. */
#include "trainer/trainer.h"

#include "trainer/internal.h"

#include <string.h>

/* ---- text ---- */

typedef struct text {
    const char *p;
    size_t n;
} text;

static int is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static text trim(text t)
{
    while (t.n > 0 && is_space(t.p[0])) {
        t.p++;
        t.n--;
    }
    while (t.n > 0 && is_space(t.p[t.n - 1]))
        t.n--;
    return t;
}

/* Offset of the last place where word stands, before end; t.n when there is none. */
static size_t find_last(text t, size_t end, const char *word)
{
    const size_t len = strlen(word);

    if (end > t.n)
        end = t.n;
    for (size_t i = end >= len ? end - len + 1 : 0; i-- > 0;)
        if (t.p[i] == word[0] && memcmp(t.p + i, word, len) == 0)
            return i;
    return t.n;
}

/* ---- numbers: -?\d+(\.\d+)? where a comma between two digits does not count ---- */

typedef struct number {
    int is_negative;
    text whole, fraction; /* digits, perhaps with commas between them */
} number;

/* Length of the run of digits at i. */
static size_t digit_run(text t, size_t i)
{
    const size_t begin = i;

    while (i < t.n) {
        const int is_comma = t.p[i] == ',' && i > begin && i + 1 < t.n && is_digit(t.p[i + 1]);
        if (!is_digit(t.p[i]) && !is_comma)
            break;
        i++;
    }
    return i - begin;
}

/* Read the number at i.  Returns the bytes it takes, 0 when none begins there. */
static size_t read_number(text t, size_t i, number *out)
{
    const size_t sign = i < t.n && t.p[i] == '-';
    const size_t whole = digit_run(t, i + sign);

    if (whole == 0)
        return 0;
    *out = (number){.is_negative = (int)sign, .whole = {t.p + i + sign, whole}};
    const size_t end = i + sign + whole;
    const size_t fraction = end < t.n && t.p[end] == '.' ? digit_run(t, end + 1) : 0;
    out->fraction = (text){t.p + end + (fraction > 0), fraction};
    return sign + whole + (fraction > 0) + fraction;
}

static int last_number(text t, number *out)
{
    int is_found = 0;

    for (size_t i = 0; i < t.n;) {
        const size_t len = read_number(t, i, out);
        if (len > 0)
            is_found = 1;
        i += len > 0 ? len : 1;
    }
    return is_found;
}

/* The text is a number and nothing else. */
static int whole_number(text t, number *out)
{
    return t.n > 0 && read_number(t, 0, out) == t.n;
}

static char next_digit(text *t)
{
    while (t->n > 0) {
        const char c = *t->p++;
        t->n--;
        if (c != ',')
            return c;
    }
    return 0;
}

static text skip_zeros(text t)
{
    while (t.n > 0 && (*t.p == '0' || *t.p == ',')) {
        t.p++;
        t.n--;
    }
    return t;
}

/* The same digits; where one ends, the other has nothing but what end counts as (0 or '0'). */
static int same_digits(text a, text b, char end)
{
    while (a.n > 0 || b.n > 0) {
        const char x = next_digit(&a);
        const char y = next_digit(&b);
        if ((x ? x : end) != (y ? y : end))
            return 0;
    }
    return 1;
}

static int is_zero(const number *a)
{
    return skip_zeros(a->whole).n == 0 && skip_zeros(a->fraction).n == 0;
}

static int same_number(const number *a, const number *b)
{
    if (is_zero(a) || is_zero(b))
        return is_zero(a) && is_zero(b);
    return a->is_negative == b->is_negative &&
           same_digits(skip_zeros(a->whole), skip_zeros(b->whole), 0) &&
           same_digits(a->fraction, b->fraction, '0');
}

/* Two short answers: the same number, or the same bytes. */
static int same_answer(text a, text b)
{
    number x, y;

    a = trim(a);
    b = trim(b);
    if (whole_number(a, &x) && whole_number(b, &y))
        return same_number(&x, &y);
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

/* ---- the verifiers: 1 when solution holds truth ---- */

static float score_exact(text solution, text truth)
{
    const text a = trim(solution), b = trim(truth);
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static float score_last_number(text solution, text truth)
{
    number a, b;
    return last_number(solution, &a) && last_number(truth, &b) && same_number(&a, &b);
}

/* What the last \boxed{ holds, up to its own brace; "\{" is a character, not a brace.  A box that
 * does not end (a response cut off) holds no answer. */
static float score_boxed(text solution, text truth)
{
    static const char word[] = "\\boxed{";
    const size_t at = find_last(solution, solution.n, word);
    int depth = 1;

    if (at == solution.n)
        return 0;
    const size_t begin = at + strlen(word);
    for (size_t i = begin; i < solution.n; i++) {
        const char c = solution.p[i];
        if (c == '\\')
            i++;
        else if (c == '{')
            depth++;
        else if (c == '}' && --depth == 0)
            return same_answer((text){solution.p + begin, i - begin}, truth);
    }
    return 0;
}

/* The number behind the last "####" that has one, after blanks and a dollar sign. */
static float score_gsm8k(text solution, text truth)
{
    number a, b;

    if (!last_number(truth, &b))
        return 0;
    for (size_t end = solution.n;;) {
        const size_t at = find_last(solution, end, "####");
        if (at == solution.n)
            return 0;
        size_t i = at + 4;
        while (i < solution.n && (solution.p[i] == ' ' || solution.p[i] == '\t'))
            i++;
        if (i < solution.n && solution.p[i] == '$')
            i++;
        if (read_number(solution, i, &a) > 0)
            return same_number(&a, &b);
        end = at + 3; /* the next one may begin a byte earlier */
    }
}

/* What stands between the last </answer> and the last <answer> before it. */
static float score_answer_tag(text solution, text truth)
{
    static const char open[] = "<answer>";
    const size_t close_at = find_last(solution, solution.n, "</answer>");

    if (close_at == solution.n)
        return 0;
    const size_t at = find_last(solution, close_at, open);
    if (at == solution.n)
        return 0;
    const size_t begin = at + strlen(open);
    return same_answer((text){solution.p + begin, close_at - begin}, truth);
}

/* ---- words ---- */

static int is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (unsigned char)c >= 0x80;
}

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static int same_word(text a, text b)
{
    if (a.n != b.n)
        return 0;
    for (size_t i = 0; i < a.n; i++)
        if (lower(a.p[i]) != lower(b.p[i]))
            return 0;
    return 1;
}

/* Cut the next run of letters off t; n 0 when there is none. */
static text next_word(text *t)
{
    while (t->n > 0 && !is_letter(t->p[0])) {
        t->p++;
        t->n--;
    }
    text word = {t->p, 0};
    while (word.n < t->n && is_letter(t->p[word.n]))
        word.n++;
    t->p += word.n;
    t->n -= word.n;
    return word;
}

/* The share of the words of the truth that stand in the solution exactly once; whole words, ASCII
 * case aside.  At most WORDS_MAX words are looked at. */
static float score_words_once(text solution, text truth)
{
    enum { WORDS_MAX = 32 };
    text wanted[WORDS_MAX];
    int seen[WORDS_MAX] = {0}, n = 0, n_once = 0;

    for (text w; n < WORDS_MAX && (w = next_word(&truth)).n > 0;)
        wanted[n++] = w;
    for (text w; n > 0 && (w = next_word(&solution)).n > 0;)
        for (int i = 0; i < n; i++)
            seen[i] += same_word(w, wanted[i]);
    for (int i = 0; i < n; i++)
        n_once += seen[i] == 1;
    return n > 0 ? (float)n_once / (float)n : 0;
}

/* ---- the table ---- */

typedef struct verifier {
    const char *data_source;
    float (*score)(text solution, text truth);
    int needs_number; /* of the ground truth */
} verifier;

static const verifier verifiers[] = {
    {"exact", score_exact, 0},
    {"last_number", score_last_number, 1},
    {"boxed", score_boxed, 0},
    {"gsm8k", score_gsm8k, 1},
    {"openai/gsm8k", score_gsm8k, 1}, /* as verl's data sets call it */
    {"answer_tag", score_answer_tag, 0},
    {"words_once", score_words_once, 0},
};

static const verifier *find(const char *data_source, pl_error *err)
{
    for (size_t i = 0; i < sizeof verifiers / sizeof verifiers[0]; i++)
        if (strcmp(verifiers[i].data_source, data_source) == 0)
            return &verifiers[i];
    pl_error_set(err, PL_E_CONFIG,
        "data_source '%.64s' has no verifier; known: exact, last_number, boxed, gsm8k, answer_tag, "
        "words_once",
        data_source);
    return NULL;
}

pl_status pl_reward_check(const char *data_source, pl_error *err)
{
    return find(data_source, err) ? PL_OK : PL_E_CONFIG;
}

pl_status rewards_check_truth(const char *data_source, const char *ground_truth, pl_error *err)
{
    const text truth = {ground_truth, strlen(ground_truth)};
    const verifier *v = find(data_source, err);
    number unused;

    if (!v)
        return PL_E_CONFIG;
    if (trim(truth).n == 0)
        return pl_fail(err, PL_E_FORMAT, "ground_truth is empty: no response could be right");
    if (v->needs_number && !last_number(truth, &unused))
        return pl_fail(err, PL_E_FORMAT, "ground_truth '%.64s' is not a number, as '%s' needs",
            ground_truth, data_source);
    return PL_OK;
}

pl_status pl_reward_score(const char *data_source, const char *solution, size_t n_solution,
    const char *ground_truth, float *score, pl_error *err)
{
    const verifier *v = find(data_source, err);

    if (!v)
        return PL_E_CONFIG;
    const text s = {solution, n_solution};
    const text truth = {ground_truth, strlen(ground_truth)};
    *score = v->score(s, truth);
    return PL_OK;
}
