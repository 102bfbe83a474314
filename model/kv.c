/* model/kv.c - the paged KV cache.
 *
 * A page holds PL_BLOCK logical positions of every layer and KV head, in the packed layout of the
 * products: attention over a page is two small GEMMs.  Pages are counted references: samples of one
 * prompt share its pages, and the last, partly filled one is copied by who writes to it first.
 * A page is cleared when it is handed out, so that its tail holds zeros (NUMERICS 2). */
#include "model/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

static size_t head_elements(const model_dims *d)
{
    return pl_packed_elements(PL_BLOCK, d->d) + pl_packed_elements(d->d, PL_BLOCK);
}

size_t pl_kv_page_bytes(const pl_arch *arch)
{
    const model_dims d = model_dims_of(arch);
    return (size_t)arch->n_layers * (size_t)d.hkv * head_elements(&d) * sizeof(uint16_t);
}

pl_status pl_kv_pool_new(pl_kv_pool **out, const pl_arch *arch, int n_pages, pl_error *err)
{
    pl_kv_pool *p = calloc(1, sizeof *p);
    pl_status st;

    if (!p)
        return pl_fail(err, PL_E_NOMEM, "KV pool: no memory");
    assert(n_pages > 0);
    p->dims = model_dims_of(arch);
    p->n_layers = arch->n_layers;
    p->n_pages = p->n_free = n_pages;
    p->head_elements = head_elements(&p->dims);
    p->page_elements = (size_t)p->n_layers * (size_t)p->dims.hkv * p->head_elements;
    p->free_list = malloc((size_t)n_pages * sizeof *p->free_list);
    p->refs = calloc((size_t)n_pages, sizeof *p->refs);
    if (!p->free_list || !p->refs) {
        st = pl_fail(err, PL_E_NOMEM, "KV pool: no memory for %d pages", n_pages);
        goto fail;
    }
    for (int i = 0; i < n_pages; i++)
        p->free_list[i] = n_pages - 1 - i;
    st = pl_arena_init(
        &p->arena, (size_t)n_pages * p->page_elements * sizeof(uint16_t), "KV pool", err);
    if (st != PL_OK)
        goto fail;
    p->data = pl_arena_alloc(&p->arena, (size_t)n_pages * p->page_elements * sizeof(uint16_t));
    *out = p;
    return PL_OK;

fail:
    pl_kv_pool_free(p);
    return st;
}

void pl_kv_pool_free(pl_kv_pool *pool)
{
    if (!pool)
        return;
    pl_arena_done(&pool->arena);
    free(pool->free_list);
    free(pool->refs);
    free(pool);
}

void pl_kv_pool_prefault(pl_kv_pool *pool)
{
    pl_arena_prefault(&pool->arena);
}

int pl_kv_pool_free_pages(const pl_kv_pool *pool)
{
    return pool->n_free;
}

static uint16_t *page_of(const pl_kv_pool *pool, int page)
{
    return pool->data + (size_t)page * pool->page_elements;
}

static int take_page(pl_kv_pool *pool, const uint16_t *copy_of)
{
    const int page = pool->free_list[--pool->n_free];
    const size_t n_bytes = pool->page_elements * sizeof(uint16_t);

    pool->refs[page] = 1;
    if (copy_of)
        memcpy(page_of(pool, page), copy_of, n_bytes);
    else
        memset(page_of(pool, page), 0, n_bytes);
    return page;
}

static void drop_page(pl_kv_pool *pool, int page)
{
    assert(pool->refs[page] > 0);
    if (--pool->refs[page] == 0)
        pool->free_list[pool->n_free++] = page;
}

pl_status pl_kv_seq_init(pl_kv_seq *s, int max_tokens, pl_error *err)
{
    memset(s, 0, sizeof *s);
    s->max_pages = (max_tokens + PL_BLOCK - 1) / PL_BLOCK;
    s->pages = malloc((size_t)(s->max_pages > 0 ? s->max_pages : 1) * sizeof *s->pages);
    if (!s->pages)
        return pl_fail(err, PL_E_NOMEM, "KV sequence: no memory");
    return PL_OK;
}

void pl_kv_seq_clear(pl_kv_pool *pool, pl_kv_seq *s)
{
    for (int i = 0; i < s->n_pages; i++)
        drop_page(pool, s->pages[i]);
    s->n_pages = s->n_tokens = 0;
}

void pl_kv_seq_done(pl_kv_pool *pool, pl_kv_seq *s)
{
    if (s->pages)
        pl_kv_seq_clear(pool, s);
    free(s->pages);
    memset(s, 0, sizeof *s);
}

void pl_kv_fork(pl_kv_pool *pool, const pl_kv_seq *src, pl_kv_seq *dst)
{
    assert(dst->n_pages == 0 && dst->max_pages >= src->n_pages);
    for (int i = 0; i < src->n_pages; i++) {
        dst->pages[i] = src->pages[i];
        pool->refs[src->pages[i]]++;
    }
    dst->n_pages = src->n_pages;
    dst->n_tokens = src->n_tokens;
}

pl_status pl_kv_reserve(pl_kv_pool *pool, pl_kv_seq *s, int n, pl_error *err)
{
    const int n_pages = (s->n_tokens + n + PL_BLOCK - 1) / PL_BLOCK;
    const int last = s->n_tokens / PL_BLOCK;
    const int copies = n > 0 && s->n_tokens % PL_BLOCK != 0 && pool->refs[s->pages[last]] > 1;
    const int wanted = (n_pages > s->n_pages ? n_pages - s->n_pages : 0) + copies;

    assert(n_pages <= s->max_pages);
    if (wanted > pool->n_free)
        return pl_fail(err, PL_E_NOMEM, "KV pool: %d pages wanted, %d of %d free", wanted,
            pool->n_free, pool->n_pages);
    if (copies) {
        const int shared = s->pages[last];
        s->pages[last] = take_page(pool, page_of(pool, shared));
        drop_page(pool, shared);
    }
    while (s->n_pages < n_pages)
        s->pages[s->n_pages++] = take_page(pool, NULL);
    return PL_OK;
}

uint16_t *kv_k(const pl_kv_pool *pool, int page, int layer, int head)
{
    return page_of(pool, page) +
           ((size_t)layer * (size_t)pool->dims.hkv + (size_t)head) * pool->head_elements;
}

uint16_t *kv_v(const pl_kv_pool *pool, int page, int layer, int head)
{
    return kv_k(pool, page, layer, head) + pl_packed_elements(PL_BLOCK, pool->dims.d);
}

void kv_put(const pl_kv_pool *pool, const pl_kv_seq *s, int position, int layer, int head,
    const uint16_t *k, const uint16_t *v)
{
    const int page = s->pages[position / PL_BLOCK], key = position % PL_BLOCK;
    uint16_t *kp = kv_k(pool, page, layer, head) + pl_packed_index(key, 0, pool->dims.dp);
    uint16_t *vp = kv_v(pool, page, layer, head);

    /* K: element (key, d) stands 1024 per 32 of d, 32 per pair after (key, 0). */
    for (int d = 0; d < pool->dims.d; d++)
        kp[(size_t)(d / 32) * 1024 + (size_t)(d % 32 / 2) * 32 + (size_t)(d % 2)] = k[d];
    for (int d = 0; d < pool->dims.d; d++)
        vp[pl_packed_index(d, key, PL_BLOCK)] = v[d];
}
