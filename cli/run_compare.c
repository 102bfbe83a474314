/* cli/run_compare.c - the table at the end of a run: the same prompts by each way of drafting, in
 * turn, so that a machine that slows down or warms up does so for all. */
#include "cli/run.h"

#include <string.h>

enum { ROUNDS_MAX = 5, COMPARE_S = 10 };

int run_comparable(const run_batch *eval, int n)
{
    const double each = eval->seconds / eval->n_groups, most = COMPARE_S;

    n = n < eval->n_groups ? n : eval->n_groups;
    if (each * n > most)
        n = (int)(most / each);
    return n > 1 ? n : 1;
}

/* One more round of all arms fits. */
static int is_time_left(const run_comparison *c)
{
    double slowest = 0;

    for (int k = 0; k < c->n_arms; k++)
        slowest = c->arms[k].seconds > slowest ? c->arms[k].seconds : slowest;
    return c->n_rounds < ROUNDS_MAX && slowest * (c->n_rounds + 1) <= COMPARE_S * c->n_rounds;
}

static void add(run_comparison *c, run_arm *a, run_batch *b, run_batch *plain)
{
    a->seconds += b->seconds;
    a->stats.n_accepted += b->stats.n_accepted;
    a->stats.n_verify_steps += b->stats.n_verify_steps;
    if (plain->n == 0) { /* the very first is what the others are held against */
        *plain = *b;
        memset(b, 0, sizeof *b);
        b->n_groups = plain->n_groups;
        c->n_samples = plain->n_groups * plain->n;
        c->n_tokens = plain->n_tokens;
        return;
    }
    const int n = run_batch_differ(plain, b);
    c->n_different = n > c->n_different ? n : c->n_different;
}

pl_status run_compare(run_comparison *c, run_batch *b, int has_learned,
    pl_status (*roll)(void *ctx, pl_speculate how, int round, pl_error *err), void *ctx,
    pl_error *err)
{
    static const pl_speculate learned[RUN_ARMS] = {
        PL_SPECULATE_OFF, PL_SPECULATE_SUFFIX, PL_SPECULATE_FIRST, PL_SPECULATE_ON};
    static const pl_speculate suffix[] = {PL_SPECULATE_OFF, PL_SPECULATE_ON};
    run_batch plain = {0};
    pl_status st = PL_OK;

    memset(c, 0, sizeof *c);
    c->n_arms = has_learned ? RUN_ARMS : 2;
    for (int k = 0; k < c->n_arms; k++)
        c->arms[k].how = has_learned ? learned[k] : suffix[k];
    do {
        for (int k = 0; k < c->n_arms && st == PL_OK; k++) {
            run_arm *a = &c->arms[(k + c->n_rounds) % c->n_arms];
            st = roll(ctx, a->how, c->n_rounds, err);
            if (st == PL_OK)
                add(c, a, b, &plain);
        }
        c->n_rounds++;
    } while (st == PL_OK && is_time_left(c));
    run_batch_done(&plain);
    return st;
}
