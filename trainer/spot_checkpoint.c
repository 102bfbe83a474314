/* trainer/spot_checkpoint.c - the selective checkpoint: what is trained (vocabulary, weights,
 * moments, average), and nothing of the target.
 *
 *     page: head, record, hash of the half | half
 *
 * The half that is valid is not written before the step after the next one, and not at all while
 * the thread copies it: so the training path pays for starting a thread. */
#include "core/file.h"
#include "trainer/spot_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- writing ---- */

static pl_status write_copy(
    const spot_checkpoint *c, const unsigned char *half, size_t n, pl_error *err)
{
    unsigned char page[SPOT_PAGE] = {0};
    const uint64_t hash = pl_hash64(half, n);
    pl_writer *w = NULL;

    memcpy(page, &c->s->file.head, sizeof c->s->file.head);
    memcpy(page + SPOT_CLAIM, &hash, sizeof hash);
    memcpy(page + SPOT_RECORD, &c->record, sizeof c->record);
    pl_status st = pl_writer_open(&w, c->path, err);
    if (st != PL_OK)
        return st;
    st = pl_writer_put(w, page, sizeof page, err);
    if (st == PL_OK)
        st = pl_writer_put(w, half, n, err);
    if (st == PL_OK)
        return pl_writer_commit(w, err);
    pl_writer_abort(w);
    return st;
}

static void *run_checkpoint(void *arg)
{
    spot_checkpoint *c = arg;
    const spot_file *f = &c->s->file;
    const size_t n = spot_half_bytes(&f->head);
    unsigned char *copy = malloc(n);
    pl_error err = {0};
    spot_record now;
    pl_status st = PL_OK;

    if (!copy)
        st = pl_fail(&err, PL_E_NOMEM, "checkpoint '%s': no memory for %zu bytes", c->path, n);
    if (st == PL_OK) {
        memcpy(copy, spot_vocab(f, c->half), n);
        /* Ours is pinned; another process, of a later session, does not know that. */
        if (spot_valid(f, &now) < 0 || now.seq > c->record.seq + 1 ||
            !spot_half_is(f, c->half, c->record.seq))
            st = pl_fail(&err, PL_E_PEER,
                "checkpoint '%s': another session went on while it was copied", c->path);
    }
    atomic_store(&c->job.is_pinned, 0);
    if (st == PL_OK)
        st = write_copy(c, copy, n, &err);
    free(copy);
    spot_job_finish(&c->job, st, &err);
    return NULL;
}

pl_status pl_spot_checkpoint(pl_spot *s, const char *path, pl_error *err)
{
    spot_checkpoint *c = &s->checkpoint;
    const pl_status st = spot_job_join(&c->job, err);

    if (st != PL_OK)
        return st;
    if (s->file.fd < 0)
        return pl_fail(err, PL_E_NOENT, "checkpoint '%s': nothing was trained yet", path);
    if (strlen(path) >= sizeof c->path)
        return pl_fail(err, PL_E_INVAL, "checkpoint '%s': the name is too long", path);
    memcpy(c->path, path, strlen(path) + 1);
    c->s = s;
    c->half = spot_valid(&s->file, &c->record);
    if (c->half < 0)
        return pl_fail(err, PL_E_FORMAT, "'%s': both halves are torn", s->state_path);
    atomic_store(&c->job.is_pinned, 1 + c->half);
    return spot_job_start(&c->job, run_checkpoint, c, err);
}

pl_status pl_spot_checkpoint_wait(pl_spot *s, pl_error *err)
{
    return spot_job_join(&s->checkpoint.job, err);
}

/* ---- reading ---- */

static pl_status read_half(const pl_spot *s, const pl_file *f, pl_error *err)
{
    pl_eagle_shape shape;
    pl_eagle *e = NULL;
    spot_record r;
    spot_head h;
    uint64_t hash;

    if (f->size < SPOT_PAGE)
        return pl_fail(err, PL_E_FORMAT, "'%s' is too short for a checkpoint", f->path);
    memcpy(&h, f->data, sizeof h);
    memcpy(&hash, f->data + SPOT_CLAIM, sizeof hash);
    memcpy(&r, f->data + SPOT_RECORD, sizeof r);
    pl_status st = spot_head_check(&h, s, h.file_bytes, f->path, err);
    if (st != PL_OK)
        return st;
    const size_t n = spot_half_bytes(&h);
    if (f->size != SPOT_PAGE + n || pl_hash64(f->data + SPOT_PAGE, n) != hash ||
        r.crc != spot_record_crc(&r) || r.step < 0)
        return pl_fail(
            err, PL_E_FORMAT, "'%s' does not match its hash: it is torn or damaged", f->path);
    /* A view of the file as if it were a state with this half first. */
    const spot_file view = {.fd = -1, .base = (unsigned char *)(uintptr_t)f->data, .head = h};
    pl_eagle_state state = spot_half(&view, 0, r.step);
    memcpy(state.measured, r.measured, sizeof state.measured);
    shape = spot_head_shape(&h);
    st = pl_eagle_from(&e, s->target, &shape, spot_vocab(&view, 0), NULL, err);
    if (st == PL_OK && pl_eagle_n_elements(e) != h.n_elements)
        st = pl_fail(err, PL_E_SHAPE, "'%s' has %" PRIu64 " parameters, its drafter %zu", f->path,
            h.n_elements, pl_eagle_n_elements(e));
    if (st == PL_OK)
        st = spot_file_write(s, e, &state, err);
    pl_eagle_free(e);
    if (st == PL_OK)
        pl_log_info(s->log, "drafter training goes on from checkpoint '%s', step %" PRId64, f->path,
            r.step);
    return st;
}

static pl_status make_of_checkpoint(spot_aside *a, pl_error *err)
{
    pl_file f = {0};
    pl_status st = pl_file_open(&f, a->path, err);

    if (st != PL_OK)
        return st;
    st = read_half(a->s, &f, err);
    pl_file_close(&f);
    return st;
}

pl_status spot_checkpoint_load(pl_spot *s, const char *path, pl_error *err)
{
    return spot_aside_run(s, &s->starting, make_of_checkpoint, path, err);
}
