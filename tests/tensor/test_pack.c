/* Claims tested, for every build that this CPU can run: each element of a packed matrix stands at
 * pl_packed_index, rounded to nearest even, and padding is zero; panel ranges touch their panels
 * only; packed_row gives a row back; transposes pad with zeros and leave other columns alone;
 * rounding and widening are those of tensor.h for every kind of bits. */
#include "tests/tensor/ops_support.h"

#include <stdlib.h>

enum { N_MAX = 100, K_MAX = 140, LD = 150 };

static float source[LD * LD];
static uint16_t source_bf16[LD * LD], packed[2 * LD * LD], other[2 * LD * LD];

static void fill_sources(uint64_t seed)
{
    for (int i = 0; i < LD * LD; i++) {
        source[i] = hostile(&seed, i % 8 == 0 ? ANY_BITS : ORDINARY);
        source_bf16[i] = (uint16_t)next_random(&seed);
    }
    memset(packed, 0xa5, sizeof packed);
}

/* Element (j, i) of the matrix that is being packed: outputs are rows of src (0), columns of src
 * (1), columns of the bf16 src (2). */
static uint16_t element(int kind, int j, int i)
{
    return kind == 0   ? pl_f32_to_bf16(source[j * LD + i])
           : kind == 1 ? pl_f32_to_bf16(source[i * LD + j])
                       : source_bf16[i * LD + j];
}

static void pack(const pl_ops *ops, int kind, int n, int k, int begin, int end)
{
    if (kind == 0)
        ops->pack_nk(packed, source, LD, n, k, begin, end);
    if (kind == 1)
        ops->pack_kn(packed, source, LD, n, k, begin, end);
    if (kind == 2)
        ops->pack_kn_bf16(packed, source_bf16, LD, n, k, begin, end);
}

static void check_packed(const pl_ops *ops, int kind, int n, int k, int begin, int end)
{
    fill_sources((uint64_t)(n * 1000 + k));
    pack(ops, kind, n, k, begin, end);
    const int k_pad = pl_pad32(k);
    for (int j = 0; j < pl_pad32(n); j++)
        for (int i = 0; i < k_pad; i++) {
            const int is_in = j >= 32 * begin && j < 32 * end;
            const uint16_t want = !is_in ? 0xa5a5 : j < n && i < k ? element(kind, j, i) : 0;
            const uint16_t got = packed[pl_packed_index(j, i, k_pad)];
            cr_assert(got == want, "%s kind %d n %d k %d: element %d %d is %04x, not %04x",
                ops->name, kind, n, k, j, i, got, want);
        }
    cr_assert(packed[pl_packed_elements(n, k)] == 0xa5a5, "written past the end");
}

Test(pack, every_element_stands_at_its_index_and_padding_is_zero)
{
    pl_ops ops[3];
    const int n_ops = builds(ops);
    for (int b = 0; b < n_ops; b++)
        for (int kind = 0; kind < 3; kind++)
            for (int n = 1; n <= N_MAX; n += 11)
                for (int k = 1; k <= K_MAX; k += 13)
                    check_packed(&ops[b], kind, n, k, 0, pl_pad32(n) / 32);
}

Test(pack, a_range_of_panels_touches_its_panels_only)
{
    pl_ops ops[3];
    const int n_ops = builds(ops);
    for (int b = 0; b < n_ops; b++)
        for (int kind = 0; kind < 3; kind++)
            for (int begin = 0; begin < 4; begin++)
                for (int end = begin; end <= 4; end++)
                    check_packed(&ops[b], kind, 100, 96, begin, end);
}

Test(pack, the_index_fills_the_matrix_once)
{
    static unsigned char seen[96 * 64];
    for (int j = 0; j < 96; j++)
        for (int i = 0; i < 64; i++)
            seen[pl_packed_index(j, i, 64)]++;
    for (int i = 0; i < 96 * 64; i++)
        cr_assert(seen[i] == 1, "slot %d is used %d times", i, seen[i]);
    cr_assert(pl_packed_index(33, 35, 64) == 6 * 512 + 32 + 2 + 1);
}

Test(pack, packed_row_gives_a_row_back)
{
    pl_ops ops[3];
    const int n_ops = builds(ops);
    float row[K_MAX + 1];
    for (int b = 0; b < n_ops; b++)
        for (int k = 1; k <= K_MAX; k += 9) {
            fill_sources(5);
            ops[b].pack_kn_bf16(packed, source_bf16, LD, 70, k, 0, 3);
            for (int j = 0; j < 70; j++) {
                row[k] = 1234.5f;
                ops[b].packed_row(row, packed, j, k);
                for (int i = 0; i < k; i++) {
                    const float want = pl_bf16_to_f32(source_bf16[i * LD + j]);
                    cr_assert(memcmp(&row[i], &want, sizeof want) == 0, "%s", ops[b].name);
                }
                cr_assert(row[k] == 1234.5f, "%s: written past the end", ops[b].name);
            }
        }
}

/* Both transposes of the columns [begin, end). */
static void check_transposes(const pl_ops *ops, int rows, int begin, int end)
{
    const int padded = pl_pad32(rows), ld = padded + 5;
    fill_sources((uint64_t)rows);
    memset(other, 0xa5, sizeof other);
    ops->transpose(packed, (size_t)ld, source, LD, rows, begin, end);
    ops->transpose_bf16(other, (size_t)ld, source_bf16, LD, rows, begin, end);
    for (int c = 0; c < end + 3; c++)
        for (int r = 0; r < ld; r++) {
            const int is_in = c >= begin && c < end && r < padded;
            const int at = r * LD + c;
            const uint16_t want = !is_in ? 0xa5a5 : r < rows ? pl_f32_to_bf16(source[at]) : 0;
            const uint16_t want_bf16 = !is_in ? 0xa5a5 : r < rows ? source_bf16[at] : 0;
            cr_assert(packed[c * ld + r] == want, "%s: row %d column %d", ops->name, r, c);
            cr_assert(other[c * ld + r] == want_bf16, "%s bf16: row %d column %d", ops->name, r, c);
        }
}

Test(pack, transposes_pad_with_zeros_and_leave_other_columns_alone)
{
    pl_ops ops[3];
    const int n_ops = builds(ops);
    for (int b = 0; b < n_ops; b++)
        for (int rows = 1; rows <= 100; rows += 7)
            for (int begin = 0; begin < 40; begin += 13)
                for (int end = begin; end < 60; end += 11)
                    check_transposes(&ops[b], rows, begin, end);
}

Test(pack, rounding_and_widening_follow_the_header_for_any_bits)
{
    pl_ops ops[3];
    const int n_ops = builds(ops);
    static float x[100003], back[65536];
    static uint16_t y[100003], all[65536];
    uint64_t s = 17;
    for (int i = 0; i < 100003; i++) {
        const uint32_t bits = (uint32_t)next_random(&s);
        memcpy(&x[i], &bits, sizeof bits);
        if (i % 7 == 0)
            x[i] = hostile(&s, TINY);
    }
    for (int i = 0; i < 65536; i++)
        all[i] = (uint16_t)i;
    for (int b = 0; b < n_ops; b++) {
        ops[b].round_bf16(y, x, 100003);
        for (int i = 0; i < 100003; i++)
            cr_assert(y[i] == pl_f32_to_bf16(x[i]), "%s: %a", ops[b].name, (double)x[i]);
        ops[b].widen_bf16(back, all, 65536);
        ops[b].round_bf16(y, back, 65536);
        for (int i = 0; i < 65536; i++) {
            const int is_nan = (i & 0x7fff) > 0x7f80;
            cr_assert(
                y[i] == (is_nan ? i | 0x40 : i), "%s: %04x became %04x", ops[b].name, i, y[i]);
        }
    }
}
