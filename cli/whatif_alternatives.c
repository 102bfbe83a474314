/* cli/whatif_alternatives.c - another drafter, tree or controller: parsed, with its drafter and its
 * engines. */
#include "cli/replay_parts.h"
#include "cli/whatif.h"
#include "core/file.h"

#include <stdlib.h>
#include <string.h>

enum { KEYS = 16, LINE = PL_CONFIG_STR + 64 };

typedef struct key_list {
    char lines[KEYS][LINE];
    int n;
} key_list;

static pl_status add(key_list *k, pl_error *err, const char *key, const char *value, size_t n_value)
{
    if (k->n == KEYS)
        return pl_fail(err, PL_E_USAGE, "more than %d keys", KEYS);
    if (snprintf(k->lines[k->n], LINE, "%s=%.*s", key, (int)n_value, value) >= LINE)
        return pl_fail(err, PL_E_USAGE, "the value of %s is too long", key);
    k->n++;
    return PL_OK;
}

/* ---- who drafts ---- */

static int is_number(const char *text, size_t n)
{
    size_t i = 0;
    while (i < n && text[i] >= '0' && text[i] <= '9')
        i++;
    return n > 0 && i == n;
}

static int is_word(const char *text, size_t n, const char *word)
{
    return strlen(word) == n && memcmp(text, word, n) == 0;
}

static pl_status add_drafter(whatif_alternative *a, key_list *k, const char *run_dir,
    const char *value, size_t n, pl_error *err)
{
    const int room = (int)sizeof a->drafter_dir, is_version = is_number(value, n);
    const int is_off = is_word(value, n, "none");

    a->drafter = WHATIF_NONE;
    pl_status st = add(k, err, "speculative.enable", is_off ? "false" : "true", is_off ? 5 : 4);
    if (st != PL_OK || is_off)
        return st;
    if (is_word(value, n, "suffix"))
        return add(k, err, "speculative.method", "suffix", 6);
    a->drafter = is_word(value, n, "random") ? WHATIF_RANDOM : WHATIF_FILE;
    if (snprintf(a->drafter_dir, (size_t)room, "%s%s%.*s", is_version ? run_dir : "",
            is_version ? "/drafter/versions/" : "", (int)n, value) >= room)
        return pl_fail(err, PL_E_USAGE, "the drafter's path is too long");
    if (a->drafter == WHATIF_FILE && !pl_path_exists(a->drafter_dir))
        return pl_fail(err, PL_E_NOENT,
            "'%s' is not there: a drafter is none, suffix, random, a version that the run keeps, "
            "or a directory",
            a->drafter_dir);
    st = add(k, err, "speculative.method", "auto", 4);
    return st == PL_OK ? add(k, err, "speculative.drafter.init", value, n) : st;
}

static pl_status add_word(whatif_alternative *a, key_list *k, const char *run_dir, const char *word,
    size_t n, pl_error *err)
{
    static const char *const names[][2] = {{"controller", "speculative.controller"},
        {"max_rows", "speculative.max_rows"}, {"max_depth", "speculative.max_depth"}};
    const char *equal = memchr(word, '=', n);
    const size_t n_key = equal ? (size_t)(equal - word) : n;
    char key[128];

    if (!equal || n_key == 0 || n_key >= sizeof key)
        return pl_fail(err, PL_E_USAGE, "'%.*s' is not key=value", (int)(n < 64 ? n : 64), word);
    snprintf(key, sizeof key, "%.*s", (int)n_key, word);
    const char *value = equal + 1;
    const size_t n_value = n - n_key - 1;
    if (strcmp(key, "drafter") == 0)
        return add_drafter(a, k, run_dir, value, n_value, err);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(key, names[i][0]) == 0)
            return add(k, err, names[i][1], value, n_value);
    if (strchr(key, '.'))
        return add(k, err, key, value, n_value);
    return pl_fail(err, PL_E_USAGE,
        "'%s' is none of drafter, controller, max_rows, max_depth, or a key with dots", key);
}

/* ---- alternatives ---- */

static whatif_drafter drafter_of(const run_config *c)
{
    return run_has_learned(c) ? WHATIF_RUN : WHATIF_NONE;
}

void whatif_alternative_base(whatif_alternative *a, const run_config *base)
{
    memset(a, 0, sizeof *a);
    snprintf(a->name, sizeof a->name, "as the run");
    a->config = *base;
    a->drafter = drafter_of(base);
    a->version = -1;
    a->is_shown = 1;
}

/* The text must stay what it is: a what-if answers for drafting alone. */
static pl_status check_text(const run_config *c, const run_config *base, pl_error *err)
{
    if (run_config_hash(c) != run_config_hash(base))
        return pl_fail(err, PL_E_CONFIG,
            "it changes what is sampled or trained, and the record would be another one: only "
            "drafting can be asked about");
    return PL_OK;
}

pl_status whatif_alternative_parse(whatif_alternative *a, const char *text, const run_config *base,
    const char *run_dir, char *const *words, int n_words, pl_error *err)
{
    char *all[KEYS + CLI_LIST_MAX];
    int n_all = 0;
    key_list *k = calloc(1, sizeof *k);
    pl_status st = k ? PL_OK : pl_fail(err, PL_E_NOMEM, "no memory");

    whatif_alternative_base(a, base);
    snprintf(a->name, sizeof a->name, "%s", text);
    for (const char *at = text; st == PL_OK && *at;) {
        const size_t n = strcspn(at, ",");
        st = add_word(a, k, run_dir, at, n, err);
        at += n + (at[n] == ',');
    }
    for (int i = 0; st == PL_OK && i < n_words && i < CLI_LIST_MAX; i++)
        all[n_all++] = words[i];
    for (int i = 0; st == PL_OK && i < k->n; i++)
        all[n_all++] = k->lines[i];
    const replay_options o = {
        .run_dir = run_dir, .what_if = 1, .overrides = all, .n_overrides = n_all};
    if (st == PL_OK)
        st = replay_config(&o, &a->config, err);
    free(k);
    if (st == PL_OK)
        st = check_text(&a->config, base, err);
    if (st == PL_OK && !run_has_learned(&a->config))
        a->drafter = WHATIF_NONE;
    return st == PL_OK ? st : pl_wrap(err, st, "alternative '%.100s'", text);
}

void whatif_alternative_forget(whatif_alternative *a)
{
    while (a->engines) {
        whatif_engine *next = a->engines->next;
        whatif_engine_free(a->engines);
        a->engines = next;
    }
}

void whatif_alternative_done(whatif_alternative *a)
{
    whatif_alternative_forget(a);
    pl_eagle_free(a->eagle);
    a->eagle = NULL;
}

/* ---- its drafter ---- */

static pl_status set_eagle(whatif_alternative *a, pl_eagle *fresh, pl_error *err)
{
    pl_status st = PL_OK;

    for (whatif_engine *e = a->engines; e && st == PL_OK; e = e->next)
        st = pl_engine_set_drafter(e->engine, fresh, err);
    if (st != PL_OK) {
        pl_eagle_free(fresh);
        return st;
    }
    pl_eagle_free(a->eagle);
    a->eagle = fresh;
    return PL_OK;
}

/* Version 0 is what the run began with; of random, nothing. */
static pl_status load_version(
    whatif_alternative *a, const pl_model *model, uint32_t version, pl_error *err)
{
    const char *init = a->config.speculative.init;
    char dir[PL_CONFIG_STR + 64];
    pl_eagle *fresh = NULL;
    pl_status st = PL_OK;

    if (a->version == (int64_t)version)
        return PL_OK;
    snprintf(dir, sizeof dir, "%s", init);
    if (version > 0)
        snprintf(dir, sizeof dir, "%s/drafter/versions/%u", a->config.trainer.default_local_dir,
            version);
    if (version > 0 && !pl_path_exists(dir))
        return pl_fail(err, PL_E_NOENT,
            "'%s' is not kept any more: take a later --step, or one whose drafter is there", dir);
    if (version > 0 || strcmp(init, "random") != 0)
        st = pl_eagle_load(&fresh, model, dir, err);
    if (st == PL_OK)
        st = set_eagle(a, fresh, err);
    if (st == PL_OK)
        a->version = version;
    return st;
}

pl_status whatif_alternative_load(
    whatif_alternative *a, const pl_model *model, uint32_t version, pl_error *err)
{
    const pl_eagle_options random = {.seed = (uint64_t)a->config.rollout.seed};
    pl_eagle *fresh = NULL;
    pl_status st = PL_OK;

    if (a->drafter == WHATIF_RUN)
        return load_version(a, model, version, err);
    if (a->drafter == WHATIF_NONE || a->eagle)
        return PL_OK;
    st = a->drafter == WHATIF_RANDOM ? pl_eagle_new(&fresh, model, &random, err)
                                     : pl_eagle_load(&fresh, model, a->drafter_dir, err);
    return st == PL_OK ? set_eagle(a, fresh, err) : st;
}

pl_status whatif_alternative_engine(whatif_alternative *a, const char *worker, pl_model *model,
    const pl_costs *costs, whatif_engine **out, pl_error *err)
{
    whatif_engine *e = a->engines;

    while (e && strcmp(e->worker, worker) != 0)
        e = e->next;
    *out = e;
    if (e)
        return PL_OK;
    pl_status st = whatif_engine_new(&e, model, &a->options, costs, err);
    if (st == PL_OK && a->eagle)
        st = pl_engine_set_drafter(e->engine, a->eagle, err);
    if (st != PL_OK) {
        whatif_engine_free(e);
        return st;
    }
    snprintf(e->worker, sizeof e->worker, "%s", worker);
    e->next = a->engines;
    a->engines = e;
    *out = e;
    return PL_OK;
}
