/* drafter/eagle_resume.c - the trainer's state as a file beside its drafter: moments, average,
 * step and what was measured, each array with its hash. */
#include "drafter/eagle_layout.h"
#include "drafter/eagle_trainer.h"

#include <string.h>

typedef struct state_header {
    char magic[8];
    uint64_t n_elements;
    int64_t step;
    uint64_t has_average;
    uint64_t hash[3]; /* of m, v, average */
    double measured[PL_EAGLE_DEPTH_MAX];
} state_header;

static const char state_magic[8] = "PLEAGLE2";

static state_header header_of(const pl_eagle_trainer *t)
{
    const size_t n = t->e->n_elements * sizeof(float);
    state_header h = {.n_elements = t->e->n_elements,
        .step = t->step,
        .has_average = t->average != NULL,
        .hash = {
            pl_hash64(t->m, n), pl_hash64(t->v, n), t->average ? pl_hash64(t->average, n) : 0}};

    memcpy(h.magic, state_magic, sizeof h.magic);
    memcpy(h.measured, t->measured, sizeof h.measured);
    return h;
}

pl_status pl_eagle_trainer_save(const pl_eagle_trainer *t, const char *path, pl_error *err)
{
    const state_header h = header_of(t);
    const size_t n = t->e->n_elements * sizeof(float);
    pl_writer *w;
    pl_status st = pl_writer_open(&w, path, err);

    if (st != PL_OK)
        return st;
    st = pl_writer_put(w, &h, sizeof h, err);
    if (st == PL_OK)
        st = pl_writer_put(w, t->m, n, err);
    if (st == PL_OK)
        st = pl_writer_put(w, t->v, n, err);
    if (st == PL_OK && t->average)
        st = pl_writer_put(w, t->average, n, err);
    return eagle_finish(w, st, err);
}

static pl_status check_state(const pl_eagle_trainer *t, const pl_file *f, pl_error *err)
{
    const size_t n = t->e->n_elements * sizeof(float);
    state_header h;

    if (f->size < sizeof h || memcmp(f->data, state_magic, sizeof h.magic) != 0)
        return pl_fail(err, PL_E_FORMAT,
            "it is no state of a drafter's training that this build writes, or it is damaged: move "
            "it away");
    memcpy(&h, f->data, sizeof h);
    if (h.n_elements != t->e->n_elements || h.has_average != (t->average != NULL))
        return pl_fail(err, PL_E_SHAPE, "%llu parameters %s average; this drafter has %zu, %s",
            (unsigned long long)h.n_elements, h.has_average ? "with" : "without", t->e->n_elements,
            t->average ? "with" : "without");
    const size_t n_arrays = h.has_average ? 3 : 2;
    if (f->size != sizeof h + n_arrays * n || h.step < 0)
        return pl_fail(err, PL_E_FORMAT, "%zu bytes, expected %zu: it is torn", f->size,
            sizeof h + n_arrays * n);
    for (size_t i = 0; i < n_arrays; i++)
        if (pl_hash64(f->data + sizeof h + i * n, n) != h.hash[i])
            return pl_fail(err, PL_E_FORMAT, "array %zu does not match its hash", i);
    for (int k = 0; k < PL_EAGLE_DEPTH_MAX; k++)
        if (!(h.measured[k] >= 0 && h.measured[k] <= 1.001))
            return pl_fail(err, PL_E_FORMAT, "acceptance of depth %d is %g", k + 1, h.measured[k]);
    return PL_OK;
}

pl_status pl_eagle_trainer_load(pl_eagle_trainer *t, const char *path, pl_error *err)
{
    const size_t n = t->e->n_elements * sizeof(float);
    pl_file f = {0};
    state_header h;
    pl_status st = pl_file_open(&f, path, err);

    if (st != PL_OK)
        return st;
    st = check_state(t, &f, err);
    if (st == PL_OK) {
        memcpy(&h, f.data, sizeof h);
        t->step = h.step;
        memcpy(t->measured, h.measured, sizeof t->measured);
        memcpy(t->m, f.data + sizeof h, n);
        memcpy(t->v, f.data + sizeof h + n, n);
        if (t->average)
            memcpy(t->average, f.data + sizeof h + 2 * n, n);
    }
    pl_file_close(&f);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "'%s'", path);
}
