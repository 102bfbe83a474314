/* Claims: tokens that training draws anew are those of the draw op on a decoding pass's logits,
 * for every filter, greedy too, whatever the threads; they come in order, each before its loss;
 * log-probs, entropies and gradients keep their bits. */
#include "core/rng.h"
#include "model/train.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { N_SEQS = 4, MAX_LEN = 101, V = 1003 };

static const pl_arch arch = {.n_layers = 2,
    .n_ctx = 160,
    .rms_eps = 1e-5f,
    .rope_theta = 10000.0,
    .bos_id = -1,
    .n_embd = 96,
    .n_heads = 3,
    .n_kv_heads = 1,
    .head_dim = 48,
    .n_ff = 200,
    .n_vocab = V,
    .tied = 1};

typedef struct figures {
    float logprob[N_SEQS][MAX_LEN], entropy[N_SEQS][MAX_LEN];
} figures;

typedef struct bed {
    const pl_ops *ops;
    pl_team *team;
    pl_model *m;
    float *grads;
    int32_t tokens[N_SEQS][MAX_LEN];
    pl_train_seq seqs[N_SEQS];
    figures now;
    int32_t drawn[N_SEQS][MAX_LEN]; /* token + 1; 0: not drawn */
    int seq, token;                 /* drawn last */
} bed;

static pl_error err;
static bed b;

#define OK(call) cr_assert_eq((call), PL_OK, "%s", err.msg)

static void open_bed(int n_threads)
{
    static const int lengths[N_SEQS] = {101, 34, 70, 66}, prompts[N_SEQS] = {7, 1, 60, 2};
    static const float temperatures[N_SEQS] = {1.0f, 0.7f, 1.3f, 1.0f};
    pl_cpu cpu;

    memset(&b, 0, sizeof b);
    pl_cpu_read(&cpu);
    OK(pl_ops_select(&b.ops, PL_ISA_AUTO, &cpu, NULL, 0, &err));
    OK(pl_team_new(&b.team, n_threads, 0, &err));
    OK(pl_model_new(&b.m, &arch, b.ops, b.team, 1, &err));
    const size_t n = pl_model_params(b.m)->n_elements;
    float *masters = calloc(n, sizeof *masters);
    b.grads = calloc(n, sizeof *b.grads);
    cr_assert(masters && b.grads);
    for (size_t i = 0; i < n; i++)
        masters[i] = (float)(pl_noise_uniform(3, 0, 0, PL_NOISE_INIT, (uint32_t)i) - 0.5) * 0.6f;
    OK(pl_model_pack(b.m, masters, &err));
    free(masters);
    for (int s = 0; s < N_SEQS; s++) {
        for (int i = 0; i < lengths[s]; i++)
            b.tokens[s][i] =
                (int32_t)(pl_noise_word(4, (uint32_t)s, (uint32_t)i, PL_NOISE_SAMPLE, 0) % V);
        b.seqs[s] = (pl_train_seq){b.tokens[s], lengths[s], prompts[s], temperatures[s]};
    }
}

static void close_bed(void)
{
    pl_model_free(b.m);
    pl_team_free(b.team);
    free(b.grads);
}

/* Two of three tokens; sequence 1, whose temperature is 0.7, greedily. */
static int wants(void *ctx, int i_seq, int i_token, pl_draw *draw)
{
    (void)ctx;
    *draw = (pl_draw){.temperature = i_seq == 1 ? 0.0f : 99.0f,
        .top_k = i_seq == 2 ? 9 : 0,
        .top_p = i_seq == 3 ? 0.6f : 1.0f,
        .key = 0x1234,
        .uid = (uint32_t)i_seq,
        .position = (uint32_t)i_token};
    return i_token % 3 != 0;
}

static void drawn(void *ctx, int i_seq, int i_token, int32_t token)
{
    (void)ctx;
    cr_assert(i_seq > b.seq || (i_seq == b.seq && i_token > b.token), "in order");
    cr_assert_eq(b.now.logprob[i_seq][i_token], 0, "before its loss");
    b.seq = i_seq;
    b.token = i_token;
    b.drawn[i_seq][i_token] = token + 1;
}

static float loss(void *ctx, int i_seq, int i_token, float logprob, float entropy)
{
    (void)ctx;
    b.now.logprob[i_seq][i_token] = logprob;
    b.now.entropy[i_seq][i_token] = entropy;
    return i_token % 5 ? 0.01f : 0.0f;
}

static void expect_draws(pl_pass *p, pl_kv_pool *pool, int s)
{
    static float e[V];
    const pl_train_seq *q = &b.seqs[s];
    pl_kv_seq kv;

    OK(pl_kv_seq_init(&kv, MAX_LEN, &err));
    OK(pl_kv_reserve(pool, &kv, q->n_tokens, &err));
    const pl_segment seg = {
        .kv = &kv, .tokens = q->tokens, .n_rows = q->n_tokens, .n_logits = q->n_tokens};
    OK(pl_pass_run(p, pool, &seg, 1, &err));
    for (int i = q->n_prompt; i < q->n_tokens; i++) {
        pl_drawn d = {.token = -1};
        pl_draw how;
        if (wants(NULL, s, i, &how)) {
            how.temperature = s == 1 ? 0 : q->temperature;
            b.ops->draw(pl_pass_logits(p, 0, i - 1), V, &how, e, &d);
        }
        cr_assert_eq(b.drawn[s][i], d.token + 1, "sequence %d, token %d", s, i);
    }
    pl_kv_seq_done(pool, &kv);
}

static void expect_all_draws(void)
{
    const pl_pass_options o = {
        .max_rows = MAX_LEN, .max_logits = MAX_LEN, .max_segments = 1, .max_ctx = MAX_LEN};
    pl_pass *p = NULL;
    pl_kv_pool *pool = NULL;

    OK(pl_pass_new(&p, b.m, &o, &err));
    OK(pl_kv_pool_new(&pool, &arch, 4, &err));
    for (int s = 0; s < N_SEQS; s++)
        expect_draws(p, pool, s);
    pl_kv_pool_free(pool);
    pl_pass_free(p);
}

static void step(pl_train *t, int with_redraw)
{
    const pl_train_redraw r = {.wants = wants, .drawn = drawn};

    memset(b.grads, 0, pl_model_params(b.m)->n_elements * sizeof *b.grads);
    memset(&b.now, 0, sizeof b.now);
    memset(b.drawn, 0, sizeof b.drawn);
    b.seq = b.token = 0;
    pl_train_set_redraw(t, with_redraw ? &r : NULL);
    OK(pl_train_step(t, b.seqs, N_SEQS, loss, NULL, b.grads, &err));
}

static void run_redraws(int n_threads)
{
    const pl_train_options o = {.max_tokens = 448,
        .max_seqs = N_SEQS,
        .max_len = MAX_LEN,
        .keep = 1,
        .head_rows = 64,
        .want_entropy = 1};
    static const int32_t none[N_SEQS][MAX_LEN];
    static figures plain;
    pl_train *t = NULL;

    open_bed(n_threads);
    const size_t n_bytes = pl_model_params(b.m)->n_elements * sizeof *b.grads;
    float *grads = malloc(n_bytes);
    cr_assert_not_null(grads);
    OK(pl_train_new(&t, b.m, &o, &err));
    step(t, 0);
    plain = b.now;
    memcpy(grads, b.grads, n_bytes);
    step(t, 1);
    expect_all_draws();
    cr_assert_eq(memcmp(&plain, &b.now, sizeof plain), 0);
    cr_assert_eq(memcmp(grads, b.grads, n_bytes), 0);
    step(t, 0);
    cr_assert_eq(memcmp(b.drawn, none, sizeof none), 0, "off again");
    pl_train_free(t);
    free(grads);
    close_bed();
}

Test(redraw, tokens_are_those_of_decoding_and_nothing_else_changes, .timeout = 300)
{
    for (int n_threads = 1; n_threads <= 3; n_threads++)
        run_redraws(n_threads);
}
