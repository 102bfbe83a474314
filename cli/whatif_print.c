/* cli/whatif_print.c - alternatives as a table and bars, or as JSON lines. */
#include "cli/whatif.h"

#include <math.h>
#include <string.h>

enum { NAME_MAX_SHOWN = 40, BAR = 40 };

/* One line: what the run counted, or what an alternative would have. */
typedef struct line {
    const char *name;
    int is_recorded;
    double acceptance, drafted; /* drafted: tokens a round of rounds that drafted; NaN */
    int64_t n_draft, n_verified, n_rounds, n_tokens, n_steps;
    double suffix, learned; /* shares of the tokens */
    double seconds, pass_s, draft_s, verify_s, rest_s, guessed_s;
} line;

static double share(int64_t part, int64_t all)
{
    return all > 0 ? (double)part / (double)all : 0;
}

static line recorded_line(const whatif_recorded *r)
{
    return (line){.name = "recorded",
        .is_recorded = 1,
        .acceptance = 1 + share(r->n_accepted, r->n_verify_steps),
        .drafted = NAN,
        .n_draft = r->n_draft,
        /* A sample's first token comes of its prompt: no row was verified for it. */
        .n_verified = r->n_draft + r->n_verify_steps - r->n_samples,
        .n_rounds = r->n_rounds,
        .n_tokens = r->n_tokens,
        .n_steps = r->n_verify_steps,
        .suffix = share(r->n_from[PL_SOURCE_SUFFIX], r->n_tokens),
        .learned = share(r->n_from[PL_SOURCE_LEARNED], r->n_tokens),
        .seconds = r->gen_s};
}

static line played_line(const whatif_alternative *a)
{
    const whatif_figures *f = &a->sum;
    const pl_engine_stats *s = &f->stats;
    int64_t n_rounds = 0;

    for (int i = 0; i < PL_COST_BUCKETS; i++)
        n_rounds += s->n_passes[i];
    return (line){.name = a->name,
        .acceptance = run_acceptance_length(s),
        .drafted = run_drafted_length(s),
        .n_draft = s->n_draft,
        .n_verified = s->n_rows - s->n_prefill_rows,
        .n_rounds = n_rounds,
        .n_tokens = s->n_emitted,
        .n_steps = s->n_verify_steps,
        .suffix = share(s->n_accepted_of[PL_SOURCE_SUFFIX], s->n_emitted),
        .learned = share(s->n_accepted_of[PL_SOURCE_LEARNED], s->n_emitted),
        .seconds = f->predicted_s,
        .pass_s = f->pass_s,
        .draft_s = f->draft_s,
        .verify_s = f->verify_s,
        .rest_s = f->rest_s,
        .guessed_s = f->guessed_s};
}

/* ---- the table ---- */

static int is_guess(const line *l)
{
    return l->guessed_s > 0.05 * l->pass_s;
}

/* A long one loses its beginning: what is alike stands there. */
static void print_name(const char *name, int room)
{
    const int n = (int)strlen(name);
    if (n <= room)
        printf("%-*s", room, name);
    else
        printf("...%s", name + n - (room - 3));
}

static int name_room(const line *lines, int n)
{
    int room = 0;
    for (int i = 0; i < n; i++) {
        const int length = (int)strlen(lines[i].name);
        room = length > room ? length : room;
    }
    return room < NAME_MAX_SHOWN ? room : NAME_MAX_SHOWN;
}

static void print_line(const line *l, int room, double recorded_s)
{
    print_name(l->name, room);
    printf(" %6.3f %8lld %8lld %6.1f%% %6.1f%% %7lld", l->acceptance, (long long)l->n_draft,
        (long long)l->n_verified, 100 * l->suffix, 100 * l->learned, (long long)l->n_rounds);
    if (l->seconds > 0)
        printf(" %9.2f%c %5.2fx\n", l->seconds, is_guess(l) ? '~' : ' ', recorded_s / l->seconds);
    else
        printf(" %9s  %6s\n", "-", "-");
}

static void print_bar(const line *l, int room, double most)
{
    const struct {
        char mark;
        double seconds;
    } parts[] = {{'#', l->is_recorded ? l->seconds : l->pass_s}, {'d', l->draft_s},
        {'v', l->verify_s}, {'.', l->rest_s}};
    double sum = 0, at = 0;
    int n = 0;

    for (int i = 0; i < 4; i++)
        sum += parts[i].seconds;
    /* Workers run side by side: their seconds are more than the clock's. */
    const double scale = most > 0 && sum > 0 ? BAR * l->seconds / most / sum : 0;
    print_name(l->name, room);
    printf(" |");
    for (int i = 0; i < 4; i++) {
        at += parts[i].seconds * scale;
        for (; n < (int)(at + 0.5) && n < BAR; n++)
            putchar(parts[i].mark);
    }
    printf("%*s %.2f s\n", BAR - n, "", l->seconds);
}

static void print_acceptance(const line *l, int room, double most)
{
    const int n = most > 0 ? (int)(BAR * l->acceptance / most + 0.5) : 0;

    print_name(l->name, room);
    printf(" |");
    for (int i = 0; i < n && i < BAR; i++)
        putchar('#');
    printf("%*s %.2f\n", BAR - n, "", l->acceptance);
}

static void print_table(const char *run_dir, const whatif_recorded *r, const line *lines, int n)
{
    const int room = name_room(lines, n);
    double most_s = 0, most_length = 0;
    int has_guess = 0;

    printf("%s: steps %lld to %lld, %lld samples of %lld tokens, %d worker%s\n", run_dir,
        (long long)r->first_step, (long long)r->last_step, (long long)r->n_samples,
        (long long)r->n_tokens, r->n_workers, r->n_workers == 1 ? "" : "s");
    printf("%-*s %6s %8s %8s %7s %7s %7s %9s  %6s\n", room, "", "accept", "drafted", "verified",
        "suffix", "learned", "rounds", "seconds", "speed");
    for (int i = 0; i < n; i++) {
        print_line(&lines[i], room, r->gen_s);
        most_s = lines[i].seconds > most_s ? lines[i].seconds : most_s;
        most_length = lines[i].acceptance > most_length ? lines[i].acceptance : most_length;
        has_guess |= is_guess(&lines[i]);
    }
    printf("\nacceptance length\n");
    for (int i = 0; i < n; i++)
        print_acceptance(&lines[i], room, most_length);
    if (r->n_passes > 0)
        printf("\nseconds of rollout: # passes, d drafting, v drawing, . beside them\n");
    for (int i = 0; i < n && r->n_passes > 0; i++)
        print_bar(&lines[i], room, most_s);
    printf("\ndrafted, verified: rows; suffix, learned: share of the tokens; rounds: passes\n");
    if (r->n_passes > 0)
        printf(
            "without prefill; seconds are predicted from %.0f recorded ones of up to %.0f rows%s\n",
            r->n_passes, r->most_rows,
            has_guess ? "; ~: more than 5 % of them in larger passes, a guess" : "");
    else
        printf("without prefill; the trace does not say what they took: no seconds, and goodput "
               "guesses\n");
}

/* ---- JSON ---- */

static void put_number(pl_json *j, const char *key, double value)
{
    pl_json_text(j, ",\"");
    pl_json_text(j, key);
    pl_json_text(j, "\":");
    pl_json_double(j, value);
}

static void put_count(pl_json *j, const char *key, int64_t value)
{
    pl_json_text(j, ",\"");
    pl_json_text(j, key);
    pl_json_text(j, "\":");
    pl_json_int(j, value);
}

static void put_line(pl_json *j, const line *l, const whatif_recorded *r)
{
    pl_json_text(j, "{\"alternative\":");
    pl_json_string(j, l->name, strlen(l->name));
    pl_json_text(j, l->is_recorded ? ",\"recorded\":true" : ",\"recorded\":false");
    put_count(j, "first_step", r->first_step);
    put_count(j, "last_step", r->last_step);
    put_count(j, "samples", r->n_samples);
    put_count(j, "tokens", l->n_tokens);
    put_number(j, "acceptance_length", l->acceptance);
    put_number(j, "drafted_length", l->drafted);
    put_count(j, "drafted_rows", l->n_draft);
    put_count(j, "verified_rows", l->n_verified);
    put_count(j, "verify_steps", l->n_steps);
    put_count(j, "rounds", l->n_rounds);
    put_number(j, "suffix_share", l->suffix);
    put_number(j, "learned_share", l->learned);
    put_number(j, "seconds", l->seconds);
    put_number(j, "speedup", l->seconds > 0 ? r->gen_s / l->seconds : NAN);
    if (!l->is_recorded) {
        put_number(j, "pass_s", l->pass_s);
        put_number(j, "draft_s", l->draft_s);
        put_number(j, "verify_s", l->verify_s);
        put_number(j, "beside_s", l->rest_s);
        put_number(j, "guessed_s", l->guessed_s);
    }
    pl_json_text(j, "}\n");
}

pl_status whatif_print(const char *run_dir, const whatif_recorded *r, const whatif_alternative *a,
    int n, int json, pl_error *err)
{
    enum { LINES = 64 };
    line lines[LINES];
    int n_lines = 0;
    pl_json j = {0};

    lines[n_lines++] = recorded_line(r);
    for (int i = 0; i < n && n_lines < LINES; i++)
        if (a[i].is_shown)
            lines[n_lines++] = played_line(&a[i]);
    for (int i = 1; i < n_lines && !(r->n_passes > 0); i++) /* of no known unit */
        lines[i].seconds = lines[i].pass_s = lines[i].rest_s = lines[i].guessed_s = NAN;
    if (!json) {
        print_table(run_dir, r, lines, n_lines);
        return cli_flush(err);
    }
    for (int i = 0; i < n_lines; i++)
        put_line(&j, &lines[i], r);
    const pl_status st = pl_json_check(&j, "what-if", err);
    if (st == PL_OK)
        fwrite(j.data, 1, j.n, stdout);
    pl_json_done(&j);
    return st == PL_OK ? cli_flush(err) : st;
}
