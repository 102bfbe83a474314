/* core/config_value.c - the text of a value, checked and stored. */
#define _GNU_SOURCE
#include "core/config_internal.h"

#include <ctype.h>
#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *config_type_words(pl_config_type type)
{
    switch (type) {
    case PL_INT:
        return "an integer";
    case PL_FLOAT:
        return "a number";
    case PL_BOOL:
        return "true or false";
    case PL_STRING:
        return "a text";
    case PL_ENUM:
        return "one word";
    }
    return "a value";
}

/* Integers in full, as far as a double tells them. */
static void bound_text(const pl_config_key *key, double bound, char *out, size_t n_out)
{
    const int is_whole = key->type == PL_INT && fabs(bound) < 0x1p53;
    if (snprintf(out, n_out, is_whole ? "%.0f" : "%g", bound) < 0)
        out[0] = '\0';
}

static void choices_text(const char *choices, char *out, size_t n_out)
{
    size_t n = 0;

    out[0] = '\0';
    for (const char *c = choices; *c;) {
        const size_t len = strcspn(c, "|");
        const int is_last = c[len] == '\0';
        const char *join = c == choices ? "" : is_last ? " or " : ", ";
        const int more = snprintf(out + n, n_out - n, "%s%.*s", join, (int)len, c);
        if (more < 0 || (size_t)more >= n_out - n)
            return;
        n += (size_t)more;
        c += len + !is_last;
    }
}

void config_range(const pl_config_key *key, char *out, size_t n_out)
{
    const double unbounded = key->type == PL_INT ? 0x1p53 : 1e300;
    const int has_min = key->min > -unbounded, has_max = key->max < unbounded;
    char low[32], high[32];
    int n = 0;

    out[0] = '\0';
    if (key->type == PL_ENUM) {
        choices_text(key->choices, out, n_out);
        return;
    }
    if (key->type != PL_INT && key->type != PL_FLOAT)
        return;
    bound_text(key, key->min, low, sizeof low);
    bound_text(key, key->max, high, sizeof high);
    if (has_min && has_max)
        n = snprintf(out, n_out, "%s .. %s", low, high);
    else if (has_min)
        n = snprintf(out, n_out, "at least %s", low);
    else if (has_max)
        n = snprintf(out, n_out, "at most %s", high);
    if (n < 0)
        out[0] = '\0';
}

size_t config_bad_utf8(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;

    while (i < n) {
        const unsigned c = s[i];
        const size_t len = c < 0x80   ? 1
                           : c < 0xc2 ? 0
                           : c < 0xe0 ? 2
                           : c < 0xf0 ? 3
                           : c < 0xf5 ? 4
                                      : 0;
        if (c == 0 || len == 0 || len > n - i)
            return i;
        for (size_t k = 1; k < len; k++) {
            if ((s[i + k] & 0xc0) != 0x80)
                return i;
        }
        /* Overlong forms, surrogates, beyond U+10FFFF: told by the second byte. */
        if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) ||
            (c == 0xf0 && s[i + 1] < 0x90) || (c == 0xf4 && s[i + 1] > 0x8f))
            return i;
        i += len;
    }
    return n;
}

static pl_status wrong_type(const pl_config_key *key, const char *text, pl_error *err)
{
    return pl_fail(err, PL_E_CONFIG, "'%s' takes %s, not '%.*s'", key->key,
        config_type_words(key->type), CONFIG_CLIP, text);
}

static pl_status out_of_range(const pl_config_key *key, const char *text, pl_error *err)
{
    char range[256];
    config_range(key, range, sizeof range);
    return pl_fail(err, PL_E_CONFIG, "'%s' is %.*s, allowed is %s", key->key, CONFIG_CLIP, text,
        range[0] ? range : "what 64 bits hold");
}

static size_t n_digits(const char *s)
{
    size_t n = 0;
    while (s[n] >= '0' && s[n] <= '9')
        n++;
    return n;
}

static int is_sign(char c)
{
    return c == '+' || c == '-';
}

static pl_status set_int(const pl_config_key *key, int64_t *out, const char *text, pl_error *err)
{
    const char *digits = text + is_sign(text[0]);
    const size_t n = n_digits(digits);

    if (n == 0 || digits[n] != '\0')
        return wrong_type(key, text, err);
    errno = 0;
    const long long v = strtoll(text, NULL, 10);
    if (errno == ERANGE || (double)v < key->min || (double)v > key->max)
        return out_of_range(key, text, err);
    *out = v;
    return PL_OK;
}

/* [sign] digits [. digits] [e [sign] digits], at least one digit before the exponent. */
static int is_number(const char *s)
{
    s += is_sign(*s);
    const size_t whole = n_digits(s);
    size_t fraction = 0;
    s += whole;
    if (*s == '.') {
        fraction = n_digits(s + 1);
        s += 1 + fraction;
    }
    if (whole + fraction == 0)
        return 0;
    if (*s == 'e' || *s == 'E') {
        s += 1 + is_sign(s[1]);
        const size_t exponent = n_digits(s);
        if (exponent == 0)
            return 0;
        s += exponent;
    }
    return *s == '\0';
}

/* "1,5" of the user's locale must not decide what "1.5" means. */
static pl_status set_float(const pl_config_key *key, double *out, const char *text, pl_error *err)
{
    if (!is_number(text))
        return wrong_type(key, text, err);
    const locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (!plain)
        return pl_fail(err, PL_E_NOMEM, "'%s': no memory to read a number", key->key);
    const double v = strtod_l(text, NULL, plain);
    freelocale(plain);
    if (!isfinite(v))
        return pl_fail(err, PL_E_CONFIG, "'%s' is %.*s, which no double can hold", key->key,
            CONFIG_CLIP, text);
    if (v < key->min || v > key->max)
        return out_of_range(key, text, err);
    *out = v;
    return PL_OK;
}

static pl_status set_string(const pl_config_key *key, char *out, const char *text, pl_error *err)
{
    const size_t len = strlen(text);

    if (len >= PL_CONFIG_STR)
        return pl_fail(err, PL_E_CONFIG, "'%s' is a text of %zu bytes, allowed are %d", key->key,
            len, PL_CONFIG_STR - 1);
    if (config_bad_utf8(text, len) != len)
        return pl_fail(err, PL_E_CONFIG, "'%s' is not valid UTF-8", key->key);
    memcpy(out, text, len + 1);
    return PL_OK;
}

static int is_choice(const char *choices, const char *word)
{
    const size_t n_word = strlen(word);
    for (const char *c = choices; *c;) {
        const size_t len = strcspn(c, "|");
        if (len == n_word && memcmp(c, word, len) == 0)
            return 1;
        c += len + (c[len] == '|');
    }
    return 0;
}

static pl_status set_enum(const pl_config_key *key, char *out, const char *text, pl_error *err)
{
    char words[256], near[CONFIG_NAME];

    if (is_choice(key->choices, text))
        return set_string(key, out, text, err);
    choices_text(key->choices, words, sizeof words);
    if (config_near_choice(key->choices, text, near, sizeof near))
        return pl_fail(err, PL_E_CONFIG, "'%s' is '%.*s', allowed is %s (did you mean '%s'?)",
            key->key, CONFIG_CLIP, text, words, near);
    return pl_fail(
        err, PL_E_CONFIG, "'%s' is '%.*s', allowed is %s", key->key, CONFIG_CLIP, text, words);
}

pl_status config_set(const pl_config_key *key, void *options, const char *text, pl_error *err)
{
    void *field = (char *)options + key->offset;

    switch (key->type) {
    case PL_INT:
        return set_int(key, field, text, err);
    case PL_FLOAT:
        return set_float(key, field, text, err);
    case PL_BOOL:
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
            return wrong_type(key, text, err);
        *(int *)field = text[0] == 't';
        return PL_OK;
    case PL_STRING:
        return set_string(key, field, text, err);
    case PL_ENUM:
        return set_enum(key, field, text, err);
    }
    return pl_fail(err, PL_E_INVAL, "'%s' has no known type in its table", key->key);
}
