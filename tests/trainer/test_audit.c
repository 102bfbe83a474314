/* Claims: before a step's first update every sample is held against its request, its log-probs and
 * its noise; whatever a worker changes is named by sample, reason and position, all of it at once;
 * nothing has changed then, and the step made again with the true samples has the bits of a step
 * that never saw the lie.  The samples are drawn here token by token, as a rollout draws them. */
#include "core/rng.h"
#include "tests/trainer/bed.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 40 };

typedef struct sampling {
    const char *name;
    float temperature, top_p, min_p;
    int top_k, ignore_eos;
} sampling;

static const sampling samplings[] = {
    {"plain", 1, 1, 0, 0, 0},
    {"cool", 0.7f, 1, 0, 0, 1},
    {"top_k", 1.3f, 1, 0, 7, 0},
    {"top_p", 1, 0.8f, 0, 0, 0},
    {"min_p", 1, 1, 0.3f, 0, 0},
    {"all filters", 0.9f, 0.9f, 0.05f, 100, 0},
    {"greedy", 0, 1, 0, 0, 0},
};
enum { N_SAMPLINGS = sizeof samplings / sizeof *samplings };

static bed b;
static pl_error err;
static pl_step_stats stats;
static pl_actor_options options;
static pl_audit_options audit;
static pl_prompt prompts[BED_GROUPS];
static float kept_logprobs[BED_SAMPLES][BED_LEN];
static int32_t kept_tokens[BED_SAMPLES][BED_LEN];
static pl_response kept_responses[BED_SAMPLES];

static void begin(void)
{
    bed_options(&options);
}

TestSuite(audit, .init = begin, .timeout = 300);

/* ---- true samples ---- */

static int is_end(int32_t token)
{
    const pl_arch *a = pl_model_arch(b.model);
    return !audit.ignore_eos && token == a->eos_ids[0];
}

static void roll_one(pl_pass *pass, pl_kv_pool *pool, int i)
{
    const pl_ops *ops = pl_model_ops(b.model);
    const int n_vocab = pl_model_arch(b.model)->n_vocab;
    pl_response *r = &b.responses[i];
    float *e = calloc((size_t)n_vocab, sizeof *e);
    pl_kv_seq kv;

    cr_assert_not_null(e);
    cr_assert_eq(pl_kv_seq_init(&kv, BED_LEN, &err), PL_OK);
    r->finish = PL_FINISH_NONE;
    for (r->n_tokens = 0; r->finish == PL_FINISH_NONE; r->n_tokens++) {
        const int at = r->n_prompt + r->n_tokens, n_new = at - kv.n_tokens;
        const pl_segment seg = {
            .kv = &kv, .tokens = b.tokens[i] + kv.n_tokens, .n_rows = n_new, .n_logits = 1};
        const pl_draw draw = {audit.temperature, audit.top_k, audit.top_p, audit.min_p,
            audit.noise_key, r->uid, (uint32_t)at, audit.purpose};
        pl_drawn drawn;
        cr_assert_eq(pl_kv_reserve(pool, &kv, n_new, &err), PL_OK);
        cr_assert_eq(pl_pass_run(pass, pool, &seg, 1, &err), PL_OK, "%s", err.msg);
        ops->draw(pl_pass_logits(pass, 0, n_new - 1), n_vocab, &draw, e, &drawn);
        b.tokens[i][at] = drawn.token;
        b.logprobs[i][at] = drawn.logprob;
        if (is_end(drawn.token))
            r->finish = PL_FINISH_STOP;
        else if (r->n_tokens + 1 == MAX_TOKENS)
            r->finish = PL_FINISH_LENGTH;
    }
    pl_kv_seq_done(pool, &kv);
    free(e);
}

/* What step number `step` rolls out under the weights as they are. */
static void roll_out(int step)
{
    const pl_pass_options o = {
        .max_rows = BED_LEN, .max_logits = 1, .max_segments = 1, .max_ctx = BED_LEN};
    pl_pass *pass = NULL;
    pl_kv_pool *pool = NULL;

    bed_sample(&b, step); /* prompts, uids, rewards */
    cr_assert_eq(pl_pass_new(&pass, b.model, &o, &err), PL_OK);
    cr_assert_eq(pl_kv_pool_new(&pool, pl_model_arch(b.model), 4, &err), PL_OK);
    for (int i = 0; i < BED_SAMPLES; i++) {
        b.responses[i].temperature = audit.temperature;
        prompts[i / BED_N] =
            (pl_prompt){.n_ids = b.responses[i].n_prompt, .ids = b.tokens[i / BED_N * BED_N]};
        b.samples[i].prompt = &prompts[i / BED_N];
        roll_one(pass, pool, i);
    }
    pl_kv_pool_free(pool);
    pl_pass_free(pass);
    memcpy(kept_tokens, b.tokens, sizeof b.tokens);
    memcpy(kept_logprobs, b.logprobs, sizeof b.logprobs);
    memcpy(kept_responses, b.responses, sizeof b.responses);
}

static void restore(void)
{
    memcpy(b.tokens, kept_tokens, sizeof b.tokens);
    memcpy(b.logprobs, kept_logprobs, sizeof b.logprobs);
    memcpy(b.responses, kept_responses, sizeof b.responses);
}

static void open_bed(const sampling *s, double share, pl_isa isa, int n_threads)
{
    bed_open(&b, &options, isa, n_threads);
    audit = (pl_audit_options){
        .share = share,
        .pick_key = pl_noise_key(99),
        .temperature = s->temperature,
        .top_p = s->top_p,
        .min_p = s->min_p,
        .top_k = s->top_k,
        .noise_key = pl_noise_key(5),
        .purpose = PL_NOISE_SAMPLE,
        .ignore_eos = s->ignore_eos,
        .max_tokens = MAX_TOKENS,
    };
    pl_trainer_set_audit(b.trainer, &audit);
    roll_out(1);
}

static int64_t n_response_tokens(void)
{
    int64_t n = 0;
    for (int i = 0; i < BED_SAMPLES; i++)
        n += b.responses[i].n_tokens;
    return n;
}

static void step_ok(const char *what)
{
    cr_assert_eq(bed_step(&b, 1, &stats, &err), PL_OK, "%s: %s", what, err.msg);
    cr_assert_eq(stats.n_bad, 0);
    for (int i = 0; i < BED_SAMPLES; i++)
        cr_assert_eq(b.samples[i].audit, PL_AUDIT_OK);
}

/* Bits of a trainer that made the step without any audit, and saw no lie. */
static float *clean_step(const sampling *s)
{
    open_bed(s, 0, PL_ISA_AUTO, 2);
    pl_trainer_set_audit(b.trainer, NULL);
    step_ok(s->name);
    cr_assert_eq(stats.n_redrawn, 0);
    float *copy = bed_copy(&b);
    bed_close(&b);
    return copy;
}

static void expect_true_step(const sampling *s, const float *clean, pl_isa isa, int n_threads)
{
    open_bed(s, 1, isa, n_threads);
    step_ok(s->name);
    cr_assert_eq(stats.n_redrawn, n_response_tokens(), "each token once");
    cr_assert(bed_same(&b, clean), "%s, %d threads", s->name, n_threads);
    bed_close(&b);
}

Test(audit, true_samples_pass_and_the_step_keeps_its_bits)
{
    for (int c = 0; c < N_SAMPLINGS; c++) {
        float *clean = clean_step(&samplings[c]);
        expect_true_step(&samplings[c], clean, PL_ISA_AUTO, 1 + c % 3);
        if (c % 3 == 2)
            expect_true_step(&samplings[c], clean, PL_ISA_REF, 2);
        free(clean);
    }
}

Test(audit, later_steps_mini_batches_and_epochs_are_checked_once_before_their_first_update)
{
    options.ppo_mini_batch_size = 2;
    options.ppo_epochs = 2;
    options.use_kl_loss = 1;
    open_bed(&samplings[0], 1, PL_ISA_AUTO, 2);
    for (int step = 1; step <= 2; step++) {
        roll_out(step);
        cr_assert_eq(bed_step(&b, step, &stats, &err), PL_OK, "%s", err.msg);
        cr_assert_eq(stats.n_redrawn, n_response_tokens());
    }
    bed_close(&b);
}

/* ---- lies ---- */

/* Samples at which lies are told: a gradient and an end token or the full length. */
static int find_sample(pl_finish finish)
{
    for (int i = 0; i < BED_SAMPLES; i++)
        if (b.responses[i].finish == finish && b.responses[i].n_tokens > 6 && i / BED_N != 2)
            return i;
    cr_assert_fail("the samples should have both ends");
    return -1;
}

static void rescore(int i)
{
    const pl_pass_options o = {
        .max_rows = BED_LEN, .max_logits = BED_LEN, .max_segments = 1, .max_ctx = BED_LEN};
    pl_pass *pass = NULL;
    pl_kv_pool *pool = NULL;
    const pl_response *r = &b.responses[i];

    cr_assert_eq(pl_pass_new(&pass, b.model, &o, &err), PL_OK);
    cr_assert_eq(pl_kv_pool_new(&pool, pl_model_arch(b.model), 4, &err), PL_OK);
    cr_assert_eq(pl_score(pass, pool, b.tokens[i], r->n_prompt + r->n_tokens, r->temperature,
                     b.logprobs[i], 0, NULL, NULL, &err),
        PL_OK);
    pl_kv_pool_free(pool);
    pl_pass_free(pass);
}

static void swap_token(int i, int at)
{
    const int n_vocab = pl_model_arch(b.model)->n_vocab;
    int32_t *token = &b.responses[i].tokens[at];

    do
        *token = (*token + 1) % n_vocab;
    while (token[0] == pl_model_arch(b.model)->eos_ids[0]);
}

static void tell_token(int i)
{
    swap_token(i, 3);
}

static void tell_forged_text(int i)
{
    swap_token(i, 3);
    rescore(i);
}

static void tell_forged_last_token(int i)
{
    swap_token(i, b.responses[i].n_tokens - 1);
    rescore(i);
}

static void tell_bit(int i)
{
    uint32_t bits;
    memcpy(&bits, &b.responses[i].logprobs[3], sizeof bits);
    bits ^= 1;
    memcpy(&b.responses[i].logprobs[3], &bits, sizeof bits);
}

static void tell_tiny_log_prob(int i)
{
    b.responses[i].logprobs[3] = -1e30f; /* its ratio would be infinite */
}

static void tell_finish(int i)
{
    pl_finish *f = &b.responses[i].finish;
    *f = *f == PL_FINISH_STOP ? PL_FINISH_LENGTH : PL_FINISH_STOP;
}

static void tell_aborted(int i)
{
    b.responses[i].finish = PL_FINISH_ABORTED;
}

static void tell_short(int i)
{
    b.responses[i].n_tokens--;
}

static void tell_end_inside(int i)
{
    b.responses[i].tokens[3] = pl_model_arch(b.model)->eos_ids[0];
    rescore(i);
}

static void tell_long(int i)
{
    b.responses[i].n_tokens = MAX_TOKENS + 1;
}

static void tell_huge(int i)
{
    b.responses[i].n_tokens = INT32_MAX;
}

static void tell_nothing(int i)
{
    b.responses[i].n_tokens = 0;
}

static void tell_beyond_vocabulary(int i)
{
    b.responses[i].tokens[3] = pl_model_arch(b.model)->n_vocab;
}

static void tell_negative_token(int i)
{
    b.responses[i].tokens[3] = -1;
}

static void tell_nan(int i)
{
    b.responses[i].logprobs[3] = NAN;
}

static void tell_minus_infinity(int i)
{
    b.responses[i].logprobs[3] = -INFINITY;
}

static void tell_positive(int i)
{
    b.responses[i].logprobs[3] = 0.5f;
}

static void tell_temperature(int i)
{
    b.responses[i].temperature = 1e-30f;
}

static void tell_no_logprobs(int i)
{
    b.responses[i].logprobs = NULL;
}

static void tell_prompt_length(int i)
{
    b.responses[i].n_prompt = INT32_MAX;
}

static void tell_prompt_token(int i)
{
    b.tokens[i][1] ^= 1;
    rescore(i);
}

static void tell_wild_prompt(int i)
{
    b.tokens[i][1] = 1 << 30;
    b.samples[i].prompt = NULL; /* with nothing to compare it with */
}

typedef struct lie {
    const char *name;
    void (*tell)(int i);
    pl_audit why;
    int token; /* of the response, or -1: the whole, -2: the last */
} lie;

static const lie lies[] = {
    {"token", tell_token, PL_AUDIT_TOKEN, 3},
    {"forged text", tell_forged_text, PL_AUDIT_TOKEN, 3},
    {"log-prob bit", tell_bit, PL_AUDIT_LOGPROB, 3},
    {"tiny log-prob", tell_tiny_log_prob, PL_AUDIT_LOGPROB, 3},
    {"finish", tell_finish, PL_AUDIT_SHAPE, -2},
    {"aborted", tell_aborted, PL_AUDIT_SHAPE, -2},
    {"short", tell_short, PL_AUDIT_SHAPE, -2},
    {"end inside", tell_end_inside, PL_AUDIT_SHAPE, 3},
    {"long", tell_long, PL_AUDIT_SHAPE, -1},
    {"huge", tell_huge, PL_AUDIT_SHAPE, -1},
    {"nothing", tell_nothing, PL_AUDIT_SHAPE, -1},
    {"beyond the vocabulary", tell_beyond_vocabulary, PL_AUDIT_SHAPE, 3},
    {"negative token", tell_negative_token, PL_AUDIT_SHAPE, 3},
    {"nan", tell_nan, PL_AUDIT_SHAPE, 3},
    {"minus infinity", tell_minus_infinity, PL_AUDIT_SHAPE, 3},
    {"positive log-prob", tell_positive, PL_AUDIT_SHAPE, 3},
    {"temperature", tell_temperature, PL_AUDIT_SHAPE, -1},
    {"no log-probs", tell_no_logprobs, PL_AUDIT_SHAPE, -1},
    {"prompt length", tell_prompt_length, PL_AUDIT_SHAPE, -1},
    {"prompt token", tell_prompt_token, PL_AUDIT_SHAPE, -1},
    {"wild prompt", tell_wild_prompt, PL_AUDIT_SHAPE, -1},
};
enum { N_LIES = sizeof lies / sizeof *lies };

static int position_of(const lie *l, int i)
{
    const pl_response *r = &b.responses[i];

    if (l->token == -1)
        return 0;
    return r->n_prompt + (l->token == -2 ? r->n_tokens - 1 : l->token);
}

/* Masters, moments and the packed weights are those of the start. */
static void expect_untouched(
    const float *before, const double scores[BED_SAMPLES], const char *what)
{
    double now[BED_SAMPLES];

    cr_assert(bed_same(&b, before), "%s", what);
    cr_assert_eq(b.trainer->n_updates, 0, "%s", what);
    bed_score(&b, now);
    cr_assert_eq(memcmp(now, scores, sizeof now), 0, "%s", what);
}

static void expect_caught(const lie *l, int i, const float *before, const double *scores)
{
    char text[128];

    snprintf(text, sizeof text, "%s at %d", l->name, i);
    l->tell(i);
    const int position = position_of(l, i);
    cr_assert_eq(bed_step(&b, 1, &stats, &err), PL_E_NUMERIC, "%s", text);
    cr_assert_eq(stats.n_bad, 1, "%s: %d", text, stats.n_bad);
    for (int k = 0; k < BED_SAMPLES; k++)
        cr_assert_eq(b.samples[k].audit, k == i ? l->why : PL_AUDIT_OK, "%s: %d is %s", text, k,
            pl_audit_name(b.samples[k].audit));
    cr_assert_eq(
        b.samples[i].audit_position, position, "%s: %d", text, b.samples[i].audit_position);
    snprintf(text, sizeof text, "uid %u position %d", b.responses[i].uid, position);
    cr_assert_not_null(strstr(err.msg, text), "%s", err.msg);
    restore();
    expect_untouched(before, scores, l->name);
}

/* Every lie, each told by a sample with a gradient, by one without and by the last one; then the
 * truth. */
static void run_lies(const sampling *s, int n_lies)
{
    double scores[BED_SAMPLES];
    float *clean = clean_step(s);

    open_bed(s, 1, PL_ISA_AUTO, 1);
    float *before = bed_copy(&b);
    bed_score(&b, scores);
    const int who[] = {1, 2 * BED_N + 1, BED_SAMPLES - 1};
    for (int k = 0; k < n_lies; k++)
        for (int j = 0; j < 3; j++)
            if (b.responses[who[j]].n_tokens > 4)
                expect_caught(&lies[k], who[j], before, scores);
    step_ok(s->name);
    cr_assert(bed_same(&b, clean), "the truth after %d lies", n_lies);
    free(clean);
    free(before);
    bed_close(&b);
}

Test(audit, every_lie_is_caught_and_the_true_step_then_has_its_bits)
{
    run_lies(&samplings[0], N_LIES);
}

Test(audit, lies_in_later_mini_batches_are_caught_before_the_first_update)
{
    options.ppo_mini_batch_size = 2;
    options.ppo_epochs = 2;
    options.use_kl_loss = 1;
    run_lies(&samplings[0], 5);
}

Test(audit, lies_are_caught_under_every_filter)
{
    for (int c = 1; c < N_SAMPLINGS; c++)
        run_lies(&samplings[c], 4);
}

Test(audit, both_ends_of_a_response_are_held_to_their_rules)
{
    double scores[BED_SAMPLES];
    static const lie forged_last = {"forged end", tell_forged_last_token, PL_AUDIT_TOKEN, -2};
    static const lie no_end = {"end replaced", tell_forged_last_token, PL_AUDIT_SHAPE, -2};

    open_bed(&samplings[0], 1, PL_ISA_AUTO, 2);
    float *before = bed_copy(&b);
    bed_score(&b, scores);
    const int stopped = find_sample(PL_FINISH_STOP), full = find_sample(PL_FINISH_LENGTH);
    const lie flipped = {"finish", tell_finish, PL_AUDIT_SHAPE, -2};
    const lie cut = {"short", tell_short, PL_AUDIT_SHAPE, -2};
    expect_caught(&flipped, stopped, before, scores);
    expect_caught(&flipped, full, before, scores);
    expect_caught(&cut, stopped, before, scores);
    expect_caught(&cut, full, before, scores);
    expect_caught(&no_end, stopped, before, scores);
    expect_caught(&forged_last, full, before, scores);
    free(before);
    bed_close(&b);
}

Test(audit, only_the_redraw_sees_a_forged_text)
{
    open_bed(&samplings[0], 0, PL_ISA_AUTO, 2);
    tell_forged_text(1);
    step_ok("nothing else can tell");
    bed_close(&b);
}

Test(audit, all_bad_samples_are_found_at_once)
{
    const int with_shape[] = {1, 4, 9, 14, 22, 23};
    const pl_audit why[] = {PL_AUDIT_TOKEN, PL_AUDIT_LOGPROB, PL_AUDIT_LOGPROB, PL_AUDIT_TOKEN,
        PL_AUDIT_TOKEN, PL_AUDIT_SHAPE};

    options.ppo_mini_batch_size = 4;
    for (int n = 5; n <= 6; n++) { /* with and without one that the model must not see */
        int next = 0;
        open_bed(&samplings[1], 1, PL_ISA_AUTO, 2);
        float *before = bed_copy(&b);
        tell_token(1);
        tell_bit(4);
        tell_tiny_log_prob(9);
        tell_forged_text(14);
        tell_token(22);
        if (n == 6)
            tell_nan(23);
        cr_assert_eq(bed_step(&b, 1, &stats, &err), PL_E_NUMERIC);
        cr_assert_eq(stats.n_bad, n);
        for (int i = 0; i < BED_SAMPLES; i++) {
            const int is_bad = next < n && with_shape[next] == i;
            cr_assert_eq(b.samples[i].audit, is_bad ? why[next] : PL_AUDIT_OK, "%d: %s", i,
                pl_audit_name(b.samples[i].audit));
            next += is_bad;
        }
        cr_assert_not_null(strstr(err.msg, "24 samples"), "%s", err.msg);
        cr_assert_not_null(strstr(err.msg, "uid 1 position 8"), "%s", err.msg);
        cr_assert(bed_same(&b, before));
        free(before);
        bed_close(&b);
    }
}

/* ---- a share of the positions ---- */

static int is_picked(int i, int i_token, double share)
{
    return pl_noise_uniform(
               audit.pick_key, b.responses[i].uid, (uint32_t)i_token, PL_NOISE_EXPLORE, 0) < share;
}

Test(audit, a_share_of_the_positions_is_drawn_anew_and_only_there_a_forger_is_seen)
{
    const double share = 0.4;
    int64_t n = 0;
    int n_seen = 0, n_missed = 0;

    options.lr = 0;
    options.weight_decay = 0; /* so that each round has the same weights */
    open_bed(&samplings[0], share, PL_ISA_AUTO, 2);
    for (int i = 0; i < BED_SAMPLES; i++)
        for (int k = 0; k < b.responses[i].n_tokens; k++)
            n += is_picked(i, b.responses[i].n_prompt + k, share);
    step_ok("share");
    cr_assert_eq(stats.n_redrawn, n);
    cr_assert(fabs((double)n / (double)stats.n_tokens - share) < 0.08, "%lld", (long long)n);
    for (int i = 0; i < BED_SAMPLES; i++) { /* the last token: no later draw can tell */
        const pl_response *r = &b.responses[i];
        if (r->finish != PL_FINISH_LENGTH)
            continue;
        const int picked = is_picked(i, r->n_prompt + r->n_tokens - 1, share);
        tell_forged_last_token(i);
        cr_assert_eq(bed_step(&b, 1, &stats, &err), picked ? PL_E_NUMERIC : PL_OK, "%d", i);
        n_seen += picked;
        n_missed += !picked;
        restore();
    }
    cr_assert(n_seen > 2 && n_missed > 2);
    bed_close(&b);
}

Test(audit, without_an_audit_log_probs_are_compared_as_ever)
{
    open_bed(&samplings[0], 1, PL_ISA_AUTO, 2);
    pl_trainer_set_audit(b.trainer, NULL);
    tell_finish(1);
    tell_bit(4);
    cr_assert_eq(bed_step(&b, 1, &stats, &err), PL_E_NUMERIC);
    cr_assert_not_null(strstr(err.msg, "1 of "), "%s", err.msg);
    cr_assert_not_null(strstr(err.msg, "log-probs differ from the rollout's, first uid 4 position"),
        "%s", err.msg);
    cr_assert_eq(stats.n_bad, 1);
    cr_assert_eq(b.samples[4].audit, PL_AUDIT_LOGPROB);
    cr_assert_eq(b.samples[1].audit, PL_AUDIT_OK);
    b.responses[4].finish = PL_FINISH_ABORTED;
    cr_assert_eq(bed_step(&b, 1, &stats, &err), PL_E_INVAL);
    bed_close(&b);
}
