/* cli/run_plan.c - how much memory a run will take, said before it is taken. */
#include "cli/run.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Tokenizer, data, responses, automata, code: measured on the quickstart, 60 MB. */
enum { OTHER_BYTES = 60 << 20 };

/* What the kernel would give without swapping: MemAvailable, bounded by the cgroup. */
static size_t memory_available(void)
{
    unsigned long long kib = 0;
    size_t bytes = (size_t)sysconf(_SC_AVPHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    char line[256];
    FILE *f = fopen("/proc/meminfo", "r");

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            bytes = (size_t)kib << 10;
    if (f)
        fclose(f);
    return bytes;
}

/* Of one engine: who serves, and where it is trained the training's state, gradients and
 * activations, drafters for the gate, and the mapped buffer of what is recorded: its pages can be
 * written out, but on a machine that is full they come and go at the pace of the disk. */
static size_t drafter_bytes(const run_config *c, const pl_arch *a, int n_threads)
{
    enum { GATE_COPIES = 4 };
    pl_eagle_train_options o;

    if (!run_has_learned(c))
        return 0;
    if (!c->speculative.train)
        return pl_eagle_plan(a, 0);
    run_drafting_train_options(c, &o);
    return (2 + GATE_COPIES) * pl_eagle_plan(a, 0) + pl_eagle_trainer_plan(a, 0, &o, n_threads) +
           ((size_t)c->speculative.buffer_mb << 20);
}

void run_plan_make(
    const run_config *c, const pl_arch *a, int longest_prompt, int n_threads, run_plan *out)
{
    const size_t available = memory_available();
    const int max_len = longest_prompt + (int)c->data.max_response_length;
    pl_engine_options o;
    pl_trainer_plan t;

    memset(out, 0, sizeof *out);
    run_engine_options(c, max_len, &o);
    out->weights = pl_model_plan(a, 1);
    out->n_workers = (int)c->rollout.num_workers;
    if (out->n_workers == 0) {
        out->passes = pl_engine_plan(a, &o, n_threads);
        out->drafter = drafter_bytes(c, a, n_threads);
    } else /* each has weights of its own, and its share of the threads */
        out->workers =
            (size_t)out->n_workers *
            (pl_model_plan(a, 0) + OTHER_BYTES +
                drafter_bytes(c, a, (n_threads + out->n_workers - 1) / out->n_workers) +
                pl_engine_plan(a, &o, (n_threads + out->n_workers - 1) / out->n_workers));
    const size_t taken = out->weights + out->passes + out->workers + out->drafter + OTHER_BYTES;
    pl_trainer_plan_get(
        a, &c->actor, max_len, n_threads, available > taken ? available - taken : 0, &t);
    out->optimizer = t.masters + t.moments;
    out->gradients = t.gradients;
    out->activations = t.activations;
    out->reference = t.reference;
    out->keep = t.keep;
    out->other = OTHER_BYTES;
    out->total = out->weights + out->optimizer + out->gradients + out->activations +
                 out->reference + out->passes + out->workers + out->drafter + out->other;
}

static void line(FILE *out, const char *what, size_t n, const char *note)
{
    if (n > 0)
        fprintf(out, "  %-26s %8.0f MB  %s\n", what, (double)n / 1e6, note);
}

void run_plan_print(const run_plan *p, FILE *out)
{
    fprintf(out, "memory plan\n");
    line(out, "weights", p->weights, "bf16, packed for the pass and for its gradient");
    line(out, "optimizer", p->optimizer, "fp32 masters and two moments");
    line(out, "gradients", p->gradients, "fp32");
    line(out, "training activations", p->activations,
        p->keep ? "of one micro-batch, every layer kept"
                : "of one micro-batch, layers computed again in the backward");
    line(out, "reference policy", p->reference, "bf16");
    line(out, "rollout engine", p->passes, "KV pages and the workspace of a pass");
    line(out, "learned drafter", p->drafter, "weights, and what its training takes");
    if (p->n_workers > 0) {
        char note[64];
        snprintf(note, sizeof note, "%d of them: weights, KV pages, the workspace of a pass",
            p->n_workers);
        line(out, "rollout workers", p->workers, note);
    }
    line(out, "other", p->other, "tokenizer, data, responses, suffix automata");
    line(out, "total", p->total, "");
    fflush(out);
}

pl_status run_plan_check(const run_plan *p, pl_error *err)
{
    const size_t available = memory_available();

    if (p->total > available)
        return pl_fail(err, PL_E_NOMEM,
            "the run needs %.1f GB, the machine has %.1f GB left: lower "
            "actor_rollout_ref.actor.ppo_max_token_len or actor_rollout_ref.rollout.max_num_seqs",
            (double)p->total / 1e9, (double)available / 1e9);
    return PL_OK;
}
