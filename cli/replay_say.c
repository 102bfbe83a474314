/* cli/replay_say.c - what a replay of rollouts says: the policy of a step, its samples, the
 * verdict. */
#include "cli/replay_parts.h"

#include <string.h>
#include <unistd.h>

void replay_say_trace(const replay_again *a)
{
    const pl_trace_report *t = &a->index.report;

    if (a->o->json)
        return;
    printf("trace      %s: %s, steps %lld to %lld\n", a->o->run_dir,
        t->state == PL_TRACE_COMPLETE ? "complete" : "open", (long long)a->index.steps[0].step,
        (long long)a->index.steps[a->index.n - 1].step);
    if (t->state == PL_TRACE_OPEN && t->what[0])
        printf("           %s\n", t->what);
    if (a->index.changed)
        printf("           %s\n", a->index.changed);
    fflush(stdout);
}

void replay_say_policy(const replay_again *a, const replay_step *s, int is_fresh, int trained)
{
    char from[48] = "", how[64] = "";

    if (a->o->json)
        return;
    if (is_fresh && a->opened_at > 0)
        snprintf(from, sizeof from, "global_step_%lld", (long long)a->opened_at);
    else if (is_fresh)
        snprintf(from, sizeof from, "the initial model");
    if (trained > 0)
        snprintf(how, sizeof how, "%s%d step%s trained", is_fresh ? ", " : "", trained,
            trained == 1 ? "" : "s");
    printf("step %-5lld policy of step %lld: hash equal (%s%s)\n", (long long)s->step,
        (long long)s->step - 1, from, how);
    fflush(stdout);
}

/* Of who generates: each worker has its share of the cores. */
static int threads_of(const replay_again *a)
{
    const int team = pl_team_size(a->r.m.team);
    const int64_t share = a->dir ? sysconf(_SC_NPROCESSORS_ONLN) / a->o->workers : team;
    return share < 1 ? 1 : share < team ? (int)share : team;
}

static void put_how(const replay_again *a, pl_json *j)
{
    pl_json_text(j, ",\"workers\":");
    pl_json_int(j, a->dir ? a->o->workers : 0);
    pl_json_text(j, ",\"threads\":");
    pl_json_int(j, threads_of(a));
    pl_json_text(j, ",\"isa\":");
    pl_json_string(j, a->r.m.ops->name, strlen(a->r.m.ops->name));
    pl_json_text(j, ",\"drafter\":");
    pl_json_string(j, a->drafter, strlen(a->drafter));
}

pl_status replay_say_step(
    const replay_again *a, const replay_step *s, const replay_difference *d, pl_error *err)
{
    pl_json j = {0};

    if (!a->o->json)
        return PL_OK;
    pl_json_text(&j, "{\"step\":");
    pl_json_int(&j, s->step);
    pl_json_text(&j, ",\"policy\":\"equal\",\"samples\":");
    pl_json_int(&j, (int64_t)a->batch.n_groups * a->batch.n);
    pl_json_text(&j, ",\"tokens\":");
    pl_json_int(&j, d->n_tokens);
    pl_json_text(&j, ",\"drafted\":");
    pl_json_int(&j, d->n_drafted);
    pl_json_text(&j, ",\"differing_samples\":");
    pl_json_int(&j, d->n_samples);
    if (d->n_samples > 0) {
        pl_json_text(&j, ",\"first\":{\"uid\":");
        pl_json_int(&j, d->uid);
        pl_json_text(&j, ",\"position\":");
        pl_json_int(&j, d->position);
        pl_json_text(&j, ",\"what\":");
        pl_json_string(&j, d->what, strlen(d->what));
        pl_json_text(&j, ",\"now\":");
        pl_json_string(&j, d->now, strlen(d->now));
        pl_json_text(&j, ",\"recorded\":");
        pl_json_string(&j, d->then, strlen(d->then));
        pl_json_text(&j, "}");
    }
    put_how(a, &j);
    pl_json_text(&j, "}\n");
    const pl_status st = pl_json_check(&j, "verdict", err);
    if (st == PL_OK)
        fwrite(j.data, 1, j.n, stdout);
    pl_json_done(&j);
    return st;
}

void replay_say_end(const char *verdict, const char *message)
{
    pl_json j = {0};
    pl_error none = {0};

    pl_json_text(&j, "{\"event\":\"end\",\"verdict\":");
    pl_json_string(&j, verdict, strlen(verdict));
    pl_json_text(&j, ",\"message\":");
    pl_json_string(&j, message, strlen(message));
    pl_json_text(&j, "}\n");
    if (pl_json_check(&j, "verdict", &none) == PL_OK)
        fwrite(j.data, 1, j.n, stdout);
    pl_json_done(&j);
}

/* "18 233" */
static void group_digits(char out[32], int64_t v)
{
    char digits[24];
    const int n = snprintf(digits, sizeof digits, "%lld", (long long)v);
    int at = 0;

    for (int i = 0; i < n; i++) {
        if (i > 0 && (n - i) % 3 == 0)
            out[at++] = ' ';
        out[at++] = digits[i];
    }
    out[at] = 0;
}

void replay_say_verdict(const replay_again *a)
{
    char samples[32], tokens[32], drafted[32], steps[REPLAY_LIST + 16], who[32] = "this process";

    if (a->o->json)
        return;
    group_digits(samples, a->n_samples);
    group_digits(tokens, a->n_tokens);
    group_digits(drafted, a->n_drafted);
    snprintf(steps, sizeof steps, "step %s", a->done);
    if (a->n_left > 0 && a->n_steps > 1)
        snprintf(steps, sizeof steps, "steps %s", a->done);
    else if (a->n_steps > 1)
        snprintf(steps, sizeof steps, "%lld steps, %lld to %lld", (long long)a->n_steps,
            (long long)a->first, (long long)a->last);
    if (a->dir)
        snprintf(who, sizeof who, "workers %lld", (long long)a->o->workers);
    printf("replayed %s sample%s, %s tokens of %s: 0 differing bits (%s, threads %d, isa %s, "
           "drafter %s, %s rows drafted) in %.1f s\n",
        samples, a->n_samples == 1 ? "" : "s", tokens, steps, who, threads_of(a), a->r.m.ops->name,
        a->drafter, drafted, run_seconds() - a->r.report.t0);
}
