/* trainer/spot_state.c - the state file of the spot trainer: made, mapped, claimed, flipped. */
#define _GNU_SOURCE
#include "core/file.h"
#include "core/hash.h"
#include "trainer/spot_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char state_magic[8] = "PLSPOT01";

enum { SYNC_TRIES = 8 };

/* ---- layout ---- */

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static size_t array_bytes(const spot_head *h)
{
    return round_up((size_t)h->n_elements * sizeof(float), SPOT_PAGE);
}

static size_t vocab_bytes(const spot_head *h)
{
    return round_up((size_t)h->n_vocab * sizeof(int32_t), SPOT_PAGE);
}

size_t spot_half_bytes(const spot_head *h)
{
    return vocab_bytes(h) + (h->has_average ? 4 : 3) * array_bytes(h);
}

static unsigned char *half_of(const spot_file *f, int half)
{
    return f->base + SPOT_PAGE + (size_t)half * spot_half_bytes(&f->head);
}

int32_t *spot_vocab(const spot_file *f, int half)
{
    return (int32_t *)(void *)half_of(f, half);
}

pl_eagle_state spot_half(const spot_file *f, int half, int64_t step)
{
    unsigned char *p = half_of(f, half) + vocab_bytes(&f->head);
    const size_t n = array_bytes(&f->head);

    return (pl_eagle_state){.weights = (float *)(void *)p,
        .m = (float *)(void *)(p + n),
        .v = (float *)(void *)(p + 2 * n),
        .average = f->head.has_average ? (float *)(void *)(p + 3 * n) : NULL,
        .step = step};
}

static _Atomic uint64_t *record_of(const spot_file *f, int half)
{
    return (_Atomic uint64_t *)(void *)(f->base + SPOT_RECORD + half * SPOT_RECORD_STRIDE);
}

spot_claim *spot_claim_of(const spot_file *f)
{
    return (spot_claim *)(void *)(f->base + SPOT_CLAIM);
}

uint64_t spot_record_crc(const spot_record *r)
{
    return pl_crc32c(0, r, offsetof(spot_record, crc));
}

static void write_record(const spot_file *f, int half, spot_record r)
{
    _Atomic uint64_t *w = record_of(f, half);
    uint64_t words[SPOT_RECORD_WORDS];

    r.crc = spot_record_crc(&r);
    memcpy(words, &r, sizeof words);
    for (int i = 0; i < SPOT_RECORD_WORDS; i++)
        atomic_store_explicit(&w[i], words[i], memory_order_release);
}

/* What stands there is void from now on. */
static void void_record(const spot_file *f, int half)
{
    atomic_store_explicit(record_of(f, half), 0, memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
}

static int read_record(const spot_file *f, int half, spot_record *r)
{
    const _Atomic uint64_t *w = record_of(f, half);
    uint64_t words[SPOT_RECORD_WORDS];

    for (int i = 0; i < SPOT_RECORD_WORDS; i++)
        words[i] = atomic_load_explicit(&w[i], memory_order_acquire);
    memcpy(r, words, sizeof words);
    return r->seq != 0 && r->crc == spot_record_crc(r);
}

int spot_half_is(const spot_file *f, int half, uint64_t seq)
{
    spot_record r;
    return read_record(f, half, &r) && r.seq == seq;
}

int spot_valid(const spot_file *f, spot_record *out)
{
    spot_record r[2];
    int is[2];

    for (int i = 0; i < 2; i++)
        is[i] = read_record(f, i, &r[i]);
    if (!is[0] && !is[1])
        return -1;
    const int half = is[0] && is[1] ? r[1].seq > r[0].seq : is[1];
    *out = r[half];
    return half;
}

void spot_head_fill(spot_head *h, const pl_spot *s, const pl_eagle_shape *shape, size_t n_elements)
{
    *h = (spot_head){.layout = SPOT_LAYOUT,
        .has_average = s->o.train.ema > 0,
        .target = s->o.windows.target,
        .n_elements = n_elements,
        .n_ff = shape->n_ff,
        .n_heads = shape->n_heads,
        .n_kv_heads = shape->n_kv_heads,
        .n_vocab = shape->n_vocab,
        .variant = (shape->no_fc_norm ? 1u : 0) | (shape->raw_output ? 2u : 0)};
    memcpy(h->magic, state_magic, sizeof h->magic);
    h->file_bytes = SPOT_PAGE + 2 * spot_half_bytes(h);
    h->crc = pl_crc32c(0, h, offsetof(spot_head, crc));
}

pl_eagle_shape spot_head_shape(const spot_head *h)
{
    return (pl_eagle_shape){.n_ff = h->n_ff,
        .n_heads = h->n_heads,
        .n_kv_heads = h->n_kv_heads,
        .n_vocab = h->n_vocab,
        .no_fc_norm = (h->variant & 1) != 0,
        .raw_output = (h->variant & 2) != 0};
}

pl_status spot_head_check(
    const spot_head *h, const pl_spot *s, uint64_t file_bytes, const char *path, pl_error *err)
{
    if (memcmp(h->magic, state_magic, sizeof h->magic) != 0 || h->layout != SPOT_LAYOUT ||
        h->crc != pl_crc32c(0, h, offsetof(spot_head, crc)))
        return pl_fail(err, PL_E_FORMAT,
            "'%s' is no state of a drafter's training that this build writes; move it away", path);
    if (h->target != s->o.windows.target)
        return pl_fail(err, PL_E_SHAPE,
            "'%s' is the training of a drafter of another target (%016" PRIx64
            ", this one is %016" PRIx64 "); move it away or use its own model",
            path, h->target, s->o.windows.target);
    if (h->n_vocab < 1 || h->n_vocab > pl_model_arch(s->target)->n_vocab || h->n_elements < 1 ||
        h->n_elements > (uint64_t)1 << 40 || file_bytes != h->file_bytes)
        return pl_fail(err, PL_E_FORMAT,
            "'%s' has %" PRIu64 " bytes, not the %" PRIu64
            " that it names: it is torn; move it away",
            path, file_bytes, h->file_bytes);
    return PL_OK;
}

/* ---- open and make ---- */

void spot_file_close(spot_file *f)
{
    if (f->base)
        (void)munmap(f->base, f->size);
    if (f->fd >= 0)
        (void)close(f->fd);
    *f = (spot_file){.fd = -1};
}

static pl_status map_file(spot_file *f, const char *path, pl_error *err)
{
    void *p = mmap(NULL, f->size, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);

    if (p == MAP_FAILED)
        return pl_fail(err, PL_E_IO, "map '%s': %s", path, strerror(errno));
    f->base = p;
    return PL_OK;
}

pl_status spot_file_open(pl_spot *s, pl_error *err)
{
    const char *path = s->state_path;
    spot_file f = {.fd = open(path, O_RDWR | O_CLOEXEC)};
    spot_record r;
    struct stat info;

    if (f.fd < 0)
        return pl_fail(
            err, errno == ENOENT ? PL_E_NOENT : PL_E_IO, "open '%s': %s", path, strerror(errno));
    pl_status st = PL_OK;
    if (fstat(f.fd, &info) != 0)
        st = pl_fail(err, PL_E_IO, "'%s': %s", path, strerror(errno));
    else if (pread(f.fd, &f.head, sizeof f.head, 0) != (ssize_t)sizeof f.head)
        st = pl_fail(err, PL_E_FORMAT, "'%s' is too short for a state; move it away", path);
    if (st == PL_OK)
        st = spot_head_check(&f.head, s, (uint64_t)info.st_size, path, err);
    if (st == PL_OK && f.head.has_average != (uint32_t)(s->o.train.ema > 0))
        st = pl_fail(err, PL_E_FORMAT,
            "'%s' was trained %s an average of the weights; move it away to go on from the "
            "checkpoint",
            path, f.head.has_average ? "with" : "without");
    if (st == PL_OK && f.head.file_bytes != SPOT_PAGE + 2 * spot_half_bytes(&f.head))
        st = pl_fail(err, PL_E_FORMAT, "'%s' names sizes that do not fit; move it away", path);
    f.size = (size_t)f.head.file_bytes;
    if (st == PL_OK)
        st = map_file(&f, path, err);
    if (st == PL_OK && spot_valid(&f, &r) < 0)
        st = pl_fail(err, PL_E_FORMAT, "'%s': both halves are torn; move it away", path);
    if (st != PL_OK) {
        spot_file_close(&f);
        return st;
    }
    spot_file_close(&s->file);
    s->file = f;
    s->is_begun_anew = 0;
    return PL_OK;
}

/* ---- aside ---- */

int spot_file_has_moved(const pl_spot *s)
{
    struct stat here, mapped;

    return s->file.fd >= 0 && fstat(s->file.fd, &mapped) == 0 &&
           (stat(s->state_path, &here) != 0 || here.st_ino != mapped.st_ino ||
               here.st_dev != mapped.st_dev);
}

void spot_file_forget(pl_spot *s)
{
    (void)spot_job_join(&s->checkpoint.job, NULL); /* it may read from there */
    spot_gate_drop(s);
    spot_file_close(&s->file);
    s->seq = s->vocab_id = 0;
}

static uint64_t boot_id(void)
{
    char id[64];
    const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    const ssize_t n = fd >= 0 ? read(fd, id, sizeof id) : 0;

    if (fd >= 0)
        (void)close(fd);
    return n > 0 ? pl_hash64(id, (size_t)n) : 0;
}

/* It may lack what a power cut took. */
static int is_of_another_boot(const pl_spot *s)
{
    const uint64_t now = boot_id(), then = atomic_load(&spot_claim_of(&s->file)->boot);
    return now && then && now != then;
}

/* PL_OK: it is open and can be gone on with.  PL_E_FORMAT: it cannot. */
static pl_status open_sound(pl_spot *s, pl_error *err)
{
    const pl_status st = s->file.fd < 0 ? spot_file_open(s, err) : PL_OK;
    spot_record r;

    if (st != PL_OK || !is_of_another_boot(s))
        return st;
    const int64_t step = spot_valid(&s->file, &r) < 0 ? 0 : r.step;
    spot_file_forget(s);
    return pl_fail(err, PL_E_FORMAT,
        "'%s', at step %" PRId64 ", was last owned before this machine was started", s->state_path,
        step);
}

static pl_status move_aside(pl_spot *s, const char *why, pl_error *err)
{
    char aside[SPOT_PATH + 16];

    snprintf(aside, sizeof aside, "%s.aside", s->state_path);
    if (rename(s->state_path, aside) != 0)
        return pl_fail(
            err, PL_E_IO, "move '%s' to '%s': %s", s->state_path, aside, strerror(errno));
    pl_log_warn(s->log, "event=drafter_state_aside file='%s': %s", aside, why);
    return PL_OK;
}

pl_status spot_file_open_sound(pl_spot *s, pl_error *err)
{
    pl_error why = {0};
    struct stat here, locked;
    pl_status st = open_sound(s, &why);

    if (st != PL_E_FORMAT)
        return st == PL_OK ? st : pl_fail(err, st, "%s", why.msg);
    /* Another lead may do the same: who has the file's lock looks again. */
    const int fd = open(s->state_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) != 0) {
        st = pl_fail(err,
            errno == ENOENT        ? PL_E_NOENT
            : errno == EWOULDBLOCK ? PL_E_TIMEOUT
                                   : PL_E_IO,
            "lock '%s': %s", s->state_path, strerror(errno));
    } else {
        st = open_sound(s, &why);
        const int is_it = fstat(fd, &locked) == 0 && stat(s->state_path, &here) == 0 &&
                          locked.st_ino == here.st_ino && locked.st_dev == here.st_dev;
        if (st == PL_E_FORMAT && is_it)
            st = move_aside(s, why.msg, err) == PL_OK
                     ? pl_fail(err, PL_E_NOENT, "'%s' was put aside", s->state_path)
                     : PL_E_IO;
        else if (st == PL_E_FORMAT)
            st = pl_fail(err, PL_E_TIMEOUT, "'%s' is being put aside", s->state_path);
        else if (st != PL_OK)
            st = pl_fail(err, st, "%s", why.msg);
    }
    if (fd >= 0)
        (void)close(fd);
    return st;
}

/* ---- made ---- */

/* n elements to where `to` is in the mapping; from NULL: zeros, which a fresh file has.  Written
 * and not copied: pages that faults bring one by one take several times as long. */
static pl_status write_array(
    const spot_file *f, const float *to, const float *from, size_t n, pl_error *err)
{
    const unsigned char *p = (const unsigned char *)from;
    off_t at = to ? (const unsigned char *)to - f->base : 0;
    size_t left = to && from ? n * sizeof *from : 0;

    while (left > 0) {
        const ssize_t done = pwrite(f->fd, p, left, at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return pl_fail(
                err, PL_E_IO, "write the state of a drafter's training: %s", strerror(errno));
        p += done;
        at += done;
        left -= (size_t)done;
    }
    return PL_OK;
}

static pl_status fill_first(
    spot_file *f, const pl_eagle *e, const pl_eagle_state *from, pl_error *err)
{
    const pl_eagle_state to = spot_half(f, 0, from->step);
    const float *weights = from->weights ? from->weights : pl_eagle_get_weights(e);
    const size_t n = (size_t)f->head.n_elements;
    spot_record r = {.seq = 1, .step = from->step, .vocab_id = 1};

    memcpy(r.measured, from->measured, sizeof r.measured);
    memcpy(f->base, &f->head, sizeof f->head);
    memcpy(spot_vocab(f, 0), pl_eagle_vocab(e), (size_t)f->head.n_vocab * sizeof(int32_t));
    pl_status st = write_array(f, to.weights, weights, n, err);
    if (st == PL_OK)
        st = write_array(f, to.m, from->m, n, err);
    if (st == PL_OK)
        st = write_array(f, to.v, from->v, n, err);
    if (st == PL_OK)
        st = write_array(f, to.average, from->average ? from->average : weights, n, err);
    if (st == PL_OK)
        write_record(f, 0, r);
    return st;
}

pl_status spot_file_write(
    const pl_spot *s, const pl_eagle *e, const pl_eagle_state *from, pl_error *err)
{
    const pl_eagle_shape shape = pl_eagle_get_shape(e);
    char temp[SPOT_PATH + 64];
    spot_file f = {.fd = -1};
    pl_status st = PL_OK;

    spot_head_fill(&f.head, s, &shape, pl_eagle_n_elements(e));
    f.size = (size_t)f.head.file_bytes;
    snprintf(temp, sizeof temp, "%s.tmp.%ld.%04x", s->state_path, (long)getpid(), s->mark);
    f.fd = open(temp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f.fd < 0)
        return pl_fail(err, PL_E_IO, "create '%s': %s", temp, strerror(errno));
    /* All of it now: a full disk is an error here, and no signal in the middle of a step. */
    const int code = posix_fallocate(f.fd, 0, (off_t)f.size);
    if (code != 0)
        st = pl_fail(err, PL_E_IO,
            "the drafter's training needs %zu bytes at '%s': %s; free space there", f.size, temp,
            strerror(code));
    if (st == PL_OK)
        st = map_file(&f, temp, err);
    if (st == PL_OK)
        st = fill_first(&f, e, from, err);
    if (st == PL_OK && link(temp, s->state_path) != 0 && errno != EEXIST)
        st = pl_fail(err, PL_E_IO, "make '%s': %s", s->state_path, strerror(errno));
    (void)unlink(temp);
    spot_file_close(&f);
    return st;
}

/* ---- the claim ---- */

static uint64_t own_word(const pl_spot *s)
{
    return s->session << 16 | s->mark;
}

pl_status spot_claim_take(pl_spot *s, pl_error *err)
{
    spot_claim *c = spot_claim_of(&s->file);
    uint64_t now = atomic_load(&c->owner);

    for (;;) {
        if (now == own_word(s))
            return PL_OK;
        if (now >> 16 > s->session)
            return pl_fail(err, PL_E_PEER,
                "drafter training: session %" PRIu64 " owns '%s'; session %" PRIu64 " is over",
                now >> 16, s->state_path, s->session);
        if (now >> 16 == s->session && (now & 0xffff) != 0)
            return pl_fail(err, PL_E_PEER,
                "drafter training: session %" PRIu64 " has another lead already", s->session);
        if (atomic_compare_exchange_weak(&c->owner, &now, own_word(s))) {
            atomic_store(&c->boot, boot_id());
            return PL_OK;
        }
    }
}

pl_status pl_spot_disown(const char *dir, pl_error *err)
{
    char path[SPOT_PATH];
    const uint64_t nobody = 0;
    spot_head h;

    snprintf(path, sizeof path, "%s/state", dir);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? PL_OK : pl_fail(err, PL_E_IO, "'%s': %s", path, strerror(errno));
    pl_status st = PL_OK;
    if (pread(fd, &h, sizeof h, 0) == (ssize_t)sizeof h &&
        memcmp(h.magic, state_magic, sizeof h.magic) == 0 &&
        pwrite(fd, &nobody, sizeof nobody, SPOT_CLAIM + (off_t)offsetof(spot_claim, owner)) !=
            (ssize_t)sizeof nobody)
        st = pl_fail(err, PL_E_IO, "'%s': %s", path, strerror(errno));
    (void)close(fd);
    return st;
}

pl_status spot_claim_check(const pl_spot *s, pl_error *err)
{
    const uint64_t now = atomic_load(&spot_claim_of(&s->file)->owner);

    if (now >> 16 > s->session || (s->is_lead && now != own_word(s)))
        return pl_fail(err, PL_E_PEER,
            "drafter training: session %" PRIu64 " owns the state now; session %" PRIu64 " is over",
            now >> 16, s->session);
    return PL_OK;
}

/* ---- reading ---- */

/* Without weights yet. */
static pl_status make_drafter(pl_spot *s, const spot_record *r, int half, pl_error *err)
{
    const spot_head *h = &s->file.head;
    const pl_eagle_shape shape = spot_head_shape(h);
    pl_eagle_train_options o = s->o.train;
    pl_eagle_trainer *t = NULL;
    pl_eagle *e = NULL;

    o.ema = 0; /* the average is the file's */
    pl_status st = pl_eagle_from(&e, s->target, &shape, spot_vocab(&s->file, half), NULL, err);
    if (st == PL_OK && pl_eagle_n_elements(e) != h->n_elements)
        st = pl_fail(err, PL_E_SHAPE, "'%s' has %" PRIu64 " parameters, its drafter %zu",
            s->state_path, h->n_elements, pl_eagle_n_elements(e));
    if (st == PL_OK)
        st = pl_eagle_trainer_new(&t, e, &o, err);
    if (st == PL_OK && s->n_grads != h->n_elements) {
        free(s->grads);
        s->n_grads = 0;
        s->grads = aligned_alloc(64, round_up((size_t)h->n_elements * sizeof(float), 64));
        if (!s->grads)
            st = pl_fail(err, PL_E_NOMEM, "no memory for the gradients of a drafter");
        else
            s->n_grads = (size_t)h->n_elements;
    }
    if (st != PL_OK) {
        pl_eagle_trainer_free(t);
        pl_eagle_free(e);
        return st;
    }
    pl_eagle_trainer_free(s->t);
    pl_eagle_free(s->e);
    s->e = e;
    s->t = t;
    s->vocab_id = r->vocab_id;
    return PL_OK;
}

pl_status spot_sync(pl_spot *s, pl_error *err)
{
    spot_record r, again;

    for (int i = 0; i < SYNC_TRIES; i++) {
        const int half = spot_valid(&s->file, &r);
        if (half < 0)
            return pl_fail(
                err, PL_E_FORMAT, "'%s': both halves are torn; move it away", s->state_path);
        if (s->e && r.seq == s->seq) {
            pl_eagle_trainer_set_measured(s->t, r.measured); /* without what came to nothing */
            return PL_OK;
        }
        pl_status st = PL_OK;
        s->seq = 0;
        if (!s->e || r.vocab_id != s->vocab_id)
            st = make_drafter(s, &r, half, err);
        if (st == PL_OK)
            st = spot_copy_weights(s, s->e, spot_half(&s->file, half, r.step).weights, err);
        if (!read_record(&s->file, half, &again) || again.seq != r.seq)
            continue; /* it was overwritten while it was copied */
        if (st != PL_OK)
            return st;
        s->seq = r.seq;
        pl_eagle_trainer_set_measured(s->t, r.measured);
        return PL_OK;
    }
    return pl_fail(err, PL_E_TIMEOUT, "drafter training: the state changes faster than it is read");
}

/* ---- writing ---- */

pl_status spot_change_begin(pl_spot *s, spot_change *c, pl_error *err)
{
    if (flock(s->file.fd, LOCK_EX | LOCK_NB) != 0)
        return pl_fail(
            err, PL_E_TIMEOUT, "drafter training: another process is writing '%s'", s->state_path);
    const pl_status st = spot_claim_check(s, err);
    c->from = spot_valid(&s->file, &c->old);
    if (st != PL_OK || c->from < 0 || c->old.seq != s->seq) {
        (void)flock(s->file.fd, LOCK_UN);
        return st != PL_OK ? st
                           : pl_fail(err, PL_E_TIMEOUT,
                                 "drafter training: the lead before finished a step; reading it");
    }
    c->to = 1 - c->from;
    while (atomic_load(&s->checkpoint.job.is_pinned) == 1 + c->to) {
        if (spot_stopped(s)) {
            (void)flock(s->file.fd, LOCK_UN);
            return spot_stop(err);
        }
        spot_sleep(0.0005);
    }
    c->next = c->old;
    c->next.seq = c->old.seq + 1;
    c->next.session = s->session;
    c->src = spot_half(&s->file, c->from, c->old.step);
    c->dst = spot_half(&s->file, c->to, c->old.step);
    void_record(&s->file, c->to);
    if (s->file.head.n_vocab > 0)
        memcpy(spot_vocab(&s->file, c->to), spot_vocab(&s->file, c->from),
            (size_t)s->file.head.n_vocab * sizeof(int32_t));
    return PL_OK;
}

void spot_change_flip(pl_spot *s, spot_change *c)
{
    c->next.step = c->dst.step;
    write_record(&s->file, c->to, c->next);
}

void spot_change_end(pl_spot *s)
{
    (void)flock(s->file.fd, LOCK_UN);
}
