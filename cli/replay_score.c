/* cli/replay_score.c - recorded samples scored anew: by a built-in verifier, or by a command as in
 * reward.command. */
#include "cli/replay_train.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct train_scorer {
    const char *verifier; /* NULL: the command */
    pl_rewarder *rewarder;
    pl_rollouts *x; /* being scored */
    int n_scored, n_changed, n_failed;
    char train_files[PL_CONFIG_STR]; /* where a prompt's data_source and extra_info stand */
    pl_dataset *prompts;             /* sorted by key; NULL: not opened, or gone */
    const pl_log *log;
};

/* A program of that name; 1 too when there is no PATH to look in: the shell has one of its own. */
static int is_in_path(const char *name)
{
    const char *at = getenv("PATH");
    char path[4096];

    if (!at)
        return 1;
    for (size_t n; n = strcspn(at, ":"), 1; at += n + 1) {
        const int m = snprintf(path, sizeof path, "%.*s/%s", (int)n, at, name);
        if (m > 0 && (size_t)m < sizeof path && access(path, X_OK) == 0)
            return 1;
        if (!at[n])
            return 0;
    }
}

pl_status train_reward_check(const char *what, pl_error *err)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    pl_error why = {0};

    if (pl_reward_check(what, &why) == PL_OK || what[strspn(what, letters)] || is_in_path(what))
        return PL_OK;
    const char *known = strstr(why.msg, "known:");
    return pl_fail(err, PL_E_USAGE,
        "--reward '%.60s' is no program in PATH and no built-in verifier; %.200s", what,
        known ? known : why.msg);
}

pl_status train_scorer_new(
    train_scorer **out, const char *what, const run_config *c, const pl_log *log, pl_error *err)
{
    const pl_rewarder_options o = {.command = what,
        .timeout_s = c->reward.timeout,
        .timeout_value = (float)c->reward.timeout_value,
        .memory_mb = c->reward.memory_mb,
        .log = log};
    pl_error none = {0};
    train_scorer *s = calloc(1, sizeof *s);

    if (!s)
        return pl_fail(err, PL_E_NOMEM, "no memory for --reward");
    if (pl_reward_check(what, &none) == PL_OK) {
        s->verifier = what;
    } else {
        const pl_status st = pl_rewarder_new(&s->rewarder, &o, err);
        if (st != PL_OK) {
            free(s);
            return pl_wrap(err, st, "--reward '%.100s'", what);
        }
    }
    memcpy(s->train_files, c->data.train_files, sizeof s->train_files);
    s->log = log;
    *out = s;
    return PL_OK;
}

void train_scorer_free(train_scorer *s)
{
    if (!s)
        return;
    pl_rewarder_free(s->rewarder);
    pl_dataset_free(s->prompts);
    free(s);
}

/* ---- what records do not tell ---- */

static int by_key(const void *a, const void *b)
{
    const pl_prompt *x = a, *y = b;
    return x->key < y->key ? -1 : x->key > y->key;
}

/* The run's prompts, for a command that looks at data_source; without them it gets null. */
static void open_prompts(train_scorer *s, const pl_tokenizer *tok)
{
    pl_error err = {0};

    if (s->verifier || s->prompts || !s->train_files[0])
        return;
    if (pl_dataset_open_any(&s->prompts, s->train_files, tok, 0, &err) == PL_OK)
        qsort(s->prompts->prompts, (size_t)s->prompts->n, sizeof *s->prompts->prompts, by_key);
    else
        pl_log_warn(
            s->log, "--reward: the command gets no data_source and extra_info: %s", err.msg);
    s->train_files[0] = 0; /* once */
}

/* The record's prompt, or the run's with the same ids. */
static const pl_prompt *prompt_of(const train_scorer *s, const pl_prompt *p)
{
    const pl_prompt *found = NULL;

    if (!p->data_source && s->prompts)
        found = bsearch(p, s->prompts->prompts, (size_t)s->prompts->n, sizeof *p, by_key);
    return found ? found : p;
}

/* ---- scoring ---- */

static void take(void *ctx, int64_t i, float score, pl_reward_mark mark)
{
    train_scorer *s = ctx;
    pl_sample *x = &s->x->samples[i];

    s->n_scored++;
    s->n_changed += x->reward != score;
    s->n_failed += mark != PL_REWARD_OK;
    x->reward = score;
}

/* The text as the run decoded it: the record's has lost what is no UTF-8. */
static pl_status score(train_scorer *s, const pl_tokenizer *tok, int i, pl_error *err)
{
    const pl_sample *x = &s->x->samples[i];
    const pl_response *r = x->response;
    const pl_prompt *p = x->prompt, *more = prompt_of(s, p);
    char *text = NULL;
    size_t n = 0;
    float value = 0;

    if (s->verifier && !p->ground_truth)
        return pl_fail(err, PL_E_FORMAT,
            "--reward '%s': sample %u has no 'ground_truth' to compare with", s->verifier, r->uid);
    pl_status st = pl_tokenizer_decode(tok, r->tokens, r->n_tokens, 1, &text, &n, err);
    if (st == PL_OK && s->verifier) {
        st = pl_reward_score(s->verifier, text, n, p->ground_truth, &value, err);
        if (st == PL_OK)
            take(s, i, value, PL_REWARD_OK);
    } else if (st == PL_OK) {
        st = pl_rewarder_submit(
            s->rewarder, i, more->data_source, text, n, p->ground_truth, more->extra_info, err);
    }
    free(text);
    return st == PL_OK ? st : pl_wrap(err, st, "sample %u", r->uid);
}

pl_status train_scorer_run(train_scorer *s, const pl_tokenizer *tok, pl_rollouts *x,
    const run_report *report, int *n_changed, pl_error *err)
{
    pl_status st = PL_OK;

    s->x = x;
    s->n_scored = s->n_changed = s->n_failed = 0;
    open_prompts(s, tok);
    for (int i = 0; i < x->n && st == PL_OK; i++)
        st = score(s, tok, i, err);
    while (st == PL_OK && s->n_scored < x->n) {
        st = pl_rewarder_poll(s->rewarder, 100, take, s, err);
        if (st != PL_OK)
            st = pl_wrap(err, st, "--reward is no built-in verifier, so it was run as a command");
        else if (cli_stop)
            st = pl_fail(err, PL_E_STOPPED, "stopped by a signal while rewards were awaited");
        run_progress(report, "reward", (double)s->n_scored / x->n, "");
    }
    run_progress_clear(report);
    if (s->rewarder && st == PL_OK)
        pl_rewarder_settle(s->rewarder);
    else if (s->rewarder)
        pl_rewarder_clear(s->rewarder);
    if (st == PL_OK && s->n_failed == x->n)
        st = pl_fail(err, PL_E_PEER, "--reward scored none of the %d samples", x->n);
    *n_changed = s->n_changed;
    return st;
}
