/* rollout/trace_bytes.c - varints and little-endian numbers of a trace's records, out and in. */
#include "rollout/trace_internal.h"

#include <stdlib.h>
#include <string.h>

pl_status trace_reserve(void *array, size_t *room, size_t need, size_t size, pl_error *err)
{
    void *old;

    if (need <= *room)
        return PL_OK;
    memcpy(&old, array, sizeof old); /* array: of any pointer */
    size_t n = *room ? *room : 64;
    while (n < need && n <= SIZE_MAX / 4 / size)
        n *= 2;
    void *p = n < need ? NULL : realloc(old, n * size);
    if (!p)
        return pl_fail(err, PL_E_NOMEM, "trace: no memory for %zu elements of %zu bytes", n, size);
    memcpy(array, &p, sizeof p);
    *room = n;
    return PL_OK;
}

/* ---- out ---- */

void trace_put_bytes(trace_out *o, const void *data, size_t n)
{
    if (o->failed || n == 0)
        return;
    if (n > o->room - o->n && trace_reserve(&o->data, &o->room, o->n + n, 1, NULL) != PL_OK) {
        o->failed = 1;
        return;
    }
    memcpy(o->data + o->n, data, n);
    o->n += n;
}

void trace_put_varint(trace_out *o, uint64_t v)
{
    unsigned char bytes[10];
    size_t n = 0;

    for (; v >= 0x80; v >>= 7)
        bytes[n++] = (unsigned char)(v | 0x80);
    bytes[n++] = (unsigned char)v;
    trace_put_bytes(o, bytes, n);
}

size_t trace_varint_bytes(uint64_t v)
{
    size_t n = 1;
    for (; v >= 0x80; v >>= 7)
        n++;
    return n;
}

void trace_put_fixed(trace_out *o, uint64_t v, int n_bytes)
{
    unsigned char bytes[8];

    for (int i = 0; i < n_bytes; i++)
        bytes[i] = (unsigned char)(v >> (8 * i));
    trace_put_bytes(o, bytes, (size_t)n_bytes);
}

void trace_put_f32(trace_out *o, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    trace_put_fixed(o, bits, 4);
}

void trace_put_f64(trace_out *o, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    trace_put_fixed(o, bits, 8);
}

void trace_put_string(trace_out *o, const char *s, size_t n)
{
    trace_put_varint(o, n);
    trace_put_bytes(o, s, n);
}

/* ---- in ---- */

uint64_t trace_get_varint(trace_in *in, uint64_t max)
{
    uint64_t v = 0;

    for (int shift = 0; shift < 64 && in->p < in->end; shift += 7) {
        const unsigned char byte = *in->p++;
        if (shift == 63 && byte > 1)
            break;
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (byte >= 0x80)
            continue;
        if (v > max || (byte == 0 && shift > 0))
            break;
        return v;
    }
    in->bad = 1;
    in->p = in->end;
    return 0;
}

const unsigned char *trace_get_span(trace_in *in, size_t n)
{
    const unsigned char *at = in->p;

    if (n > (size_t)(in->end - in->p)) {
        in->bad = 1;
        in->p = in->end;
        return NULL;
    }
    in->p += n;
    return at;
}

void trace_get_bytes(trace_in *in, void *out, size_t n)
{
    const unsigned char *at = trace_get_span(in, n);

    if (at)
        memcpy(out, at, n);
    else
        memset(out, 0, n);
}

uint64_t trace_get_fixed(trace_in *in, int n_bytes)
{
    unsigned char bytes[8];
    uint64_t v = 0;

    trace_get_bytes(in, bytes, (size_t)n_bytes);
    for (int i = 0; i < n_bytes; i++)
        v |= (uint64_t)bytes[i] << (8 * i);
    return v;
}

float trace_get_f32(trace_in *in)
{
    const uint32_t bits = (uint32_t)trace_get_fixed(in, 4);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

double trace_get_f64(trace_in *in)
{
    const uint64_t bits = trace_get_fixed(in, 8);
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}
