/* tests/model/test_safetensors.c - the rules of the safetensors format, and every way to break
 * them. Files are parsed from heap copies of their exact size, so that a sanitizer sees a read past
 * the end. */
#include "model/safetensors.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* File of a header and n_data bytes; *copy is for the caller to free. */
static pl_status parse_n(const char *header, uint64_t n_claimed, size_t n_data, safetensors **f,
    unsigned char **copy, pl_error *err)
{
    const size_t n_header = strlen(header);

    *copy = calloc(1, 8 + n_header + n_data);
    cr_assert_not_null(*copy);
    memcpy(*copy, &n_claimed, 8);
    memcpy(*copy + 8, header, n_header);
    return safetensors_parse(f, *copy, 8 + n_header + n_data, "test.safetensors", err);
}

static void expect_refusal_n(
    const char *header, uint64_t n_claimed, size_t n_data, const char *words)
{
    safetensors *f = NULL;
    unsigned char *copy;
    pl_error err = {0};

    cr_expect_eq(
        parse_n(header, n_claimed, n_data, &f, &copy, &err), PL_E_FORMAT, "accepted: %s", header);
    cr_expect_not_null(strstr(err.msg, words), "'%s' lacks '%s'", err.msg, words);
    cr_expect_not_null(strstr(err.msg, "test.safetensors"), "'%s' lacks the file", err.msg);
    safetensors_close(f);
    free(copy);
}

static void expect_refusal(const char *header, size_t n_data, const char *words)
{
    expect_refusal_n(header, strlen(header), n_data, words);
}

static const char good[] = "{\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
                           "\"__metadata__\":{\"format\":\"pt\"},"
                           "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}   ";

Test(safetensors, a_good_file_is_read)
{
    safetensors *f = NULL;
    unsigned char *copy;
    pl_error err = {0};

    cr_assert_eq(parse_n(good, strlen(good), 16, &f, &copy, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(safetensors_count(f), 2);
    cr_expect_str_eq(safetensors_at(f, 0)->name, "a");
    const safetensors_tensor *t = safetensors_find(f, "b");
    cr_assert_not_null(t);
    cr_expect(t->n_dims == 2 && t->dims[0] == 2 && t->dims[1] == 3 && t->type == 30);
    cr_expect(t->n_bytes == 12 && t->data == copy + 8 + strlen(good) + 4);
    cr_expect_null(safetensors_find(f, "__metadata__"));
    safetensors_close(f);
    free(copy);
}

Test(safetensors, an_empty_file_of_no_tensors_is_read)
{
    safetensors *f = NULL;
    unsigned char *copy;
    pl_error err = {0};

    cr_assert_eq(parse_n("{}", 2, 0, &f, &copy, &err), PL_OK, "%s", err.msg);
    cr_expect_eq(safetensors_count(f), 0);
    safetensors_close(f);
    free(copy);
}

Test(safetensors, header_lengths_that_lie_are_refused)
{
    expect_refusal_n("", 0, 0, "does not begin with '{'");
    expect_refusal_n("{}", 7, 0, "a header of 7 bytes in a file of 10");
    expect_refusal_n("{}", 1, 0, "header");
    expect_refusal_n("{}", 1ull << 63, 0, "9223372036854775808 bytes");
    expect_refusal_n("{}", UINT64_MAX, 0, "18446744073709551615 bytes");
    expect_refusal("        ", 0, "does not begin with '{'");
    expect_refusal(" {}", 0, "does not begin with '{'");
    expect_refusal("[]", 0, "does not begin with '{'");

    safetensors *f = NULL;
    pl_error err = {0};
    cr_expect_eq(safetensors_parse(&f, "1234567", 7, "short", &err), PL_E_FORMAT);
}

Test(safetensors, every_shorter_prefix_is_refused)
{
    unsigned char *copy;
    safetensors *f = NULL;
    pl_error err = {0};
    const size_t n = 8 + strlen(good) + 16;

    cr_assert_eq(parse_n(good, strlen(good), 16, &f, &copy, &err), PL_OK);
    safetensors_close(f);
    for (size_t i = 0; i < n; i++) {
        unsigned char *part = malloc(i + (i == 0));
        cr_assert_not_null(part);
        memcpy(part, copy, i);
        f = NULL;
        cr_expect_neq(safetensors_parse(&f, part, i, "part", &err), PL_OK, "%zu bytes", i);
        safetensors_close(f);
        free(part);
    }
    free(copy);
}

Test(safetensors, no_changed_byte_leads_outside_the_file)
{
    static const unsigned char values[] = {0, '0', '9', '"', '{', '}', '-', 0xff};
    unsigned char *copy;
    safetensors *f = NULL;
    pl_error err = {0};
    const size_t n = 8 + strlen(good) + 16;

    cr_assert_eq(parse_n(good, strlen(good), 16, &f, &copy, &err), PL_OK);
    safetensors_close(f);
    for (size_t at = 0; at < n * sizeof values; at++) {
        const unsigned char old = copy[at / sizeof values];
        copy[at / sizeof values] = values[at % sizeof values];
        f = NULL;
        if (safetensors_parse(&f, copy, n, "changed", &err) == PL_OK) {
            for (int i = 0; i < safetensors_count(f); i++) {
                const safetensors_tensor *t = safetensors_at(f, i);
                cr_expect(t->data >= copy && t->data + t->n_bytes <= copy + n);
            }
            safetensors_close(f);
        }
        copy[at / sizeof values] = old;
    }
    free(copy);
}

#define ONE(entry)          "{\"a\":{" entry "}}"
#define F32(shape, offsets) "\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":" offsets

Test(safetensors, tensors_that_lie_are_refused)
{
    expect_refusal(ONE(F32("[2]", "[0,8]")), 4, "leave the 4 bytes");
    expect_refusal(ONE(F32("[2]", "[8,0]")), 8, "leave the 8 bytes");
    expect_refusal(ONE(F32("[2]", "[0,4]")), 4, "need 8 bytes");
    expect_refusal(ONE(F32("[2]", "[0,8]")), 9, "1 bytes stand after");
    expect_refusal(ONE(F32("[1]", "[4,8]")), 8, "leaves a hole");
    expect_refusal(ONE(F32("[4294967296,4294967296]", "[0,0]")), 0, "exceeds 64 bits");
    expect_refusal(ONE(F32("[4611686018427387904,2]", "[0,0]")), 0, "exceeds 64 bits");
    expect_refusal(ONE(F32("[-1]", "[0,4]")), 4, "no whole number");
    expect_refusal(ONE(F32("[1.0]", "[0,4]")), 4, "no whole number");
    expect_refusal(ONE(F32("[18446744073709551616]", "[0,4]")), 4, "too big");
    expect_refusal(ONE(F32("[1,1,1,1,1,1,1,1,1]", "[0,4]")), 4, "9 dimensions");
    expect_refusal(ONE(F32("[1]", "[0]")), 4, "no pair");
    expect_refusal(ONE(F32("[1]", "[0,4,8]")), 4, "no pair");
    expect_refusal(ONE(F32("1", "[0,4]")), 4, "shape is missing or no list");
    expect_refusal(ONE("\"shape\":[1],\"data_offsets\":[0,4]"), 4, "dtype is missing");
    expect_refusal(ONE("\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,4]"), 4, "dtype 'Q4'");
    expect_refusal("{\"a\":7}", 0, "no JSON object");
}

#define NAMED(name, offsets) "\"" name "\":{" F32("[1]", offsets) "}"

Test(safetensors, overlap_and_holes_are_refused)
{
    expect_refusal("{" NAMED("a", "[0,4]") "," NAMED("b", "[0,4]") "}", 4, "overlaps");
    expect_refusal("{" NAMED("a", "[0,4]") "," NAMED("b", "[2,6]") "}", 6, "overlaps");
    expect_refusal("{" NAMED("a", "[0,4]") "," NAMED("b", "[8,12]") "}", 12, "tensor 'b'");
}

Test(safetensors, names_that_could_harm_are_refused)
{
    expect_refusal("{" NAMED("../../etc/x", "[0,4]") "}", 4, "the name has");
    expect_refusal("{" NAMED("a\\nb", "[0,4]") "}", 4, "'a\\x0ab'");
    expect_refusal("{" NAMED("a\\u001b[2J", "[0,4]") "}", 4, "'a\\x1b[2J'");
    expect_refusal("{" NAMED("a\\u0000b", "[0,4]") "}", 4, "u0000");
    expect_refusal("{" NAMED("", "[0,4]") "}", 4, "the name has");
    expect_refusal("{" NAMED("a", "[0,4]") "," NAMED("a", "[4,8]") "}", 8, "duplicate");
}

Test(safetensors, metadata_holds_strings_only)
{
    expect_refusal("{\"__metadata__\":7}", 0, "__metadata__ is no");
    expect_refusal("{\"__metadata__\":{\"a\":7}}", 0, "else than strings");
}

Test(safetensors, json_is_bounded)
{
    expect_refusal("{\"a\":[[[[[[[[[[]]]]]]]]]]}", 0, "nested deeper");
    expect_refusal("{\"a\":\xff}", 0, "header");
    expect_refusal("{} x", 0, "header");

    /* one tensor more than is allowed, without any of them being looked at */
    const size_t n_max = 70000;
    char *header = malloc(n_max * 16);
    cr_assert_not_null(header);
    size_t n = 0;
    for (size_t i = 0; i < n_max; i++)
        n += (size_t)sprintf(header + n, "%c\"%zu\":0", i ? ',' : '{', i);
    memcpy(header + n, "}", 2);
    expect_refusal(header, 0, "70000 tensors");
    free(header);
}
