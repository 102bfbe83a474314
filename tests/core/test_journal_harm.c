/* Claims: any changed bit, missing tail, lost or added byte, foreign, doubled, dropped or moved
 * block is found and placed, and no changed record is handed out; only a torn tail is cut, and that
 * is told.  How: a small journal is harmed in every possible place. */
#define _GNU_SOURCE
#include "tests/core/journal_bed.h"

#include <fcntl.h>

TestSuite(journal_harm, .init = enter, .fini = leave, .timeout = 120);

enum { N_BLOCKS = 4 };

/* A journal of four blocks in memory, as hostile hands get it. */
typedef struct small {
    unsigned char *bytes;
    size_t n;
    size_t begin[N_BLOCKS + 1];     /* byte where a block begins; the last: the end */
    size_t n_records[N_BLOCKS + 1]; /* before that block */
    list records;
} small;

/* Blocks of equal sizes for any uid, so that they could stand in each other's place. */
static void make_small(small *s, const char *path, int uid)
{
    pl_journal *j = open_new(path, uid);
    unsigned char data[40];

    memset(s, 0, sizeof *s);
    for (int i = 0; i < N_BLOCKS; i++) {
        s->begin[i] = (size_t)pl_journal_size(j);
        s->n_records[i] = s->records.n;
        memset(data, 16 * uid + i, sizeof data);
        put(j, &s->records, 7, data, sizeof data);
        put(j, &s->records, 300, data, 0);
        put(j, &s->records, 2, data, 5);
        cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
    }
    s->begin[N_BLOCKS] = (size_t)pl_journal_size(j);
    s->n_records[N_BLOCKS] = s->records.n;
    pl_journal_close(j);
    cr_assert_eq(pl_file_read((char **)&s->bytes, &s->n, path, 1 << 20, NULL), PL_OK);
    cr_assert_eq(s->n, s->begin[N_BLOCKS]);
}

/* As pl_file_write, without its fsyncs: there are thousands of calls. */
static void write_raw(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");

    cr_assert_not_null(f);
    cr_assert_eq(fwrite(bytes, 1, n, f), n);
    cr_assert_eq(fclose(f), 0);
}

/* The file of these bytes is damaged at block i: the reader says so and hands out what is before
 * it; the writer refuses and changes nothing. */
static void check_damaged(const small *s, const unsigned char *bytes, size_t n, int i)
{
    const pl_journal_options o = options(1);
    pl_journal_report report;
    pl_journal *j = NULL;
    pl_error err = {0};
    list got = {0};
    char place[64];

    write_raw("harmed", bytes, n);
    snprintf(place, sizeof place, "'harmed': block %d at byte %zu ", i, s->begin[i]);
    cr_assert_eq(pl_journal_read("harmed", KIND, hear, &got, &report, &err), PL_E_FORMAT);
    cr_assert(strstr(err.msg, place), "%s", err.msg);
    cr_assert_eq(report.state, PL_JOURNAL_DAMAGED);
    cr_assert(report.bad_offset == s->begin[i] && report.bad_seq == (uint64_t)i);
    check_prefix(&got, &s->records, s->n_records[i]);
    cr_assert_eq(pl_journal_open(&j, "harmed", &o, NULL, NULL, &report, &err), PL_E_FORMAT);
    cr_assert(strstr(err.msg, place), "%s", err.msg);
    check_bytes("harmed", bytes, n);
}

Test(journal_harm, an_unknown_critical_record_is_the_readers_to_refuse)
{
    static small s;
    list got = {.refused = 7};
    pl_error err = {0};

    make_small(&s, "x", 1);
    cr_assert_eq(pl_journal_read("x", KIND, hear, &got, NULL, &err), PL_E_FORMAT);
    cr_assert(strstr(err.msg, "record of type 7 in block 0 at byte 64: critical"), "%s", err.msg);
    check_bytes("x", s.bytes, s.n);
    got = (list){.refused = 2}; /* optional: handed out */
    cr_assert_eq(pl_journal_read("x", KIND, hear, &got, NULL, &err), PL_OK);
    check_prefix(&got, &s.records, s.records.n);
    free(s.bytes);
}

/* Each bit, and all bits of each byte. */
Test(journal_harm, any_flipped_bit_is_found_in_its_block)
{
    static small s;

    make_small(&s, "x", 1);
    const int fd = open("x", O_WRONLY | O_CLOEXEC);
    for (size_t at = 0; at < s.n; at++) {
        int block = 0; /* also of the superblock: nothing is handed out */
        while (at >= s.begin[block + 1])
            block++;
        const uint64_t begin = at < JOURNAL_SUPER ? 0 : s.begin[block];
        for (int bit = 0; bit <= 8; bit++) {
            const unsigned char harmed = s.bytes[at] ^ (unsigned char)(bit < 8 ? 1 << bit : 255);
            pl_journal_report report;
            list got = {0};
            cr_assert_eq(pwrite(fd, &harmed, 1, (off_t)at), 1);
            const pl_status st = pl_journal_read("x", KIND, hear, &got, &report, NULL);
            cr_assert_neq(report.state, PL_JOURNAL_WHOLE, "byte %zu, bit %d", at, bit);
            cr_assert_eq(st, report.state == PL_JOURNAL_TORN ? PL_OK : PL_E_FORMAT);
            if (block < N_BLOCKS - 1)
                cr_assert_eq(report.state, PL_JOURNAL_DAMAGED, "byte %zu, bit %d", at, bit);
            cr_assert_eq(report.bad_offset, begin, "byte %zu, bit %d", at, bit);
            check_prefix(&got, &s.records, s.n_records[block]);
        }
        cr_assert_eq(pwrite(fd, &s.bytes[at], 1, (off_t)at), 1);
    }
    (void)close(fd);
    free(s.bytes);
}

Test(journal_harm, a_byte_lost_or_added_before_the_last_block_is_damage)
{
    static small s;
    unsigned char bytes[1024];

    make_small(&s, "x", 1);
    for (size_t at = JOURNAL_SUPER; at < s.begin[N_BLOCKS - 1]; at++) {
        int block = 0;
        while (at >= s.begin[block + 1])
            block++;
        memcpy(bytes, s.bytes, at);
        memcpy(bytes + at, s.bytes + at + 1, s.n - at - 1);
        check_damaged(&s, bytes, s.n - 1, block);
        bytes[at] = (unsigned char)~s.bytes[at];
        memcpy(bytes + at + 1, s.bytes + at, s.n - at);
        check_damaged(&s, bytes, s.n + 1, block);
    }
    free(s.bytes);
}

Test(journal_harm, a_journal_cut_anywhere_reads_as_whole_blocks_and_goes_on)
{
    static small s;
    const pl_journal_options o = options(2);

    make_small(&s, "x", 1);
    for (size_t n = 0; n <= s.n; n++) {
        pl_journal_report report;
        pl_journal *j = NULL;
        list all = s.records, got = {0};
        int k = 0; /* whole blocks */
        while (k < N_BLOCKS && n >= s.begin[k + 1])
            k++;
        const size_t whole = n < JOURNAL_SUPER ? 0 : s.begin[k];

        write_raw("cut", s.bytes, n);
        cr_assert_eq(pl_journal_read("cut", KIND, hear, &got, &report, NULL), PL_OK);
        const int is_clean = n == whole && n > 0;
        cr_assert_eq(report.state, is_clean ? PL_JOURNAL_WHOLE : PL_JOURNAL_TORN, "cut at %zu", n);
        cr_assert(report.torn_bytes == n - whole && report.n_bytes == whole);
        cr_assert(is_clean || (report.bad_offset == whole && report.bad_seq == (uint64_t)k));
        check_prefix(&got, &s.records, s.n_records[k]);
        check_bytes("cut", s.bytes, n);

        got.n = 0;
        cr_assert_eq(pl_journal_open(&j, "cut", &o, hear, &got, &report, NULL), PL_OK);
        check_prefix(&got, &s.records, s.n_records[k]);
        cr_assert_eq(report.torn_bytes, n - whole);
        cr_assert_eq(report.is_remade, n < JOURNAL_SUPER);
        cr_assert_eq(report.run_uid[0], n < JOURNAL_SUPER ? 2 : 1);
        all.n = s.n_records[k];
        put(j, &all, 9, "after", 5);
        cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
        pl_journal_close(j);
        got.n = 0;
        cr_assert_eq(pl_journal_read("cut", KIND, hear, &got, &report, NULL), PL_OK);
        check_prefix(&got, &all, all.n);
        cr_assert(report.state == PL_JOURNAL_WHOLE && report.n_blocks == (uint64_t)k + 1);
    }
    free(s.bytes);
}

/* bytes = superblock and blocks of s in this order, -1 ends it. */
static size_t arrange(unsigned char *bytes, const small *s, const int *order)
{
    size_t n = JOURNAL_SUPER;

    memcpy(bytes, s->bytes, n);
    for (; *order >= 0; order++) {
        const size_t length = s->begin[*order + 1] - s->begin[*order];
        memcpy(bytes + n, s->bytes + s->begin[*order], length);
        n += length;
    }
    return n;
}

Test(journal_harm, blocks_doubled_swapped_or_dropped_are_damage_where_the_order_breaks)
{
    static small s;
    unsigned char bytes[1024];
    static const struct {
        int order[7], bad;
    } cases[] = {
        {{0, 1, 1, 2, 3, -1}, 2},
        {{0, 1, 2, 3, 3, -1}, 4}, /* at the end: whole, so not torn */
        {{0, 2, 1, 3, -1}, 1},
        {{0, 1, 3, 2, -1}, 2},
        {{1, 0, 2, 3, -1}, 0},
        {{1, 2, 3, -1}, 0},
        {{0, 1, 3, -1}, 2},
    };

    make_small(&s, "x", 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const size_t n = arrange(bytes, &s, cases[i].order);
        check_damaged(&s, bytes, n, cases[i].bad);
    }
    free(s.bytes);
}

Test(journal_harm, a_block_of_another_journal_is_damage_in_any_place)
{
    static small s, other;
    unsigned char bytes[1024];

    make_small(&s, "x", 1);
    make_small(&other, "y", 2);
    cr_assert_eq(s.n, other.n);
    for (int i = 0; i < N_BLOCKS; i++) {
        memcpy(bytes, s.bytes, s.n);
        memcpy(bytes + s.begin[i], other.bytes + s.begin[i], s.begin[i + 1] - s.begin[i]);
        check_damaged(&s, bytes, s.n, i);
        check_damaged(&s, bytes, s.begin[i + 1], i); /* as the last one */
    }
    memcpy(bytes, other.bytes, JOURNAL_SUPER); /* and a superblock */
    memcpy(bytes + JOURNAL_SUPER, s.bytes + JOURNAL_SUPER, s.n - JOURNAL_SUPER);
    check_damaged(&s, bytes, s.n, 0);
    free(s.bytes);
    free(other.bytes);
}

Test(journal_harm, records_that_do_not_parse_are_damage_and_none_of_their_block_is_handed_out)
{
    static small s;
    static const struct {
        unsigned char bytes[10];
        size_t n;
    } cases[] = {
        {{2, 0, 2}, 3},                                  /* no length */
        {{2, 0, 2, 2, 1}, 5},                            /* data behind the end */
        {{2, 0, 0x82}, 3},                               /* varint without an end */
        {{2, 0, 0x82, 0, 0}, 5},                         /* longer than it needs to be */
        {{2, 0, 0xff, 0xff, 0xff, 0xff, 0x10, 0}, 8},    /* more than 32 bits */
        {{2, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0}, 9}, /* six bytes */
        {{2, 0, 2, 0xff, 0xff, 0xff, 0xff, 0x0f}, 8},    /* 4 GiB of data */
    };
    unsigned char bytes[2048], head[PL_HASH_BYTES];

    make_small(&s, "x", 1);
    memcpy(bytes, s.bytes, s.n);
    pl_hash256(head, s.bytes + s.begin[3], s.n - s.begin[3]);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        memcpy(bytes + s.n + JOURNAL_HEADER, cases[i].bytes, cases[i].n);
        const size_t n = journal_close_block(bytes + s.n, cases[i].n, 4, 0, head);
        check_damaged(&s, bytes, s.n + n, 4);
    }
    free(s.bytes);
}

Test(journal_harm, a_block_that_continues_the_chain_under_another_number_is_damage)
{
    static small s;
    unsigned char bytes[2048], head[PL_HASH_BYTES];

    make_small(&s, "x", 1);
    memcpy(bytes, s.bytes, s.n);
    pl_hash256(head, s.bytes + s.begin[3], s.n - s.begin[3]);
    memcpy(bytes + s.n + JOURNAL_HEADER, "\2\1a", 3);
    const size_t n = journal_close_block(bytes + s.n, 3, 5, 0, head);
    check_damaged(&s, bytes, s.n + n, 4);
    free(s.bytes);
}

/* A header that is gone hides its length: how much lies behind it decides. */
Test(journal_harm, a_lost_header_of_a_full_block_is_torn_at_the_end_and_damage_before)
{
    unsigned char *data = calloc(1, PL_JOURNAL_RECORD_MAX);
    pl_journal *j = open_new("x", 1);
    const size_t begin = (size_t)pl_journal_size(j);
    pl_journal_report report;
    size_t end = 0, n = 0;
    char *bytes = NULL;

    for (int i = 0; i < 2; i++) {
        put(j, NULL, 2, data, PL_JOURNAL_RECORD_MAX);
        cr_assert_eq(pl_journal_sync(j, NULL), PL_OK);
        end = i == 0 ? (size_t)pl_journal_size(j) : end;
    }
    pl_journal_close(j);
    cr_assert_eq(pl_file_read(&bytes, &n, "x", 4 << 20, NULL), PL_OK);
    memset(bytes + begin, 0, JOURNAL_HEADER);
    write_raw("y", bytes, n);
    cr_assert_eq(pl_journal_read("y", KIND, NULL, NULL, &report, NULL), PL_E_FORMAT);
    cr_assert(report.state == PL_JOURNAL_DAMAGED && report.bad_offset == begin);
    write_raw("y", bytes, end);
    cr_assert_eq(pl_journal_read("y", KIND, NULL, NULL, &report, NULL), PL_OK);
    cr_assert(report.state == PL_JOURNAL_TORN && report.torn_bytes == end - begin);
    free(bytes);
    free(data);
}
