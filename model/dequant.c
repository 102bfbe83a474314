/* model/dequant.c - blocks of a model file into fp32.  Source of the layouts: ggml-common.h and
 * ggml-quants.c.  Every formula multiplies first and adds then, each rounded, as ggml does. */
#include "model/files.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { QUANT = 32 }; /* elements of a Q4_0, Q4_1 or Q8_0 block */

static const struct {
    int type;
    const char *name;
    unsigned short n_elements, n_bytes; /* 0: known by name only */
} types[] = {
    {0, "F32", 1, 4},
    {1, "F16", 1, 2},
    {2, "Q4_0", QUANT, 18},
    {3, "Q4_1", QUANT, 20},
    {6, "Q5_0", 0, 0},
    {7, "Q5_1", 0, 0},
    {8, "Q8_0", QUANT, 34},
    {9, "Q8_1", 0, 0},
    {10, "Q2_K", 0, 0},
    {11, "Q3_K", 0, 0},
    {12, "Q4_K", 0, 0},
    {13, "Q5_K", 0, 0},
    {14, "Q6_K", 0, 0},
    {15, "Q8_K", 0, 0},
    {16, "IQ2_XXS", 0, 0},
    {17, "IQ2_XS", 0, 0},
    {18, "IQ3_XXS", 0, 0},
    {19, "IQ1_S", 0, 0},
    {20, "IQ4_NL", 0, 0},
    {21, "IQ3_S", 0, 0},
    {22, "IQ2_S", 0, 0},
    {23, "IQ4_XS", 0, 0},
    {24, "I8", 0, 0},
    {25, "I16", 0, 0},
    {26, "I32", 0, 0},
    {27, "I64", 0, 0},
    {28, "F64", 0, 0},
    {29, "IQ1_M", 0, 0},
    {30, "BF16", 1, 2},
    {34, "TQ1_0", 0, 0},
    {35, "TQ2_0", 0, 0},
    {39, "MXFP4", 0, 0},
};

const char *dequant_type_name(int type)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].type == type)
            return types[i].name;
    return "unknown";
}

int dequant_type_block(int type, size_t *n_elements, size_t *n_bytes)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (types[i].type == type && types[i].n_bytes > 0) {
            *n_elements = types[i].n_elements;
            *n_bytes = types[i].n_bytes;
            return 1;
        }
    }
    return 0;
}

static uint32_t load_u16(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* IEEE half to the bits of the equal float; a half denormal is a normal float. */
static uint32_t half_bits(uint32_t h)
{
    const uint32_t sign = (h & 0x8000) << 16;
    const uint32_t exponent = h >> 10 & 0x1f;
    uint32_t mantissa = h & 0x3ff;

    if (exponent == 0x1f)
        return sign | 0x7f800000 | mantissa << 13;
    if (exponent != 0)
        return sign | (exponent + 112) << 23 | mantissa << 13;
    if (mantissa == 0)
        return sign;
    const uint32_t shift = (uint32_t)__builtin_clz(mantissa) - 21;
    mantissa = mantissa << shift & 0x3ff;
    return sign | (113 - shift) << 23 | mantissa << 13;
}

static void row_q4(const unsigned char *src, size_t n_blocks, int has_min, float *out)
{
    const size_t head = has_min ? 4 : 2;

    for (size_t b = 0; b < n_blocks; b++, src += head + QUANT / 2, out += QUANT) {
        const float d = from_bits(half_bits(load_u16(src)));
        const float m = has_min ? from_bits(half_bits(load_u16(src + 2))) : 0.0f;
        for (int j = 0; j < QUANT / 2; j++) {
            const int low = src[head + j] & 15, high = src[head + j] >> 4;
            out[j] = has_min ? (float)low * d + m : (float)(low - 8) * d;
            out[j + QUANT / 2] = has_min ? (float)high * d + m : (float)(high - 8) * d;
        }
    }
}

static void row_q8(const unsigned char *src, size_t n_blocks, float *out)
{
    for (size_t b = 0; b < n_blocks; b++, src += 2 + QUANT, out += QUANT) {
        const float d = from_bits(half_bits(load_u16(src)));
        for (int j = 0; j < QUANT; j++)
            out[j] = (float)(signed char)src[2 + j] * d;
    }
}

void dequant_row(int type, const unsigned char *src, size_t n, float *out)
{
    uint32_t bits;

    switch (type) {
    case FILES_F32: /* little endian, as every machine that this program is built for */
        memcpy(out, src, n * sizeof *out);
        break;
    case FILES_F16:
        for (size_t i = 0; i < n; i++) {
            bits = half_bits(load_u16(src + 2 * i));
            memcpy(out + i, &bits, sizeof bits);
        }
        break;
    case FILES_BF16:
        for (size_t i = 0; i < n; i++) {
            bits = load_u16(src + 2 * i) << 16;
            memcpy(out + i, &bits, sizeof bits);
        }
        break;
    case FILES_Q4_0:
        row_q4(src, n / QUANT, 0, out);
        break;
    case FILES_Q4_1:
        row_q4(src, n / QUANT, 1, out);
        break;
    case FILES_Q8_0:
        row_q8(src, n / QUANT, out);
        break;
    default:
        break;
    }
}

int dequant_is_finite(const float *v, size_t n)
{
    uint32_t bad = 0;

    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, v + i, sizeof bits);
        bad |= (bits & 0x7f800000) == 0x7f800000;
    }
    return bad == 0;
}

const char *files_quote(char out[FILES_QUOTE], const char *s, size_t n_bytes)
{
    size_t used = 0;

    for (size_t i = 0; i < n_bytes; i++) {
        const unsigned char c = (unsigned char)s[i];
        const int is_plain = c >= 0x20 && c < 0x7f && c != '\\' && c != '\'';
        if (used + 4 + 4 > FILES_QUOTE - 8) {
            memcpy(out + used, "...", 3);
            used += 3;
            break;
        }
        if (is_plain)
            out[used++] = (char)c;
        else
            used += (size_t)snprintf(out + used, 5, "\\x%02x", c);
    }
    out[used] = 0;
    return out;
}
