/* rollout/simulate_worker.c - a worker without an engine: rounds of continuous batching over its
 * leased samples, between them what rollout/worker.c does: hear, report, STATUS, rest or train. */
#include "rollout/simulate_internal.h"

#include <stdlib.h>
#include <string.h>

static const int64_t MS = 1000000;
static const double RATE_S = 2; /* of busy rounds, at most: as worker_samples.c */

void sim_worker_free(sim_worker *w)
{
    free(w->tasks);
    free(w->prompts);
}

/* ---- what is said ---- */

void sim_worker_hello(pl_sim *s, sim_worker *w)
{
    char name[24];
    snprintf(name, sizeof name, "worker-%05d", w->i);
    s->msg.u.hello = (pl_msg_hello){.role = PL_ROLE_WORKER,
        .name = name,
        .numeric_class = "simulation",
        .build = "simulation",
        .host = "sim",
        .n_threads = 1,
        .max_seqs = (uint32_t)s->o.max_num_seqs};
    sim_say(s, w, PL_MSG_HELLO);
}

static void say_status(pl_sim *s, sim_worker *w)
{
    uint32_t running[2048];
    uint32_t n = 0;
    for (int i = 0; i < w->n_tasks && n < 2048; i++)
        running[n++] = w->tasks[i].uid;
    s->msg.u.status = (pl_msg_status){.state = w->version == SIM_NO_VERSION ? PL_WORKER_JOINING
                                               : n                          ? PL_WORKER_BUSY
                                               : w->session                 ? PL_WORKER_TRAINING
                                                                            : PL_WORKER_IDLE,
        .policy_version = w->version,
        .batch = w->batch,
        .rate = w->rate_s > 0 ? (float)(w->rate_tokens / w->rate_s) : 0,
        .running = {running, n},
        .session = w->session};
    w->status_ns = s->now_ns;
    w->is_status_due = 0;
    sim_say(s, w, PL_MSG_STATUS);
}

static void say_result(pl_sim *s, sim_worker *w, const sim_task *t)
{
    const uint32_t n = (uint32_t)t->n;
    s->msg.u.result = (pl_msg_result){.batch = w->batch,
        .uid = t->uid,
        .group = t->uid / (uint32_t)s->recorded->n,
        .policy_version = w->version,
        .finish = PL_FINISH_STOP,
        .tokens = {s->tokens, n},
        .logprobs = {s->logprobs, n},
        .sources = {s->sources, n},
        .temperature = 1,
        .worker = ""};
    sim_say(s, w, PL_MSG_RESULT);
}

static void say_progress(pl_sim *s, sim_worker *w, const sim_task *t)
{
    const uint32_t n = (uint32_t)t->n;
    s->msg.u.progress = (pl_msg_progress){.batch = w->batch,
        .uid = t->uid,
        .policy_version = w->version,
        .tokens = {s->tokens, n},
        .logprobs = {s->logprobs, n},
        .sources = {s->sources, n}};
    sim_say(s, w, PL_MSG_PROGRESS);
}

/* ---- its samples ---- */

static int find(const sim_worker *w, uint32_t uid)
{
    for (int i = 0; i < w->n_tasks; i++)
        if (w->tasks[i].uid == uid)
            return i;
    return -1;
}

static void drop(sim_worker *w, int i)
{
    w->prompts[w->tasks[i].prompt].n_live--;
    memmove(&w->tasks[i], &w->tasks[i + 1], (size_t)(--w->n_tasks - i) * sizeof w->tasks[0]);
}

static void drop_all(sim_worker *w)
{
    while (w->n_tasks > 0)
        drop(w, w->n_tasks - 1);
}

/* The place of a prompt that siblings share; -1: no memory. */
static int share_prompt(pl_sim *s, sim_worker *w, uint32_t uid)
{
    const uint32_t group = uid / (uint32_t)s->recorded->n;
    int free_at = w->n_prompts;
    for (int i = 0; i < w->n_prompts; i++) {
        if (w->prompts[i].n_live && w->prompts[i].group == group)
            return i;
        if (!w->prompts[i].n_live)
            free_at = i;
    }
    if (free_at == w->n_prompts) {
        s->status = sim_grow(
            (void **)&w->prompts, w->n_prompts, &w->room_prompts, sizeof *w->prompts, &s->err);
        if (s->status != PL_OK)
            return -1;
        w->n_prompts++;
    }
    w->prompts[free_at] = (sim_prompt){.group = group,
        .left = (int)s->recorded->n_prompt[group % (uint32_t)s->recorded->n_groups]};
    return free_at;
}

static void take_lease(pl_sim *s, sim_worker *w, const sim_note *n)
{
    if (n->version != w->version || n->uid >= (uint32_t)s->n_samples || n->batch != s->step)
        return;
    if (n->batch != w->batch)
        drop_all(w);
    w->batch = n->batch;
    if (find(w, n->uid) >= 0)
        return;
    s->status = sim_grow((void **)&w->tasks, w->n_tasks, &w->room_tasks, sizeof *w->tasks, &s->err);
    const int prompt = s->status == PL_OK ? share_prompt(s, w, n->uid) : -1;
    if (prompt < 0)
        return;
    w->prompts[prompt].n_live++;
    w->tasks[w->n_tasks++] = (sim_task){.uid = n->uid,
        .prompt = prompt,
        .n = (int)n->prefix,
        .own_left = n->prefix > 1 ? (int)n->prefix - 1 : 0};
    w->is_status_due = 1;
}

/* ---- what is heard ---- */

static void leave_session(pl_sim *s, sim_worker *w)
{
    if (w->mode == SIM_TRAINING)
        sim_set_mode(s, w, SIM_IDLE);
    if (w->session)
        w->is_status_due = 1;
    w->session = 0;
    w->is_lead = 0;
}

static void hand_over(pl_sim *s, sim_worker *w, const sim_note *n)
{
    const int i = n->batch == w->batch ? find(w, n->uid) : -1;
    w->is_status_due = 1;
    if (i < 0)
        return;
    if (w->tasks[i].n > 0)
        say_progress(s, w, &w->tasks[i]);
    drop(w, i);
}

static void hear(pl_sim *s, sim_worker *w, const sim_note *n)
{
    int i;
    switch (n->type) {
    case PL_MSG_WELCOME:
        s->n_joined += !w->is_joined;
        w->is_joined = w->is_status_due = 1;
        break;
    case PL_MSG_VERSION:
        if (n->version == w->version)
            break;
        drop_all(w);
        leave_session(s, w);
        w->version = n->version;
        w->is_status_due = 1;
        break;
    case PL_MSG_LEASE:
        take_lease(s, w, n);
        break;
    case PL_MSG_REVOKE:
        i = n->batch == w->batch ? find(w, n->uid) : -1;
        if (i >= 0)
            drop(w, i);
        w->is_status_due = 1;
        break;
    case PL_MSG_HANDOVER:
        hand_over(s, w, n);
        break;
    case PL_MSG_TRAIN:
        if (w->n_tasks || n->version != w->version)
            break;
        w->is_status_due |= w->session != n->session;
        if (w->session != n->session || w->is_lead != n->is_lead)
            leave_session(s, w);
        w->session = n->session;
        w->is_lead = n->is_lead;
        break;
    case PL_MSG_HALT:
        if (n->session >= w->session)
            leave_session(s, w);
        w->is_status_due = 1;
        break;
    default:
        break;
    }
}

/* ---- rounds ---- */

static int is_decoding(const sim_worker *w, const sim_task *t)
{
    return w->prompts[t->prompt].left == 0 && t->own_left == 0;
}

typedef struct sim_pass {
    double n_rows, n_drafted;
    int n_emitted, rows_left;
} sim_pass;

/* The first token comes with the prompt, without a row; then a row and its draft. */
static void decode(pl_sim *s, sim_task *t, int n_running, sim_pass *p)
{
    const int n_total = s->records[t->uid % (uint32_t)s->n_recorded].n_tokens;
    double drafted = 0;
    if (t->n == 0)
        t->next = 1;
    if (t->next < n_total) {
        t->next += sim_emit(s, t->uid, t->next, n_running, &drafted);
        p->n_rows += 1 + drafted;
        p->n_drafted += drafted;
    }
    if (t->next > n_total)
        t->next = n_total;
    p->n_emitted += t->next - t->n;
}

static void prefill(sim_worker *w, sim_task *t, sim_pass *p)
{
    sim_prompt *prompt = &w->prompts[t->prompt];
    int *planned = prompt->left > 0 ? &prompt->planned : &t->planned;
    const int left = prompt->left > 0 ? prompt->left : t->own_left;
    if (*planned || p->rows_left < 1)
        return;
    *planned = left < p->rows_left ? left : p->rows_left;
    p->rows_left -= *planned;
    p->n_rows += *planned;
}

static void begin_round(pl_sim *s, sim_worker *w)
{
    sim_pass p = {.rows_left = s->o.max_rows};
    int n_running = 0;
    for (int i = 0; i < w->n_tasks; i++) {
        w->tasks[i].next = w->tasks[i].n;
        w->tasks[i].planned = 0;
        n_running += is_decoding(w, &w->tasks[i]);
    }
    p.rows_left -= n_running;
    for (int i = 0; i < w->n_tasks; i++) {
        sim_task *t = &w->tasks[i];
        if (is_decoding(w, t))
            decode(s, t, n_running, &p);
        else
            prefill(w, t, &p);
    }
    const double seconds = sim_round_seconds(s, p.n_rows, p.n_drafted, p.n_emitted);
    w->rate_s += seconds;
    w->rate_tokens += p.n_emitted;
    if (w->rate_s > RATE_S) {
        w->rate_s /= 2;
        w->rate_tokens /= 2;
    }
    w->is_in_round = 1;
    w->n_rounds++;
    s->out->n_rows += p.n_rows;
    s->out->n_drafted += p.n_drafted;
    s->out->n_emitted += p.n_emitted;
    sim_set_mode(s, w, SIM_BUSY);
    sim_plan(s, w, s->now_ns + 1 + (int64_t)(seconds * 1e9));
}

static void end_round(pl_sim *s, sim_worker *w)
{
    w->is_in_round = 0;
    w->worked_ns = s->moved_ns = s->now_ns;
    for (int i = 0; i < w->n_prompts; i++) {
        w->prompts[i].left -= w->prompts[i].planned;
        w->prompts[i].planned = 0;
    }
    for (int i = 0; i < w->n_tasks; i++) {
        w->tasks[i].n = w->tasks[i].next;
        w->tasks[i].own_left -= w->tasks[i].planned;
    }
}

/* Results of what is done, all of them before anything new is heard. */
static void report(pl_sim *s, sim_worker *w)
{
    for (int i = 0; i < w->n_tasks;) {
        const sim_task t = w->tasks[i];
        if (t.n < s->records[t.uid % (uint32_t)s->n_recorded].n_tokens) {
            i++;
            continue;
        }
        drop(w, i);
        w->is_status_due = 1;
        say_result(s, w, &t);
    }
}

/* ---- between two rounds ---- */

static void rest(pl_sim *s, sim_worker *w)
{
    const int64_t wait_ms = w->is_status_due ? SIM_STATUS_MS : (int64_t)s->o.heartbeat_ms;
    const int64_t due_ns = w->status_ns + wait_ms * MS;
    sim_set_mode(s, w, w->session && s->out ? SIM_TRAINING : SIM_IDLE);
    sim_plan(s, w, due_ns > s->now_ns ? due_ns : s->now_ns + wait_ms * MS);
}

void sim_worker_wake(pl_sim *s, sim_worker *w)
{
    sim_note n;
    w->is_waking = 0;
    if (w->is_in_round) {
        end_round(s, w);
        report(s, w);
    }
    while (s->status == PL_OK && sim_take(s, &w->inbox, &n))
        hear(s, w, &n);
    if (w->n_tasks && w->session)
        leave_session(s, w); /* without a word: STATUS says it */
    const int64_t age = s->now_ns - w->status_ns;
    if (w->is_joined && age >= (w->is_status_due ? SIM_STATUS_MS : (int64_t)s->o.heartbeat_ms) * MS)
        say_status(s, w);
    if (s->status != PL_OK)
        return;
    if (w->n_tasks && s->out)
        begin_round(s, w);
    else
        rest(s, w);
}
