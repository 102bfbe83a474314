/* Claims: hostile msgpack (RELIABILITY (d) 47-56) is refused in words, whatever it promises, and
 * limits hold on both sides. */
#include "ipc/walker.h"

#include "ipc/ipc.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define BATCH                                                                                      \
    "\xa5"                                                                                         \
    "batch"
#define UIDS                                                                                       \
    "\xa4"                                                                                         \
    "uids"
#define CODE                                                                                       \
    "\xa4"                                                                                         \
    "code"
#define REASON                                                                                     \
    "\xa6"                                                                                         \
    "reason"
#define GOOD "\x82" BATCH "\x07" UIDS "\xc4\x04\x01\x00\x00\x00"
#define B(s) (s), sizeof(s) - 1

/* A copy that ends where the memory ends; strings of m outlive it, spans do not. */
static pl_status decode(pl_msg *m, uint16_t type, const void *body, size_t n, pl_error *err)
{
    unsigned char *copy = malloc(n > 0 ? n : 1);
    memcpy(copy, body, n);
    *err = (pl_error){0};
    const pl_status st = pl_body_decode(m, type, copy, n, err);
    free(copy);
    return st;
}

static void refuse(uint16_t type, const void *body, size_t n, pl_status with, const char *says)
{
    pl_msg m;
    pl_error err;
    cr_assert_eq(decode(&m, type, body, n, &err), with, "'%s' instead of '%s'", err.msg, says);
    cr_assert(strstr(err.msg, says) != NULL, "'%s' instead of '%s'", err.msg, says);
    cr_assert_eq(strncmp(err.msg, "message ", 8), 0, "%s", err.msg);
}

Test(walker, the_bodies_below_differ_from_a_good_one)
{
    pl_msg m;
    pl_error err;
    cr_assert_eq(decode(&m, PL_MSG_ACK, B(GOOD), &err), PL_OK, "%s", err.msg);
    cr_assert(m.u.uids.batch == 7 && m.u.uids.uids.n == 1);
    cr_assert_eq(decode(&m, PL_MSG_REJECT, B("\x82" CODE "\x01" REASON "\xa2no"), &err), PL_OK);
    cr_assert_str_eq(m.u.reject.reason, "no");
    cr_assert_eq(decode(&m, PL_MSG_STOP, B("\x80"), &err), PL_OK, "%s", err.msg);
}

typedef struct refused {
    const char *body;
    size_t n;
    pl_status with;
    const char *says;
} refused;

static void refuse_all(uint16_t type, const refused *r, size_t n)
{
    for (size_t i = 0; i < n; i++)
        refuse(type, r[i].body, r[i].n, r[i].with, r[i].says);
}
#define ALL(cases) (cases), sizeof(cases) / sizeof(cases)[0]

Test(walker, promises_beyond_the_body_are_refused)
{
    static const refused cases[] = {
        {B(""), PL_E_FORMAT, "byte 0: the body ends where a value should begin"},
        {B("\xdd\x0f\xff\xff\xff"), PL_E_FORMAT, "an array of 268435455 in a body that has 0"},
        {B("\xdf\x0f\xff\xff\xff"), PL_E_FORMAT, "a map of 268435455"},
        {B("\xdf\xff\xff\xff\xff"), PL_E_FORMAT, "a map of 4294967295"},
        {B("\x82\x80\x80"), PL_E_FORMAT, "a map of 2 in a body that has 2 bytes left"},
        {B("\x82\xdb\xff\xff\xff\xff"), PL_E_FORMAT, "a string of 4294967295"},
        {B("\x82\xdb\xff\xff\xff"), PL_E_FORMAT, "ends inside a string"},
        {B("\x82" BATCH "\x07" UIDS "\xc6\xff\xff\xff\xff\x01"), PL_E_FORMAT,
            "bytes of 4294967295"},
        {B("\x82" BATCH "\x07" UIDS "\xc4\x05\x01\x00\x00\x00"), PL_E_FORMAT, "bytes of 5"},
        {B("\x82" BATCH "\x07" UIDS "\xdd\x0f\xff\xff\xff"), PL_E_FORMAT, "an array of 268435455"},
        {B("\x82" BATCH "\xcf\x00\x00\x00\x00\x00\x00\x00"), PL_E_FORMAT, "ends inside an integer"},
    };
    refuse_all(PL_MSG_ACK, ALL(cases));
}

Test(walker, maps_of_other_keys_are_refused)
{
    static const refused cases[] = {
        {B("\x82" BATCH "\x01" BATCH "\x02"), PL_E_FORMAT, "twice"},
        {B("\x82" BATCH "\x07" BATCH "\xc4\x00"), PL_E_FORMAT, "twice"},
        {B("\x81" BATCH "\x07"), PL_E_FORMAT, "1 keys instead of 2"},
        {B("\x80"), PL_E_FORMAT, "0 keys instead of 2"},
        {B("\x83" BATCH "\x07" UIDS "\xc4\x00" CODE "\x01"), PL_E_FORMAT, "3 keys instead of 2"},
        {B("\x82" BATCH "\x07" CODE "\x01"), PL_E_FORMAT, "unknown key 'code'"},
        {B("\x82" BATCH "\x07\xa5uidsx\xc4\x00"), PL_E_FORMAT, "unknown key 'uidsx'"},
        {B("\x82" BATCH "\x07\xa3uid\xc4\x00"), PL_E_FORMAT, "unknown key 'uid'"},
        {B("\x82" BATCH "\x07\xa5uids\x00\xc4\x00"), PL_E_FORMAT, "unknown key '...'"},
        {B("\x82" BATCH "\x07\xa0\xc4\x00"), PL_E_FORMAT, "unknown key ''"},
        {B("\x82" BATCH "\x07\x01\xc4\x00"), PL_E_FORMAT, "an integer instead of a key"},
        {B("\x82" BATCH "\x07\xc4\x04uids\xc4\x00"), PL_E_FORMAT, "bytes instead of a key"},
        {B("\x92\x07\x07"), PL_E_FORMAT, "an array instead of a map"},
        {B("\x07"), PL_E_FORMAT, "an integer instead of a map"},
        {B(GOOD "\xc0"), PL_E_FORMAT, "1 bytes after its end"},
        {B(GOOD GOOD), PL_E_FORMAT, "bytes after its end"},
    };
    refuse_all(PL_MSG_ACK, ALL(cases));
    refuse(PL_MSG_STOP, B("\x81" BATCH "\x07"), PL_E_FORMAT, "1 keys instead of 0");
    refuse(PL_MSG_STOP, B("\x80\x80"), PL_E_FORMAT, "1 bytes after its end");
    refuse(PL_MSG_STOP, B("\xc0"), PL_E_FORMAT, "nil instead of a map");
    refuse(15, B("\x80"), PL_E_FORMAT, "message of type 15");
    refuse(UINT16_MAX, B("\x80"), PL_E_FORMAT, "message of type 65535");
}

Test(walker, values_of_another_type_are_refused)
{
    static const refused cases[] = {
        {B("\x82" BATCH "\xca\x40\xe0\x00\x00"), PL_E_FORMAT, "a float instead of an integer"},
        {B("\x82" BATCH "\xca\x80\x00\x00\x00"), PL_E_FORMAT, "a float instead"},
        {B("\x82" BATCH "\xca\x7f\xc0\x00\x00"), PL_E_FORMAT, "a float instead"},
        {B("\x82" BATCH "\xcb\x40\x1c\x00\x00\x00\x00\x00\x00"), PL_E_FORMAT, "a double instead"},
        {B("\x82" BATCH "\xff" UIDS), PL_E_FORMAT, "a negative integer instead"},
        {B("\x82" BATCH "\xd0\x80" UIDS), PL_E_FORMAT, "a negative integer instead"},
        {B("\x82" BATCH "\xd1\x80\x00" UIDS), PL_E_FORMAT, "a negative integer instead"},
        {B("\x82" BATCH "\xd3\xff\xff\xff\xff\xff\xff\xff\xff"), PL_E_FORMAT, "a negative integer"},
        {B("\x82" BATCH "\xc0" UIDS "\xc4\x00"), PL_E_FORMAT, "nil instead"},
        {B("\x82" BATCH "\xc2" UIDS "\xc4\x00"), PL_E_FORMAT, "false instead"},
        {B("\x82" BATCH "\xc3" UIDS "\xc4\x00"), PL_E_FORMAT, "true instead"},
        {B("\x82" BATCH "\xc1" UIDS "\xc4\x00"), PL_E_FORMAT, "0xc1 is not msgpack"},
        {B("\xc1"), PL_E_FORMAT, "0xc1 is not msgpack"},
        {B("\x82" BATCH "\xa1\x37" UIDS "\xc4\x00"), PL_E_FORMAT, "a string instead"},
        {B("\x82" BATCH "\x07" UIDS "\xa4\x01\x00\x00\x00"), PL_E_FORMAT, "a string instead"},
        {B("\x82" BATCH "\x07" UIDS "\x91\x01"), PL_E_FORMAT, "an array instead of bytes"},
        {B("\x82" BATCH "\x07" UIDS "\x80"), PL_E_FORMAT, "a map instead of bytes"},
        {B("\x82" BATCH "\x07" UIDS "\xc4\x03\x01\x00\x00"), PL_E_SHAPE, "no whole number of"},
    };
    refuse_all(PL_MSG_ACK, ALL(cases));
    for (int ext = 0xc7; ext <= 0xd8; ext++) {
        char body[] = "\x82" BATCH "?\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01";
        if (ext > 0xc9 && ext < 0xd4)
            continue;
        body[7] = (char)ext;
        refuse(PL_MSG_ACK, B(body), PL_E_FORMAT, "an extension instead");
    }
    refuse(PL_MSG_REJECT, B("\x82" CODE "\xcf\x00\x00\x00\x01\x00\x00\x00\x00" REASON "\xa0"),
        PL_E_FORMAT, "4294967296 is over 32 bits");
    refuse(PL_MSG_GONE, B("\x82\xa4hash\xc4\x04\x01\x01\x01\x01\xa6oldest\x01"), PL_E_SHAPE,
        "elements of 32");
    refuse(PL_MSG_GONE, B("\x82\xa4hash\xc4\x00\xa6oldest\x01"), PL_E_SHAPE, "a hash has 32");
}

/* The walker never descends, so that depth costs nothing. */
Test(walker, nesting_is_refused_at_its_first_level)
{
    unsigned char deep[1 + 6 + 10000], wide[1 + 6 + 5 * 31];

    memcpy(deep, "\x82" BATCH, 7);
    memset(deep + 7, 0x91, sizeof deep - 7);
    refuse(PL_MSG_ACK, deep, sizeof deep, PL_E_FORMAT, "an array instead of an integer");
    refuse(PL_MSG_ACK, deep + 7, sizeof deep - 7, PL_E_FORMAT, "an array instead of a map");
    memset(deep + 7, 0x81, sizeof deep - 7);
    refuse(PL_MSG_ACK, deep, sizeof deep, PL_E_FORMAT, "a map instead of an integer");
    memcpy(wide, "\x82" BATCH, 7);
    for (int i = 0; i < 31; i++)
        memcpy(wide + 7 + 5 * i, "\xdd\x04\x00\x00\x00", 5);
    refuse(PL_MSG_ACK, wide, sizeof wide, PL_E_FORMAT, "an array of 67108864 in a body");
    refuse(PL_MSG_ACK, wide + 7, sizeof wide - 7, PL_E_FORMAT, "an array of 67108864 in a body");
}

Test(walker, a_body_over_the_limit_is_refused_unread)
{
    const size_t n = 5 + (16u << 20);
    unsigned char *nils = malloc(n);
    memset(nils, 0xc0, n);
    memcpy(nils, "\xdd\x01\x00\x00\x00", 5);
    refuse(PL_MSG_ACK, nils, n, PL_E_SHAPE, "a body of 16777221 bytes, at most 2097152");
    memcpy(nils, "\xdd\x00\x1f\xff\xfb", 5);
    refuse(PL_MSG_ACK, nils, PL_BODY_MAX, PL_E_FORMAT, "an array instead of a map");
    pl_header h = {.protocol = PL_PROTOCOL, .type = PL_MSG_ACK, .n_body = (uint32_t)n};
    unsigned char head[PL_HEADER_BYTES];
    pl_error err = {0};
    pl_header_encode(&h, nils, head);
    cr_assert_eq(pl_header_decode(&h, head, sizeof head, nils, n, &err), PL_E_FORMAT);
    free(nils);
}

/* ---- text ---- */

static const struct {
    const char *text;
    size_t n;
    int is_text;
} texts[] = {
    {B(""), 1},
    {B("plain"), 1},
    {B("\x01\x7f\n"), 1},
    {B("\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf"), 1},
    {B("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"), 1},
    {B("a\x00"), 0},            /* NUL */
    {B("\x00z"), 0},            /* NUL */
    {B("\xff"), 0},             /* never a byte of UTF-8 */
    {B("\x80"), 0},             /* goes on with nothing */
    {B("\xc3"), 0},             /* cut */
    {B("\xe2\x82"), 0},         /* cut */
    {B("\xf0\x9f\x98"), 0},     /* cut */
    {B("\xc0\x80"), 0},         /* NUL in two bytes */
    {B("\xc1\xbf"), 0},         /* overlong */
    {B("\xe0\x9f\xbf"), 0},     /* overlong */
    {B("\xf0\x8f\xbf\xbf"), 0}, /* overlong */
    {B("\xed\xa0\x80"), 0},     /* half of a surrogate pair */
    {B("\xf4\x90\x80\x80"), 0}, /* over U+10FFFF */
    {B("\xe2\x28\xa1"), 0},     /* second byte is none */
    {B("\xe2\x82\x28"), 0},     /* third */
    {B("\xf0\x9f\x98\x28"), 0}, /* fourth */
    {B("\xc3\xc3"), 0},
};

Test(walker, strings_are_utf8_without_nul_on_both_sides)
{
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        unsigned char body[64] = "\x82" CODE "\x01" REASON;
        pl_msg m;
        pl_error err;
        body[14] = (unsigned char)(0xa0 | texts[i].n);
        memcpy(body + 15, texts[i].text, texts[i].n);
        const pl_status st = decode(&m, PL_MSG_REJECT, body, 15 + texts[i].n, &err);
        cr_assert_eq(st, texts[i].is_text ? PL_OK : PL_E_FORMAT, "text %zu: %s", i, err.msg);
        if (memchr(texts[i].text, 0, texts[i].n) != NULL)
            continue;
        pl_bytes b = {0};
        m = (pl_msg){.h.type = PL_MSG_WELCOME, .u.welcome.run = texts[i].text};
        const pl_status sent = pl_body_encode(&m, &b, &err);
        cr_assert_eq(sent, texts[i].is_text ? PL_OK : PL_E_INVAL, "text %zu", i);
        pl_bytes_done(&b);
    }
}

Test(walker, reasons_are_made_to_fit_and_always_leave)
{
    char reason[600];
    pl_bytes b = {0};
    pl_error err = {0};
    pl_msg m = {.h.type = PL_MSG_REJECT, .u.reject = {3, "it\xff says \xe2\x82"}}, back;

    cr_assert_eq(pl_body_encode(&m, &b, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(decode(&back, PL_MSG_REJECT, b.data, b.n, &err), PL_OK, "%s", err.msg);
    cr_assert_str_eq(back.u.reject.reason, "it? says ??");
    memset(reason, 'r', sizeof reason);
    memcpy(reason + 502, "\xe2\x82\xac", 4); /* its last two bytes do not fit */
    m.u.reject.reason = reason;
    cr_assert_eq(pl_body_encode(&m, &b, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(decode(&back, PL_MSG_REJECT, b.data, b.n, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(strlen(back.u.reject.reason), 503);
    cr_assert_str_eq(back.u.reject.reason + 501, "r?");
    pl_bytes_done(&b);
}

/* ---- limits ---- */

static void refuse_to_send(const pl_msg *m, const char *says)
{
    pl_bytes b = {0};
    pl_error err = {0};
    cr_assert_eq(pl_body_encode(m, &b, &err), PL_E_INVAL, "instead of '%s'", says);
    cr_assert(strstr(err.msg, says) != NULL, "'%s' instead of '%s'", err.msg, says);
    cr_assert_eq(b.n, 0);
    pl_bytes_done(&b);
}

Test(walker, what_is_over_a_limit_is_not_sent)
{
    static const unsigned char zeros[4 * 65537];
    char name[65];
    pl_msg m = {.h.type = PL_MSG_ACK, .u.uids.uids = {zeros, 65537}};

    refuse_to_send(&m, "message ACK: 'uids' has 65537 elements, at most 65536");
    m.u.uids.uids.n = UINT32_MAX;
    refuse_to_send(&m, "'uids' has 4294967295 elements");
    m.u.uids.uids = (pl_span){NULL, 1};
    refuse_to_send(&m, "no data");
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = 0;
    m = (pl_msg){.h.type = PL_MSG_WELCOME, .u.welcome.run = name};
    refuse_to_send(&m, "message WELCOME: 'run' is longer than 63 bytes");
    m = (pl_msg){.h.type = PL_MSG_PROGRESS,
        .u.progress = {.tokens = {zeros, 3}, .logprobs = {zeros, 3}, .sources = {zeros, 2}}};
    refuse_to_send(&m, "'sources' has 2 elements beside 3 of 'logprobs'");
    m.u.progress.sources.n = 3;
    m.u.progress.logprobs.n = 2;
    refuse_to_send(&m, "'logprobs' has 2 elements beside 3 of 'tokens'");
    m = (pl_msg){.h.type = PL_MSG_RESULT, .u.result = {.tokens = {zeros, 2}}};
    refuse_to_send(&m, "'logprobs' has 0 elements beside 2 of 'tokens'");
    m.u.result.logprobs = m.u.result.tokens;
    refuse_to_send(&m, "'sources' has 0 elements beside 2 of 'logprobs'");
    m = (pl_msg){.h.type = PL_MSG_LEASE, .u.lease = {.prefix = {zeros, 2}}};
    refuse_to_send(&m, "'prefix_logprobs' has 0 elements beside 2 of 'prefix'");
    m.u.lease.prefix_logprobs = m.u.lease.prefix;
    refuse_to_send(&m, "'prefix_sources' has 0 elements beside 2 of 'prefix_logprobs'");
    m.h.type = 99;
    refuse_to_send(&m, "no message of type 99");
}

Test(walker, what_is_over_a_limit_is_not_read)
{
    static const char head[] = "\x82" BATCH "\x07" UIDS "\xc6\x00\x04\x00\x04"; /* 4 * 65537 */
    const size_t n = sizeof head - 1 + 4 * 65537;
    unsigned char *body = calloc(1, n);
    memcpy(body, head, sizeof head - 1);
    refuse(PL_MSG_ACK, body, n, PL_E_SHAPE, "65537 elements, at most 65536");
    free(body);

    unsigned char text[17 + 504];
    memset(text, 'r', sizeof text);
    memcpy(text, "\x82" CODE "\x01" REASON "\xda\x01\xf8", 17);
    refuse(PL_MSG_REJECT, text, 17 + 504, PL_E_SHAPE, "a string of 504 bytes, at most 503");
}

/* Take a good PROGRESS and change the length of one of its spans. */
Test(walker, spans_that_belong_together_are_equally_long)
{
    static const unsigned char zeros[16];
    pl_bytes b = {0};
    pl_error err = {0};
    const pl_msg m = {.h.type = PL_MSG_PROGRESS,
        .u.progress = {.tokens = {zeros, 2}, .logprobs = {zeros, 2}, .sources = {zeros, 2}}};
    cr_assert_eq(pl_body_encode(&m, &b, &err), PL_OK, "%s", err.msg);
    unsigned char *at = b.data;
    while (memcmp(at, "sources\xc4\x02", 9) != 0) /* the encoder wrote it */
        at++;
    at[8] = 1;
    memmove(at + 10, at + 11, (size_t)(b.data + b.n - (at + 11)));
    refuse(PL_MSG_PROGRESS, b.data, b.n - 1, PL_E_SHAPE, "1 elements beside 2 of 'logprobs'");
    pl_bytes_done(&b);
}
