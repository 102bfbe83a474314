/* tests/model/test_arch.c - the layout of parameters has no overlap, and every entry is found. */
#include "model/arch.h"

#include <criterion/criterion.h>
#include <string.h>

static const pl_arch small = {.n_layers = 3,
    .n_embd = 10,
    .n_heads = 3,
    .n_kv_heads = 1,
    .head_dim = 6,
    .n_ff = 7,
    .n_vocab = 11,
    .n_ctx = 8,
    .rms_eps = 1e-5f,
    .rope_theta = 1e4,
    .bos_id = -1};

Test(arch, every_parameter_is_found_and_none_overlap)
{
    for (int tied = 0; tied < 2; tied++) {
        pl_arch a = small;
        pl_param_table *t = NULL;
        pl_error err = {0};
        size_t end = 0;

        a.tied = tied;
        cr_assert_eq(pl_param_table_new(&t, &a, &err), PL_OK, "%s", err.msg);
        cr_expect_eq(t->n_params, 1 + 3 * 9 + 1 + !tied);
        for (int i = 0; i < t->n_params; i++) {
            const pl_param *p = &t->params[i];
            cr_expect_eq(p->offset % 16, 0);
            cr_expect(p->offset >= end && p->offset < end + 16);
            end = p->offset + (size_t)p->rows * (size_t)p->cols;
            cr_expect_eq(pl_param_find(t, p->kind, p->layer), p, "%s", p->name);
        }
        cr_expect(end <= t->n_elements && t->n_elements < end + 16);
        cr_expect_eq(pl_param_find(t, PL_P_HEAD, -1) == NULL, tied);
        cr_expect_null(pl_param_find(t, PL_P_Q, 3));
        cr_expect_null(pl_param_find(t, PL_P_Q, -1));
        cr_expect_null(pl_param_find(t, PL_P_EMBED, 0));
        cr_expect_str_eq(
            pl_param_find(t, PL_P_DOWN, 1)->name, "model.layers.1.mlp.down_proj.weight");
        pl_param_table_free(t);
    }
}

Test(arch, impossible_shapes_are_refused_in_words)
{
    static const struct {
        pl_arch change; /* fields that are not 0 replace those of small */
        const char *words;
    } rows[] = {
        {{.n_layers = 1025}, "layers"},
        {{.n_layers = -1}, "layers"},
        {{.head_dim = 5}, "odd"},
        {{.n_kv_heads = 2}, "3 heads"},
        {{.n_vocab = 1 << 30}, "vocabulary"},
        {{.rms_eps = -1.0f}, "epsilon"},
        {{.rope_theta = 0.5}, "rope base"},
        {{.bos_id = 11}, "first token"},
        {{.n_eos = 9}, "end tokens"},
        {{.n_eos = 1, .eos_ids = {11}}, "end token 11"},
        {{.rope_type = PL_ROPE_LLAMA3}, "rope factor"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        pl_arch a = small;
        const pl_arch *c = &rows[i].change;
        pl_error err = {0};
        a.n_layers = c->n_layers ? c->n_layers : a.n_layers;
        a.head_dim = c->head_dim ? c->head_dim : a.head_dim;
        a.n_kv_heads = c->n_kv_heads ? c->n_kv_heads : a.n_kv_heads;
        a.n_vocab = c->n_vocab ? c->n_vocab : a.n_vocab;
        a.rms_eps = c->rms_eps != 0.0f ? c->rms_eps : a.rms_eps;
        a.rope_theta = c->rope_theta != 0.0 ? c->rope_theta : a.rope_theta;
        a.bos_id = c->bos_id ? c->bos_id : a.bos_id;
        a.n_eos = c->n_eos;
        a.eos_ids[0] = c->eos_ids[0];
        a.rope_type = c->rope_type;
        cr_expect_eq(pl_arch_check(&a, &err), PL_E_SHAPE, "accepted: %s", rows[i].words);
        cr_expect_not_null(strstr(err.msg, rows[i].words), "'%s'", err.msg);
    }
}
