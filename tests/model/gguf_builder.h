/* tests/model/gguf_builder.h - GGUF files made in memory, right or wrong on purpose. */
#ifndef PL_TESTS_MODEL_GGUF_BUILDER_H
#define PL_TESTS_MODEL_GGUF_BUILDER_H

#include <stdint.h>
#include <string.h>

enum { BUILDER_SIZE = 1 << 16 };

typedef struct builder {
    unsigned char data[BUILDER_SIZE];
    size_t n;
} builder;

static inline void put(builder *b, const void *p, size_t n)
{
    if (b->n + n <= sizeof b->data)
        memcpy(b->data + b->n, p, n);
    b->n += n;
}

static inline void put_u32(builder *b, uint32_t v)
{
    put(b, &v, sizeof v);
}

static inline void put_u64(builder *b, uint64_t v)
{
    put(b, &v, sizeof v);
}

static inline void put_text(builder *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}

static inline void put_head(builder *b, uint64_t n_tensors, uint64_t n_pairs)
{
    b->n = 0;
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, n_tensors);
    put_u64(b, n_pairs);
}

static inline void put_key_u32(builder *b, const char *key, uint32_t v)
{
    put_text(b, key);
    put_u32(b, 4);
    put_u32(b, v);
}

static inline void put_key_f32(builder *b, const char *key, float v)
{
    put_text(b, key);
    put_u32(b, 6);
    put(b, &v, sizeof v);
}

static inline void put_key_text(builder *b, const char *key, const char *v)
{
    put_text(b, key);
    put_u32(b, 8);
    put_text(b, v);
}

static inline void put_tensor(
    builder *b, const char *name, uint32_t type, uint64_t d0, uint64_t d1, uint64_t offset)
{
    put_text(b, name);
    put_u32(b, 2);
    put_u64(b, d0);
    put_u64(b, d1);
    put_u32(b, type);
    put_u64(b, offset);
}

/* Zeros up to a multiple of 32, where the data section begins. */
static inline void pad(builder *b)
{
    static const unsigned char zero[32];
    put(b, zero, (32 - b->n % 32) % 32);
}

#endif
