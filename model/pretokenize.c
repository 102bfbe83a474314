/* model/pretokenize.c - splitting text into words, before BPE joins bytes inside each word.
 *
 * The patterns are ours: one family is one pair of patterns, chosen by name, and no pattern of a
 * file is ever run.  Hugging Face runs them with Oniguruma and its tables, which differ from
 * PCRE2's:
 * - white space is Unicode's White_Space; PCRE2's \s takes U+180E too, so the class is spelled out;
 * - Oniguruma 6.9.10 knows Unicode 16, PCRE2 10.42 Unicode 14: the letters and numbers added
 * between are listed, so that any PCRE2 from 14 to 16 gives the same words;
 * - "Digits" asks Rust's char::is_numeric, which in tokenizers 0.23 knows Unicode 17. */
#include "model/bpe.h"

#include <string.h>

#define SPACE                                                                                      \
    "\\t-\\r "                                                                                     \
    "\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define LETTER                                                                                     \
    "\\p{L}\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"         \
    "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"         \
    "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}"           \
    "\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}"          \
    "\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}"                    \
    "\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}"                     \
    "\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"          \
    "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"
#define NUMBER                                                                                     \
    "\\p{N}\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"   \
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"         \
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"
#define DIGIT    NUMBER "\\x{11de0}-\\x{11de9}\\x{16ff4}-\\x{16ff6}"
#define TRAILING "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

/* Steps of one match: far above what a text of PL_TOKENIZER_MAX_INPUT needs. */
enum { MATCH_LIMIT = 1 << 26 };

/* What each family is, and how files write its pattern (Split; NULL: by the name ByteLevel). */
static const struct {
    const char *words, *digits, *in_files;
} families[] = {
    [BPE_GPT2] = {"'s|'t|'re|'ve|'m|'ll|'d| ?[" LETTER "]+| ?[" NUMBER "]+| ?[^" SPACE LETTER NUMBER
                  "]+|" TRAILING,
        NULL, NULL},
    [BPE_SMOLLM] = {"'s|'t|'re|'ve|'m|'ll|'d| ?[" LETTER "]+| ?[" NUMBER
                    "]+| ?[^" SPACE LETTER NUMBER "]+|" TRAILING,
        "[" DIGIT "]", NULL},
    [BPE_LLAMA3] = {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n" LETTER NUMBER "]?[" LETTER "]+|[" NUMBER
                    "]{1,3}| ?[^" SPACE LETTER NUMBER "]+[\\r\\n]*|[" SPACE "]*[\\r\\n]+|" TRAILING,
        NULL,
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
        " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
};

int pretokenize_known(const char *pattern, bpe_family *family)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (families[i].in_files && strcmp(pattern, families[i].in_files) == 0) {
            *family = (bpe_family)i;
            return 1;
        }
    return 0;
}

const char *pretokenize_pattern(bpe_family family)
{
    return families[family].in_files;
}

/* Anchoring is an option of the pattern: as one of the match it would turn just-in-time code off.
 */
static pl_status compile(pcre2_code **out, const char *pattern, uint32_t options, pl_error *err)
{
    int code;
    PCRE2_SIZE at;
    *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
        PCRE2_UTF | PCRE2_UCP | options, &code, &at, NULL);
    if (!*out) {
        char why[128] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        return pl_fail(err, PL_E_INVAL,
            "pre-tokenizer: PCRE2 does not take the pattern: %s (PCRE2 10.40 or newer is needed)",
            why);
    }
    /* Without just-in-time code the same matches are found, slower. */
    (void)pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE);
    return PL_OK;
}

pl_status pretokenize_init(pl_tokenizer *t, pl_error *err)
{
    pl_status st = compile(&t->words, families[t->family].words, PCRE2_ANCHORED, err);
    if (st == PL_OK && families[t->family].digits)
        st = compile(&t->digits, families[t->family].digits, 0, err);
    if (st != PL_OK)
        return st;
    t->limits = pcre2_match_context_create(NULL);
    if (!t->limits)
        return pl_fail(err, PL_E_NOMEM, "pre-tokenizer");
    pcre2_set_match_limit(t->limits, MATCH_LIMIT);
    return PL_OK;
}

void pretokenize_done(pl_tokenizer *t)
{
    pcre2_match_context_free(t->limits);
    pcre2_code_free(t->digits);
    pcre2_code_free(t->words);
}

/* One text on its way: PCRE2's scratch space is per call, the tokenizer is shared by threads. */
typedef struct split {
    const pl_tokenizer *t;
    pcre2_match_data *match;
    bpe_ids *out;
    pl_error *err;
} split;

/* Find the pattern in s from *begin on.  *returns* 1 found, 0 not, -1 with the error set. */
static int find(
    split *x, const pcre2_code *code, const char *s, size_t n, size_t *begin, size_t *end)
{
    const int rc =
        pcre2_match(code, (PCRE2_SPTR)s, n, *begin, PCRE2_NO_UTF_CHECK, x->match, x->t->limits);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0) {
        char why[128] = "";
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
        pl_error_set(x->err, PL_E_NOMEM, "pre-tokenizer: %s, in a text of %zu bytes", why, n);
        return -1;
    }
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(x->match);
    *begin = at[0];
    *end = at[1];
    return 1;
}

static pl_status put_word(split *x, const char *s, size_t n)
{
    if (bpe_encode_word(x->t, s, n, x->out))
        return PL_OK;
    return pl_fail(x->err, PL_E_NOMEM, "tokenizer: a word of %zu bytes", n);
}

/* Split a stretch without digits.  It is the whole subject: a look-ahead must not see behind it. */
static pl_status put_words(split *x, const char *s, size_t n)
{
    pl_status st = PL_OK;
    for (size_t begin = 0, end; st == PL_OK && begin < n; begin = end) {
        const int found = find(x, x->t->words, s, n, &begin, &end);
        if (found < 0)
            return PL_E_NOMEM;
        if (found == 0 || end == begin)
            end = n; /* not reached: every character is in one of the alternatives */
        st = put_word(x, s + begin, end - begin);
    }
    return st;
}

static pl_status put_text(split *x, const char *s, size_t n)
{
    pl_status st = PL_OK;
    size_t done = 0;
    while (x->t->digits && st == PL_OK && done < n) {
        size_t begin = done, end;
        const int found = find(x, x->t->digits, s, n, &begin, &end);
        if (found < 0)
            return PL_E_NOMEM;
        if (found == 0)
            break;
        st = put_words(x, s + done, begin - done);
        if (st == PL_OK)
            st = put_word(x, s + begin, end - begin);
        done = end;
    }
    return st == PL_OK ? put_words(x, s + done, n - done) : st;
}

pl_status pretokenize_encode(
    const pl_tokenizer *t, const char *s, size_t n, bpe_ids *out, pl_error *err)
{
    split x = {t, pcre2_match_data_create(2, NULL), out, err};
    if (!x.match)
        return pl_fail(err, PL_E_NOMEM, "pre-tokenizer");
    const pl_status st = put_text(&x, s, n);
    pcre2_match_data_free(x.match);
    return st;
}
