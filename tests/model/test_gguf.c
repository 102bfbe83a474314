/* tests/model/test_gguf.c - a GGUF file is read right, and every kind of damage is refused with a
 * sentence that names it.  Files are parsed from heap copies of their exact size, so that a
 * sanitizer sees a read past the end. */
#include "model/gguf.h"
#include "tests/model/gguf_builder.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

static builder b;

/* Parse the first n bytes of b.  The copy lives as long as *g; *copy is for the caller to free. */
static pl_status parse(size_t n, pl_gguf **g, unsigned char **copy, pl_error *err)
{
    *copy = malloc(n + (n == 0));
    cr_assert_not_null(*copy);
    memcpy(*copy, b.data, n);
    return pl_gguf_parse(g, *copy, n, "test.gguf", err);
}

static void expect_refusal(const char *words)
{
    pl_gguf *g = NULL;
    unsigned char *copy;
    pl_error err = {0};

    cr_expect_eq(parse(b.n, &g, &copy, &err), PL_E_FORMAT, "accepted: %s", words);
    cr_expect_not_null(strstr(err.msg, words), "'%s' lacks '%s'", err.msg, words);
    cr_expect_not_null(strstr(err.msg, "test.gguf"), "'%s' lacks the file", err.msg);
    pl_gguf_close(g);
    free(copy);
}

/* Two tensors of 32 F32 and one block of Q8_0, four keys. */
static void build_good(void)
{
    static const unsigned char values[192];

    put_head(&b, 2, 4);
    put_key_text(&b, "general.architecture", "llama");
    put_key_u32(&b, "llama.block_count", 7);
    put_key_f32(&b, "llama.rope.freq_base", 0.5f);
    put_text(&b, "tokens");
    put_u32(&b, 9);
    put_u32(&b, 8);
    put_u64(&b, 3);
    put_text(&b, "one");
    put_text(&b, "");
    put_text(&b, "three");
    put_tensor(&b, "b.weight", 0, 16, 2, 64); /* not in order of place */
    put_tensor(&b, "a.weight", 8, 32, 1, 0);
    pad(&b);
    put(&b, values, sizeof values);
}

Test(gguf, a_good_file_is_read)
{
    pl_gguf *g = NULL;
    unsigned char *copy;
    pl_error err = {0};
    const char *s;
    size_t len;
    int64_t i;
    double f;
    uint64_t n;

    build_good();
    cr_assert_eq(parse(b.n, &g, &copy, &err), PL_OK, "%s", err.msg);
    cr_expect(pl_gguf_get_int(g, "llama.block_count", &i) && i == 7);
    cr_expect(pl_gguf_get_float(g, "llama.rope.freq_base", &f) && f == 0.5);
    cr_expect(pl_gguf_get_float(g, "llama.block_count", &f) && f == 7.0);
    cr_expect_not(pl_gguf_get_int(g, "llama.rope.freq_base", &i));
    cr_expect_not(pl_gguf_get_int(g, "llama.block", &i));
    cr_expect(pl_gguf_get_string(g, "general.architecture", &s, &len) && len == 5);
    cr_expect_eq(memcmp(s, "llama", 5), 0);
    cr_expect(pl_gguf_get_string_array(g, "tokens", &n) && n == 3);
    cr_expect(pl_gguf_string_at(g, "tokens", 1, &s, &len) && len == 0);
    cr_expect(pl_gguf_string_at(g, "tokens", 2, &s, &len) && len == 5);
    cr_expect_eq(memcmp(s, "three", 5), 0);
    cr_expect_not(pl_gguf_string_at(g, "tokens", 3, &s, &len));
    cr_expect_eq(pl_gguf_n_tensors(g), 2);
    const pl_gguf_tensor *t = pl_gguf_find(g, "b.weight");
    cr_assert_not_null(t);
    cr_expect(t->n_bytes == 128 && t->data + t->n_bytes == copy + b.n);
    cr_expect_eq(pl_gguf_find(g, "a.weight")->n_bytes, 34);
    cr_expect_null(pl_gguf_find(g, "c.weight"));
    cr_expect_null(pl_gguf_tensor_at(g, 2));
    pl_gguf_close(g);
    free(copy);
}

Test(gguf, integers_of_every_width_keep_their_sign)
{
    static const struct {
        uint32_t type, n_bytes;
        int64_t bits, want;
    } rows[] = {
        {0, 1, 0xfe, 254},
        {1, 1, 0xfe, -2},
        {2, 2, 0xfffe, 65534},
        {3, 2, 0xfffe, -2},
        {4, 4, 0xfffffffe, 4294967294},
        {5, 4, 0xfffffffe, -2},
        {7, 1, 1, 1},
        {10, 8, 5, 5},
        {11, 8, -2, -2},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        pl_gguf *g = NULL;
        unsigned char *copy;
        pl_error err = {0};
        const int64_t *v;
        uint64_t n;
        int64_t one = 0;

        put_head(&b, 0, 2);
        put_text(&b, "x");
        put_u32(&b, rows[i].type);
        put(&b, &rows[i].bits, rows[i].n_bytes);
        put_text(&b, "y");
        put_u32(&b, 9);
        put_u32(&b, rows[i].type);
        put_u64(&b, 2);
        put(&b, &rows[i].bits, rows[i].n_bytes);
        put(&b, &rows[i].bits, rows[i].n_bytes);
        cr_assert_eq(parse(b.n, &g, &copy, &err), PL_OK, "%s", err.msg);
        cr_expect(pl_gguf_get_int(g, "x", &one) && one == rows[i].want, "type %u", rows[i].type);
        cr_expect(pl_gguf_get_int_array(g, "y", &v, &n) && n == 2 && v[1] == rows[i].want);
        cr_expect_not(pl_gguf_get_int(g, "y", &one));
        pl_gguf_close(g);
        free(copy);
    }
}

Test(gguf, every_shorter_prefix_is_refused)
{
    build_good();
    for (size_t n = 0; n < b.n; n++) {
        pl_gguf *g = NULL;
        unsigned char *copy;
        pl_error err = {0};
        cr_expect_neq(parse(n, &g, &copy, &err), PL_OK, "%zu bytes were accepted", n);
        cr_expect_neq(err.msg[0], 0);
        pl_gguf_close(g);
        free(copy);
    }
}

/* What is accepted must lie inside the file. */
static void touch_everything(const pl_gguf *g, const unsigned char *copy)
{
    unsigned sum = 0;
    const char *s;
    size_t len;
    uint64_t n = 0;

    for (int i = 0; i < pl_gguf_n_tensors(g); i++) {
        const pl_gguf_tensor *t = pl_gguf_tensor_at(g, i);
        cr_expect(t->data >= copy && t->data + t->n_bytes <= copy + b.n);
        cr_expect_eq(pl_gguf_find(g, t->name), t);
    }
    pl_gguf_get_string_array(g, "tokens", &n);
    for (uint64_t i = 0; i < n; i++)
        if (pl_gguf_string_at(g, "tokens", i, &s, &len))
            for (size_t k = 0; k < len; k++)
                sum += (unsigned char)s[k];
    cr_expect_neq(sum, 1);
}

Test(gguf, no_changed_byte_leads_outside_the_file)
{
    static const unsigned char values[] = {0, 1, 0x7f, 0x80, 0xff};
    int n_refused = 0;

    build_good();
    for (size_t at = 0; at < b.n; at++) {
        const unsigned char old = b.data[at];
        for (size_t v = 0; v < sizeof values; v++) {
            pl_gguf *g = NULL;
            unsigned char *copy;
            pl_error err = {0};
            b.data[at] = values[v];
            if (parse(b.n, &g, &copy, &err) == PL_OK)
                touch_everything(g, copy);
            else
                n_refused++;
            pl_gguf_close(g);
            free(copy);
        }
        b.data[at] = old;
    }
    cr_expect_gt(n_refused, 100);
}

Test(gguf, another_kind_of_file_is_named)
{
    build_good();
    b.data[0] = 'g';
    expect_refusal("does not begin with");
    build_good();
    b.data[4] = 2;
    expect_refusal("version 2");
    memcpy(b.data + 4, "\0\0\0\3", 4);
    expect_refusal("big endian");
}

Test(gguf, impossible_counts_are_refused_before_memory_is_taken)
{
    put_head(&b, 1ull << 63, 0);
    expect_refusal("9223372036854775808 tensors do not fit");
    put_head(&b, 0, 1ull << 63);
    expect_refusal("9223372036854775808 metadata keys do not fit");
    put_head(&b, 0, 1);
    put_u64(&b, UINT64_MAX);
    put(&b, "0123456789", 10);
    expect_refusal("18446744073709551615 bytes");
    put_head(&b, 0, 1);
    put_text(&b, "x");
    put_u32(&b, 8);
    put_u64(&b, UINT64_MAX - 7);
    expect_refusal("key 'x'");
}

static void build_array(uint32_t type, uint64_t count)
{
    put_head(&b, 0, 1);
    put_text(&b, "x");
    put_u32(&b, 9);
    put_u32(&b, type);
    put_u64(&b, count);
    put_u64(&b, UINT64_MAX);
}

Test(gguf, arrays_that_lie_are_refused)
{
    build_array(9, 1);
    expect_refusal("arrays of arrays");
    build_array(8, 1ull << 61);
    expect_refusal("does not fit");
    build_array(10, 1ull << 61);
    expect_refusal("does not fit");
    build_array(12, 2);
    expect_refusal("does not fit");
    build_array(10, 1);
    expect_refusal("above 2^63");
    build_array(13, 1);
    expect_refusal("value type 13 is not known");
    build_array(0xffffffff, 1);
    expect_refusal("is not known");
}

Test(gguf, alignment_must_be_a_power_of_two)
{
    static const uint32_t values[] = {0, 1, 3, 48, 1u << 21, 0x80000000};

    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        put_head(&b, 0, 1);
        put_key_u32(&b, "general.alignment", values[i]);
        expect_refusal("general.alignment is");
    }
    put_head(&b, 0, 1);
    put_key_text(&b, "general.alignment", "32");
    expect_refusal("no integer");
}

Test(gguf, twins_are_refused)
{
    put_head(&b, 0, 2);
    put_key_u32(&b, "x", 1);
    put_key_u32(&b, "x", 1);
    expect_refusal("key 'x' stands twice");
    put_head(&b, 2, 0);
    put_tensor(&b, "x", 0, 8, 1, 0);
    put_tensor(&b, "x", 0, 8, 1, 32);
    pad(&b);
    put_u64(&b, 0);
    b.n += 64;
    expect_refusal("tensor 'x' stands twice");
}

/* One tensor with 256 bytes of data behind it. */
static void build_tensor(const char *name, uint32_t type, uint64_t d0, uint64_t d1, uint64_t offset)
{
    put_head(&b, 1, 0);
    put_tensor(&b, name, type, d0, d1, offset);
    pad(&b);
    b.n += 256;
}

Test(gguf, tensors_that_lie_are_refused)
{
    build_tensor("x", 0, 8, 9, 0);
    expect_refusal("leaves the file");
    build_tensor("x", 0, 8, 1, 256);
    expect_refusal("leaves the file");
    build_tensor("x", 0, 8, 1, UINT64_MAX - 31);
    expect_refusal("leaves the file");
    build_tensor("x", 0, 8, 1, 4);
    expect_refusal("no multiple of 32");
    build_tensor("x", 0, 0, 1, 0);
    expect_refusal("impossible");
    build_tensor("x", 0, 1ull << 33, 1ull << 33, 0);
    expect_refusal("impossible");
    build_tensor("x", 0, 1ull << 62, 1, 0);
    expect_refusal("do not fit in memory");
    build_tensor("x", 3, 33, 1, 0);
    expect_refusal("cannot be of type Q4_1");
    build_tensor("x", 12, 256, 1, 0);
    expect_refusal("type Q4_K (12) is not supported");
    build_tensor("x", 0xffffffff, 8, 1, 0);
    expect_refusal("type unknown (-1)");
    build_tensor("a\033[2Jb", 0, 8, 1, 0);
    expect_refusal("'a\\x1b[2Jb'");
    build_tensor("", 0, 8, 1, 0);
    expect_refusal("tensor name");
}

Test(gguf, overlap_is_refused_by_both_names)
{
    put_head(&b, 2, 0);
    put_tensor(&b, "first", 0, 8, 2, 0);
    put_tensor(&b, "second", 0, 8, 1, 32);
    pad(&b);
    b.n += 64;
    expect_refusal("'first' and 'second' overlap");
}

Test(gguf, five_dimensions_are_refused)
{
    put_head(&b, 1, 0);
    put_text(&b, "x");
    put_u32(&b, 5);
    for (int i = 0; i < 6; i++)
        put_u64(&b, 1);
    expect_refusal("5 dimensions");
}

Test(gguf, a_missing_file_is_no_entry)
{
    pl_gguf *g = NULL;
    pl_error err = {0};
    cr_expect_eq(pl_gguf_open(&g, "tests/no-such-file.gguf", &err), PL_E_NOENT);
    cr_expect_not_null(strstr(err.msg, "no-such-file"));
}
