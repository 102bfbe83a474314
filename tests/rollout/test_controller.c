/* Claims tested: the chosen rows are closed under parents and within the rows that are left; steep
 * pass times turn drafting off and flat ones take all (DRAFTING G3); the best prefix is the optimum
 * over all closed sets (G2); predicted times are monotone; acceptance is learnt from labels.  The
 * learned drafter drafts where it pays and keeps what it promises, is left alone where not, and
 * found out again when it became better; what it costs and promises decides how deep. */
#include "core/rng.h"
#include "rollout/controller.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static controller make(pl_controller_kind kind)
{
    controller c;
    pl_engine_options o;
    pl_engine_defaults(&o);
    o.controller = kind;
    o.max_spec_rows = 32;
    cr_assert_eq(controller_init(&c, &o, NULL), PL_OK);
    return c;
}

/* A random tree with estimates that fall along paths. */
static void make_item(controller_item *it, int n, uint32_t seed)
{
    memset(it, 0, sizeof *it);
    pl_draft_begin(&it->proposal, 0);
    it->expected[0] = 1;
    for (int i = 1; i < n; i++) {
        const uint32_t r = pl_noise_word(3, seed, 0, 0, (uint32_t)i);
        const int parent = (int)(r % (uint32_t)i);
        pl_draft_add(&it->proposal, parent, i, PL_SOURCE_SUFFIX, 64);
        it->expected[i] = it->expected[parent] * (float)(1 + (r >> 8) % 90) / 100.0f;
    }
    controller_describe(it, 0);
}

/* Every row with the same chance. */
static void expect_rows(controller_item *it, float chance)
{
    for (int r = 1; r < it->proposal.n; r++)
        it->expected[r] = it->expected[it->proposal.parent[r]] * chance;
    controller_describe(it, 0);
}

static void teach(controller *c, double per_row)
{
    for (int round = 0; round < 5; round++)
        for (int rows = 1; rows <= c->max_rows; rows++)
            controller_observe_pass(c, rows, 1, 0.02 + per_row * rows, 0, rows, 0);
}

static int choose(controller *c, controller_item *items, int n, int rows_left)
{
    controller_item *list[8];
    int kept = 0;
    for (int i = 0; i < n; i++)
        list[i] = &items[i];
    controller_offer(c, n, 0, rows_left);
    controller_choose(c, list, n, 0, rows_left);
    for (int i = 0; i < n; i++) {
        int here = 0;
        for (int r = 0; r < items[i].proposal.n; r++) {
            here += items[i].keep[r];
            cr_assert(!items[i].keep[r] || r == 0 || items[i].keep[items[i].proposal.parent[r]],
                "row %d without its parent", r);
        }
        cr_assert_eq(here, items[i].n_keep);
        kept += here - 1;
    }
    cr_assert_leq(kept, rows_left);
    return kept;
}

Test(controller, steep_times_turn_drafting_off_and_flat_times_take_all)
{
    controller_item items[2];
    controller steep = make(PL_CONTROLLER_GOODPUT), flat = make(PL_CONTROLLER_GOODPUT);
    for (int i = 0; i < 2; i++) {
        make_item(&items[i], 4, (uint32_t)i);
        expect_rows(&items[i], 0.7f); /* sure enough to stay above the floor */
    }
    teach(&steep, 0.1);
    teach(&flat, 0);
    cr_expect_eq(choose(&steep, items, 2, 100), 0);
    cr_expect_gt(steep.skip + steep.backoff, 0, "proposing rests");
    cr_expect_eq(choose(&flat, items, 2, 100), 6);
    cr_expect_eq(choose(&flat, items, 2, 4), 4);
    controller_done(&steep);
    controller_done(&flat);
}

static double goodput(const controller *c, const controller_item *it, unsigned set)
{
    double tokens = 1;
    int rows = 1;
    for (int r = 1; r < it->proposal.n; r++)
        if (set >> r & 1) {
            const int parent = it->proposal.parent[r];
            if (parent > 0 && !(set >> parent & 1))
                return -1;
            tokens += (double)it->value[r];
            rows++;
        }
    return tokens / controller_cost(c, rows);
}

Test(controller, the_best_prefix_is_the_best_of_all_closed_sets)
{
    for (uint32_t seed = 0; seed < 40; seed++) {
        controller c = make(PL_CONTROLLER_GOODPUT);
        controller_item it;
        make_item(&it, 11, seed);
        for (int rows = 1; rows <= 32; rows++) { /* a staircase */
            const double step = (double)(1 + seed % 5) * 0.002;
            controller_observe_pass(&c, rows, 1, 0.01 + step * ((rows + 3) / 4), 0, 0, 0);
        }
        choose(&c, &it, 1, 100);
        unsigned chosen = 0;
        double best = 0;
        for (int r = 1; r < it.proposal.n; r++)
            chosen |= (unsigned)it.keep[r] << r;
        for (unsigned set = 0; set < 1u << 11; set += 2) {
            const double g = goodput(&c, &it, set);
            best = g > best ? g : best;
        }
        /* Rows under the floor and gains under the margin are left alone. */
        cr_expect_geq(goodput(&c, &it, chosen), best * 0.95, "seed %u", seed);
        controller_done(&c);
    }
}

Test(controller, predicted_times_are_monotone_whatever_was_measured)
{
    controller c = make(PL_CONTROLLER_GOODPUT);
    for (uint32_t i = 0; i < 500; i++) {
        const uint32_t r = pl_noise_word(5, 0, 0, 0, i);
        controller_observe_pass(&c, 1 + (int)(r % 200), 1, 1e-3 * (1 + (r >> 8) % 50), 0, 1, 1e-4);
        for (int rows = 1; rows < c.max_rows; rows++)
            cr_assert_leq(controller_cost(&c, rows), controller_cost(&c, rows + 1) * 1.0001);
    }
    controller_done(&c);
}

Test(controller, useless_proposals_lose_their_value)
{
    controller c = make(PL_CONTROLLER_GOODPUT);
    controller_item it;
    const int32_t drawn[1] = {1000};
    teach(&c, 0.002);
    make_item(&it, 2, 0);
    expect_rows(&it, 0.9f);
    cr_expect_eq(choose(&c, &it, 1, 8), 1);
    for (int i = 0; i < 400; i++)
        controller_observe_item(&c, &it, drawn, 1);
    cr_expect_eq(choose(&c, &it, 1, 8), 0);
    cr_expect_lt(it.value[1], 0.05f);
    controller_done(&c);
}

Test(controller, fixed_takes_the_first_rows_and_off_takes_none)
{
    controller fixed = make(PL_CONTROLLER_FIXED), off = make(PL_CONTROLLER_OFF);
    controller_item items[2];
    make_item(&items[0], 20, 1);
    make_item(&items[1], 3, 2);
    cr_expect_eq(controller_offer(&fixed, 2, 0, 100).suffix, fixed.fixed_rows - 1);
    cr_expect_eq(controller_offer(&off, 2, 2, 100).suffix, 0);
    cr_expect_eq(choose(&fixed, items, 2, 100), fixed.fixed_rows - 1 + 2);
    cr_expect_eq(choose(&fixed, items, 2, 3), 3);
    cr_expect_eq(choose(&off, items, 2, 100), 0);
    controller_done(&fixed);
    controller_done(&off);
}

/* ---- the learned drafter ---- */

typedef struct world {
    double hit;     /* chance that a row of the learned drafter holds the token */
    double level_s; /* of drafting one level */
    double late_s;  /* that a drafted round takes beyond all that is foreseen */
    uint32_t seed;
} world;

/* Rounds of one sample, of which so many were drafted by the learned drafter; *levels: of all. */
static int live(controller *c, world *w, int n_rounds, int *levels)
{
    int n_drafted = 0;
    *levels = 0;
    for (int round = 0; round < n_rounds; round++) {
        controller_item it, *list[1] = {&it};
        int32_t drawn[LEARNED_LEVELS + 1];
        int n = 0, row = 0;
        memset(&it, 0, sizeof it);
        const controller_offer_rows o = controller_offer(c, 1, 1, 60);
        pl_draft_begin(&it.proposal, 0);
        it.expected[0] = 1;
        controller_describe(&it, 0);
        for (int i = 0; i < o.levels; i++) {
            row = pl_draft_add(&it.proposal, row, 10 + i, PL_SOURCE_LEARNED, 64);
            it.expected[row] = it.expected[it.proposal.parent[row]] * 0.6f;
        }
        if (o.levels > 0) {
            const pl_learned_stats s = {
                .n_extended = 2, .extend_s = 2e-4, .grow_s = w->level_s * o.levels};
            controller_observe_learned(c, 1, 1, &s, s.extend_s + s.grow_s);
            controller_describe(&it, 1);
            n_drafted++;
            *levels += o.levels;
        }
        controller_choose(c, list, 1, 0, 60);
        for (row = 0; row < it.proposal.n && it.keep[row]; row++) {
            const double u = pl_noise_word(7, w->seed++, 0, 0, 0) * 0x1p-32;
            drawn[n++] = u < w->hit ? 10 + row : 1000;
            if (drawn[n - 1] == 1000)
                break;
        }
        controller_observe_item(c, &it, drawn, n);
        const double pass_s = 0.02 + 1e-4 * it.n_keep;
        controller_observe_pass(c, it.n_keep, 1, pass_s, 0, n, 0);
        if (o.levels > 0)
            controller_observe_round(c, 1, n, 2e-4 + w->level_s * o.levels, pass_s + w->late_s);
        else
            controller_observe_round(c, 1, n, 0, pass_s);
    }
    return n_drafted;
}

Test(controller, the_learned_drafter_drafts_where_it_pays_and_rests_where_not)
{
    int levels;
    world good = {.hit = 0.6, .level_s = 1e-3}, bad = {.hit = 0.01, .level_s = 1e-3};
    controller c = make(PL_CONTROLLER_GOODPUT);
    teach(&c, 1e-4);
    const int n = live(&c, &good, 300, &levels);
    cr_expect_gt(n, 270, "in all rounds but the plain ones");
    cr_expect_gt(10 * levels, 27 * n, "deep, where it is right: %d of %d", levels, n);
    controller_done(&c);

    c = make(PL_CONTROLLER_GOODPUT);
    teach(&c, 1e-4);
    live(&c, &bad, 200, &levels);
    cr_expect_lt(live(&c, &bad, 1000, &levels), 20, "a probe now and then");
    cr_expect_lt(levels, 2 * 20 + 1, "and a shallow one");
    controller_done(&c);
}

Test(controller, promises_that_rounds_do_not_keep_are_believed_less)
{
    int levels;
    world kept = {.hit = 0.6, .level_s = 1e-3}, broken = kept;
    broken.late_s = 0.03; /* longer than the pass: drafting loses whatever is accepted */
    controller c = make(PL_CONTROLLER_GOODPUT);
    teach(&c, 1e-4);
    live(&c, &kept, 300, &levels);
    cr_expect_float_eq(controller_faith(&c, 0, ROUND_LEARNED), 1, 0.1);
    const int n = live(&c, &broken, 2000, &levels);
    cr_expect_lt(controller_faith(&c, 0, ROUND_LEARNED), 0.6);
    cr_expect_lt(n, 400);
    cr_expect_lt(live(&c, &broken, 1000, &levels), 50, "and it stays so");
    controller_done(&c);
}

Test(controller, plain_rounds_come_up_while_it_drafts)
{
    int levels;
    world good = {.hit = 0.6, .level_s = 1e-3};
    controller c = make(PL_CONTROLLER_GOODPUT);
    teach(&c, 1e-4);
    live(&c, &good, 300, &levels);
    const int n = live(&c, &good, 1000, &levels);
    cr_expect_lt(n, 1000 - 30);
    cr_expect_gt(n, 1000 - 60, "and cost little");
    cr_expect_gt(c.accounts[0][ROUND_PLAIN].n_rounds, 20);
    controller_done(&c);
}

Test(controller, what_attention_takes_is_not_the_price_of_rows)
{
    /* A batch that gets smaller while the contexts of those that are left grow: 20 ms and 0.5 ms a
     * row, and 1 us a position.  Without the positions fewer rows would seem to take longer. */
    controller c = make(PL_CONTROLLER_GOODPUT);
    for (int round = 0; round < 600; round++) {
        const int n = 32 - round / 20;
        const long positions = (long)n * (round + 50);
        const double attention_s = 1e-6 * (double)positions;
        controller_begin(&c, positions);
        controller_observe_pass(&c, n, 1, 0.02 + 5e-4 * n + attention_s, attention_s, n, 0);
    }
    controller_begin(&c, 0);
    cr_expect_float_eq(controller_cost(&c, 4), 0.022, 0.001);
    cr_expect_float_eq(controller_cost(&c, 16), 0.028, 0.001);
    cr_expect_float_eq(controller_cost(&c, 32), 0.036, 0.002);
    controller_begin(&c, 1000);
    cr_expect_float_eq(controller_cost(&c, 4), 0.023, 0.001);
    controller_done(&c);
}

Test(controller, a_new_drafter_is_looked_at_at_once)
{
    int levels;
    world good = {.hit = 0.6, .level_s = 1e-3}, bad = {.hit = 0.01, .level_s = 1e-3};
    controller c = make(PL_CONTROLLER_GOODPUT);
    teach(&c, 1e-4);
    live(&c, &bad, 1000, &levels);
    controller_new_drafter(&c);
    cr_expect_gt(live(&c, &good, 150, &levels), 130);
    controller_new_drafter(&c);
    cr_expect_lt(live(&c, &bad, 400, &levels), 100, "and given up again");
    controller_done(&c);
}

Test(controller, what_a_level_costs_decides_how_deep)
{
    int cheap_levels, dear_levels, n;
    world cheap = {.hit = 0.6, .level_s = 2e-4}, dear = {.hit = 0.6, .level_s = 4e-3};
    controller c = make(PL_CONTROLLER_GOODPUT);
    teach(&c, 1e-4);
    n = live(&c, &cheap, 400, &cheap_levels);
    cr_expect_gt(cheap_levels, 4 * n);
    controller_done(&c);
    c = make(PL_CONTROLLER_GOODPUT);
    teach(&c, 1e-4);
    n = live(&c, &dear, 400, &dear_levels);
    cr_expect_lt(dear_levels, 3 * n);
    controller_done(&c);
}

Test(controller, fixed_gives_the_learned_drafter_its_levels_and_half_the_rows_to_the_suffix)
{
    controller c = make(PL_CONTROLLER_FIXED);
    const controller_offer_rows o = controller_offer(&c, 2, 2, 100);
    cr_expect_eq(o.most, c.fixed_rows);
    cr_expect_eq(o.suffix, (c.fixed_rows - 1) / 2);
    cr_expect_eq(o.levels, 6);
    cr_expect_eq(o.n_asks, 2);
    controller_done(&c);
}
