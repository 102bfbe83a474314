/* Claims: defaults, file and overrides apply in this order; whatever is wrong is refused with its
 * place and the nearest key; the dump reads back to the same values. */
#define _GNU_SOURCE
#include "core/config.h"

#include "core/rng.h"

#include <criterion/criterion.h>
#include <float.h>
#include <locale.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct rollout_options {
    int64_t n, seed;
    double temperature;
    int ignore_eos;
    char method[PL_CONFIG_STR];
} rollout_options;

typedef struct model_options {
    char path[PL_CONFIG_STR];
    double rate;
    int64_t any;
    int64_t deepest;
} model_options;

#define R(field) offsetof(rollout_options, field)
#define M(field) offsetof(model_options, field)

static const pl_config_key rollout_keys[] = {
    {"actor_rollout_ref.rollout.n", R(n), PL_INT, 1, 64, "8", NULL, "responses per prompt"},
    {"actor_rollout_ref.rollout.temperature", R(temperature), PL_FLOAT, 0, 10, "1.0", NULL,
        "of sampling"},
    {"speculative.method", R(method), PL_ENUM, 0, 0, "auto", "auto|suffix|eagle|off", "drafter"},
    {"actor_rollout_ref.rollout.ignore_eos", R(ignore_eos), PL_BOOL, 0, 0, "false", NULL,
        "for benches: go on after the end"},
    {"actor_rollout_ref.rollout.seed", R(seed), PL_INT, -0x1p63, 0x1p63, "1", NULL, "of noise"},
    {0},
};

static const pl_config_key model_keys[] = {
    {"actor_rollout_ref.model.path", M(path), PL_STRING, 0, 0, "", NULL,
        "a directory or a file: "
        "with a description that is far too long for one line of a terminal, so that it is broken"},
    {"actor_rollout_ref.actor.optim.lr", M(rate), PL_FLOAT, -DBL_MAX, DBL_MAX, "1e-6", NULL,
        "rate"},
    {"trainer.steps", M(any), PL_INT, 0, 0x1p63, "20", NULL, "steps"},
    {"l1.l2.l3.l4.l5.l6.l7.key", M(deepest), PL_INT, 0, 9, "0", NULL, "as deep as maps go"},
    {0},
};

static const pl_config_alias aliases[] = {
    {"rollout.", "actor_rollout_ref.rollout."},
    {"model.", "actor_rollout_ref.model."},
    {"num_generations", "actor_rollout_ref.rollout.n"},
    {NULL, NULL},
};

typedef struct all_options {
    rollout_options rollout;
    model_options model;
} all_options;

static pl_status parse_n(all_options *o, const char *text, size_t n_bytes, pl_error *err)
{
    const pl_config_section sections[] = {{rollout_keys, &o->rollout}, {model_keys, &o->model}};
    return pl_config_parse(sections, 2, aliases, text, n_bytes, "f.yaml", err);
}

static pl_status parse(all_options *o, const char *text, pl_error *err)
{
    return parse_n(o, text, strlen(text), err);
}

static pl_status load(
    all_options *o, const char *path, const char *const *list, int n, pl_error *err)
{
    const pl_config_section sections[] = {{rollout_keys, &o->rollout}, {model_keys, &o->model}};
    return pl_config_load(sections, 2, aliases, path, (char *const *)(uintptr_t)list, n, err);
}

Test(config, nothing_given_means_defaults)
{
    static const char *const empty[] = {"", "\n", "# a comment\n", "---\n", "{}", "~", "rollout:\n",
        "---\n...\n", "\xef\xbb\xbf# after a byte order mark\n"};
    for (size_t i = 0; i < sizeof empty / sizeof *empty; i++) {
        all_options o;
        pl_error err = {0};
        memset(&o, 0xff, sizeof o);
        cr_assert_eq(parse(&o, empty[i], &err), PL_OK, "case %zu: %s", i, err.msg);
        cr_assert_eq(o.rollout.n, 8);
        cr_assert_eq(o.rollout.temperature, 1.0);
        cr_assert_eq(o.rollout.ignore_eos, 0);
        cr_assert_str_eq(o.rollout.method, "auto");
        cr_assert_str_eq(o.model.path, "");
        cr_assert_eq(o.model.rate, 1e-6);
    }
}

Test(config, maps_dots_and_short_names_say_the_same)
{
    static const char *const same[] = {
        "actor_rollout_ref:\n  rollout:\n    n: 16\n    temperature: .5\n  model:\n    path: m/x\n",
        "rollout: {n: 16, temperature: 5e-1}\nmodel: {path: 'm/x'}\n",
        "rollout.n: +16\nrollout.temperature: 0.50\nmodel.path: \"m\\x2fx\"\n",
        "num_generations: 016\nrollout:\n  temperature: 5E-1\nmodel:\n  path: >-\n    m/x\n",
    };
    for (size_t i = 0; i < 4; i++) {
        all_options o;
        pl_error err = {0};
        cr_assert_eq(parse(&o, same[i], &err), PL_OK, "case %zu: %s", i, err.msg);
        cr_assert_eq(o.rollout.n, 16);
        cr_assert_eq(o.rollout.temperature, 0.5);
        cr_assert_str_eq(o.model.path, "m/x");
    }
}

static const struct {
    const char *text, *want;
} wrong[] = {
    {"rollout:\n  temprature: 1\n", "f.yaml:2:3: unknown key 'rollout.temprature' "
                                    "(did you mean 'actor_rollout_ref.rollout.temperature'?)"},
    {"a: 1\nspeculativ: {method: off}\n", "f.yaml:1:1: unknown key 'a'"},
    {"speculativ: {method: off}\n", "1:1: unknown key 'speculativ' (did you mean 'speculative'?)"},
    {"temperature: 1\n", "(did you mean 'actor_rollout_ref.rollout.temperature'?)"},
    {"rollout: {n: 1.0x}", "1:14: 'actor_rollout_ref.rollout.n' takes an integer, not '1.0x'"},
    {"rollout: {n: yes}", "takes an integer, not 'yes'"},
    {"rollout: {n: 0x10}", "takes an integer, not '0x10'"},
    {"rollout: {n: 1e1}", "takes an integer, not '1e1'"},
    {"rollout: {n: 8_4}", "takes an integer, not '8_4'"},
    {"rollout: {n: '8'}", "takes an integer, not a quoted text"},
    {"rollout: {n: +}", "takes an integer, not '+'"},
    {"rollout: {n: 65}", "'actor_rollout_ref.rollout.n' is 65, allowed is 1 .. 64"},
    {"rollout: {n: -1}", "is -1, allowed is 1 .. 64"},
    {"trainer: {steps: -1}", "is -1, allowed is at least 0"},
    {"rollout: {seed: 9223372036854775808}", "allowed is what 64 bits hold"},
    {"rollout: {n: ~}", "has no value; it takes an integer"},
    {"rollout: {n: }", "has no value"},
    {"model: {path: null}", "has no value; it takes a text, \"\" for an empty one"},
    {"rollout: {temperature: 1.0x}", "takes a number, not '1.0x'"},
    {"rollout: {temperature: 1,5}", "unknown key 'rollout.5'"},
    {"rollout: {temperature: nan}", "takes a number, not 'nan'"},
    {"rollout: {temperature: .inf}", "takes a number, not '.inf'"},
    {"rollout: {temperature: 0x1p3}", "takes a number, not '0x1p3'"},
    {"rollout: {temperature: .}", "takes a number, not '.'"},
    {"rollout: {temperature: 1e}", "takes a number, not '1e'"},
    {"rollout: {temperature: 11}", "is 11, allowed is 0 .. 10"},
    {"actor_rollout_ref: {actor: {optim: {lr: 1e999}}}", "is 1e999, which no double can hold"},
    {"rollout: {ignore_eos: yes}", "takes true or false, not 'yes'"},
    {"rollout: {ignore_eos: True}", "takes true or false, not 'True'"},
    {"speculative: {method: sufix}",
        "'speculative.method' is 'sufix', allowed is auto, suffix, eagle or off (did you mean "
        "'suffix'?)"},
    {"speculative: {method: none at all}", "allowed is auto, suffix, eagle or off"},
    {"trainer: {steps: 1, steps: 1}", "1:21: duplicate key 'trainer.steps' (first at 1:11)"},
    {"trainer: {steps: 1}\ntrainer: {steps: 1}", "2:11: duplicate key"},
    {"rollout: {n: 1}\nactor_rollout_ref: {rollout: {n: 1}}",
        "duplicate key 'actor_rollout_ref.rollout.n': the same as 'rollout.n' at 1:11; keep one"},
    {"trainer: 5", "'trainer' is a section of keys, not a value"},
    {"rollout: 5", "'rollout' is a section of keys, not a value"},
    {"trainer: [steps]", "'trainer' is a section of keys, not a list"},
    {"trainer: {steps: {a: 1}}", "'trainer.steps' takes an integer, not a map"},
    {"trainer: {steps: [1]}", "'trainer.steps' takes an integer, not a list"},
    {"unknown: [1]", "unknown key 'unknown'"},
    {"trainer: &x {steps: 1}", "1:"},
    {"trainer: {steps: &x 1}", "anchors (&name) are not taken"},
    {"trainer: *x", "aliases (*name) are not taken"},
    {"trainer: {steps: !!int 1}", "tags (!type) are not taken"},
    {"trainer: !mine {steps: 1}", "tags (!type) are not taken"},
    {"trainer:\n  <<: {steps: 1}\n", "2:3: merge keys (<<) are not taken"},
    {"---\ntrainer: {steps: 1}\n---\n{}\n", "3:1: a second document"},
    {"l1: {l2: {l3: {l4: {l5: {l6: {l7: {key: {a: 1}}}}}}}}", "more than 8 maps"},
    {"5", "the file must be a map of keys, not one value"},
    {"[1]", "the file must be a map of keys, not a list"},
    {"? {a: 1}\n: 2\n", "a map cannot be a key"},
    {"? [a]\n: 2\n", "a list cannot be a key"},
    {"'': 2\n", "a key is empty"},
    {"trainer: {steps: 1", "f.yaml:"},
    {"trainer:\n\tsteps: 1\n", "f.yaml:2:1: tab"},
    {"model: {path: \"a\\0b\"}", "NUL"},
    {"model: {path: a\xff}", "1:16: byte 0xff is not UTF-8"},
    {"%YAML 9.9\n---\n{}\n", "is not YAML"},
};

Test(config, what_is_wrong_is_named_with_its_place)
{
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        all_options o;
        pl_error err = {0};
        cr_assert_eq(parse(&o, wrong[i].text, &err), PL_E_CONFIG, "%s", wrong[i].text);
        cr_assert(strstr(err.msg, wrong[i].want), "%s: got: %s", wrong[i].text, err.msg);
        cr_assert_eq(strncmp(err.msg, "f.yaml:", 7), 0, "%s", err.msg);
    }
}

Test(config, the_deepest_map_that_fits_is_read)
{
    all_options o;
    pl_error err = {0};
    cr_assert_eq(
        parse(&o, "l1: {l2: {l3: {l4: {l5: {l6: {l7: {key: 7}}}}}}}", &err), PL_OK, "%s", err.msg);
    cr_assert_eq(o.model.deepest, 7);
}

Test(config, large_and_nul_holding_files_are_refused)
{
    all_options o;
    pl_error err;
    char *text = malloc(2 << 20);
    memset(text, '\n', 2 << 20);
    cr_assert_eq(parse_n(&o, text, 2 << 20, &err), PL_E_CONFIG);
    cr_assert(strstr(err.msg, "at most 1048576"), "%s", err.msg);
    cr_assert_eq(parse_n(&o, text, 1 << 20, &err), PL_OK);
    free(text);
    cr_assert_eq(parse_n(&o, "trainer: \0", 10, &err), PL_E_CONFIG);
    cr_assert(strstr(err.msg, "f.yaml:1:10: byte 0x00"), "%s", err.msg);
}

Test(config, long_texts_and_keys_are_refused)
{
    all_options o;
    pl_error err;
    char text[3000] = "model.path: ";
    memset(text + 12, 'a', 1023);
    cr_assert_eq(parse(&o, text, &err), PL_OK);
    cr_assert_eq(strlen(o.model.path), 1023);
    text[12 + 1023] = 'a';
    cr_assert_eq(parse(&o, text, &err), PL_E_CONFIG);
    cr_assert(strstr(err.msg, "a text of 1024 bytes, allowed are 1023"), "%s", err.msg);
    memset(text, 'k', 300);
    strcpy(text + 300, ": 1\n");
    cr_assert_eq(parse(&o, text, &err), PL_E_CONFIG);
    cr_assert(strstr(err.msg, "no key is so long"), "%s", err.msg);
}

Test(config, overrides_come_last_and_the_last_one_counts)
{
    const char *const list[] = {"rollout.temperature=0.25", "model.path=a=b c", "rollout.n=3",
        "rollout.n=4", "speculative.method=off", "rollout.seed=-9223372036854775808"};
    all_options o;
    pl_error err = {0};
    cr_assert_eq(load(&o, NULL, list, 6, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(o.rollout.temperature, 0.25);
    cr_assert_eq(o.rollout.n, 4);
    cr_assert_eq(o.rollout.seed, INT64_MIN);
    cr_assert_str_eq(o.model.path, "a=b c");
    cr_assert_str_eq(o.rollout.method, "off");
}

Test(config, wrong_overrides_are_quoted)
{
    static const struct {
        char text[64];
        const char *want;
    } cases[] = {
        {"a.b=c", "override 'a.b=c': unknown key 'a.b'"},
        {"rollout.temprature=1", "(did you mean 'actor_rollout_ref.rollout.temperature'?)"},
        {"rollout.n", "override 'rollout.n': is not of the form key=value"},
        {"=5", "is not of the form key=value"},
        {"rollout.n=", "takes an integer, not ''"},
        {"rollout.n= 5", "takes an integer, not ' 5'"},
        {"rollout=5", "'rollout' is a section"},
        {"model.path=\xff", "is not valid UTF-8"},
        {"rollout.n=100", "is 100, allowed is 1 .. 64"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const list[] = {cases[i].text};
        all_options o;
        pl_error err = {0};
        cr_assert_eq(load(&o, NULL, list, 1, &err), PL_E_CONFIG, "%s", cases[i].text);
        cr_assert(strstr(err.msg, cases[i].want), "%s: got: %s", cases[i].text, err.msg);
        cr_assert_eq(strncmp(err.msg, "override '", 10), 0, "%s", err.msg);
    }
}

Test(config, an_override_by_two_names_is_refused)
{
    const char *const list[] = {"rollout.n=3", "actor_rollout_ref.rollout.n=4"};
    all_options o;
    pl_error err = {0};
    cr_assert_eq(load(&o, NULL, list, 2, &err), PL_E_CONFIG);
    cr_assert(strstr(err.msg, "'actor_rollout_ref.rollout.n' and 'rollout.n' are the same key"));
}

Test(config, a_missing_file_is_noent_and_a_bad_default_inval)
{
    static const pl_config_key bad[] = {{"a", R(n), PL_INT, 1, 2, "3", NULL, ""}, {0}};
    all_options o;
    pl_error err = {0};
    const pl_config_section section = {bad, &o.rollout};
    cr_assert_eq(load(&o, "no/such/file.yaml", NULL, 0, &err), PL_E_NOENT);
    cr_assert(strstr(err.msg, "no/such/file.yaml"));
    cr_assert_eq(pl_config_load(&section, 1, NULL, NULL, NULL, 0, &err), PL_E_INVAL);
    cr_assert(strstr(err.msg, "'a' is 3"), "%s", err.msg);
}

Test(config, two_tables_may_hold_the_same_key)
{
    int64_t a[2] = {0};
    static const pl_config_key first[] = {{"s.n", 0, PL_INT, 0, 9, "1", NULL, ""}, {0}};
    static const pl_config_key second[] = {{"s.n", 8, PL_INT, 0, 9, "1", NULL, ""}, {0}};
    const pl_config_section sections[] = {{first, a}, {second, a}};
    cr_assert_eq(pl_config_parse(sections, 2, NULL, "s: {n: 5}", 9, "f", NULL), PL_OK);
    cr_assert_eq(a[0], 5);
    cr_assert_eq(a[1], 5);
}

/* --- the dump --- */

static char *dump(const all_options *o, int with_help)
{
    char *text = NULL;
    size_t n = 0;
    const pl_config_section sections[] = {
        {rollout_keys, (void *)(uintptr_t)&o->rollout}, {model_keys, (void *)(uintptr_t)&o->model}};
    FILE *out = open_memstream(&text, &n);
    cr_assert_not_null(out);
    pl_config_dump(sections, 2, with_help, out);
    fclose(out);
    return text;
}

Test(config, the_dump_merges_the_sections_of_all_tables)
{
    all_options o;
    cr_assert_eq(load(&o, NULL, NULL, 0, NULL), PL_OK);
    char *text = dump(&o, 0);
    char *cut = strstr(text, "l1:\n");
    cr_assert_not_null(cut);
    *cut = '\0';
    cr_assert_str_eq(text, "actor_rollout_ref:\n"
                           "  rollout:\n"
                           "    n: 8\n"
                           "    temperature: 1\n"
                           "    ignore_eos: false\n"
                           "    seed: 1\n"
                           "  model:\n"
                           "    path: \"\"\n"
                           "  actor:\n"
                           "    optim:\n"
                           "      lr: 1e-06\n"
                           "speculative:\n"
                           "  method: auto\n"
                           "trainer:\n"
                           "  steps: 20\n");
    free(text);
}

Test(config, the_help_names_type_range_default_and_meaning)
{
    all_options o;
    cr_assert_eq(load(&o, NULL, NULL, 0, NULL), PL_OK);
    char *text = dump(&o, 1);
    cr_assert(
        strstr(text, "    # responses per prompt\n    # integer, 1 .. 64; default 8\n    n: 8\n"));
    cr_assert(strstr(text, "# one of auto, suffix, eagle or off; default auto\n"));
    for (char *line = text; *line; line += strcspn(line, "\n") + 1)
        cr_assert_leq(strcspn(line, "\n"), 100, "%.60s", line);
    free(text);
}

/* Text of up to 12 code points, from those that are hard to write. */
static void odd_text(char *out, uint32_t seed)
{
    static const char *const parts[] = {"a", " ", "\n", "\t", "\"", "\\", "'", ":", "#", "-", "?",
        "&", "*", "!", "%", "@", "`", "{", "}", "[", "]", ",", "|", ">", "~", "\x01", "\x7f",
        "\xc2\x85", "\xc2\xa0", "\xe2\x80\xa8", "\xe2\x80\xa9", "\xef\xbb\xbf", "\xef\xbf\xbe",
        "\xef\xbf\xbf", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf", "\xc3\xa4", "0", "1", ".", "e",
        "null", "true", "\r", "\x1b", "=", "/", "\xed\x9f\xbf", "\xee\x80\x80"};
    const uint32_t n = pl_noise_word(1, seed, 0, 0, 0) % 13;
    out[0] = '\0';
    for (uint32_t i = 0; i < n; i++)
        strcat(out, parts[pl_noise_word(1, seed, 1, 0, i) % (sizeof parts / sizeof *parts)]);
}

static void check_round_trip(const all_options *o, uint32_t seed)
{
    for (int with_help = 0; with_help < 2; with_help++) {
        all_options back;
        pl_error err = {0};
        memset(&back, 0xff, sizeof back);
        char *text = dump(o, with_help);
        cr_assert_eq(parse(&back, text, &err), PL_OK, "seed %u: %s\n%s", seed, err.msg, text);
        cr_assert_eq(back.rollout.n, o->rollout.n);
        cr_assert_eq(back.rollout.seed, o->rollout.seed);
        cr_assert_eq(memcmp(&back.rollout.temperature, &o->rollout.temperature, 8), 0);
        cr_assert_eq(memcmp(&back.model.rate, &o->model.rate, 8), 0, "seed %u\n%s", seed, text);
        cr_assert_eq(back.rollout.ignore_eos, o->rollout.ignore_eos);
        cr_assert_str_eq(back.rollout.method, o->rollout.method);
        cr_assert_str_eq(back.model.path, o->model.path, "seed %u\n%s", seed, text);
        free(text);
    }
}

Test(config, the_dump_reads_back_to_the_same_values, .timeout = 60)
{
    static const char *const methods[] = {"auto", "suffix", "eagle", "off"};
    for (uint32_t seed = 0; seed < 1500; seed++) {
        all_options o;
        cr_assert_eq(load(&o, NULL, NULL, 0, NULL), PL_OK);
        const uint64_t bits =
            (uint64_t)pl_noise_word(2, seed, 0, 0, 0) << 32 | pl_noise_word(2, seed, 0, 0, 1);
        memcpy(&o.rollout.seed, &bits, 8);
        memcpy(&o.model.rate, &bits, 8);
        if (!isnormal(o.model.rate))
            o.model.rate = -0.0;
        o.rollout.n = 1 + seed % 64;
        o.rollout.temperature = 10 * pl_noise_uniform(2, seed, 1, 0, 0);
        o.rollout.ignore_eos = seed % 2;
        strcpy(o.rollout.method, methods[seed % 4]);
        odd_text(o.model.path, seed);
        check_round_trip(&o, seed);
    }
}

Test(config, a_comma_locale_changes_nothing)
{
    static const char *const names[] = {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE.utf8", "de_DE"};
    int found = 0;
    for (size_t i = 0; i < 4 && !found; i++)
        found = setlocale(LC_ALL, names[i]) != NULL;
    if (!found) /* cr_skip_test and cr_log_* leak, which the leak sanitizer takes for ours */
        fputs("no locale with a decimal comma is installed: the C locale is tried\n", stderr);

    all_options o;
    cr_assert_eq(parse(&o, "rollout: {temperature: 1.25}", NULL), PL_OK);
    cr_assert_eq(o.rollout.temperature, 1.25);
    char *text = dump(&o, 0);
    cr_assert(strstr(text, "temperature: 1.25\n"), "%s", text);
    free(text);
}

/* Deterministic damage: bytes changed, cut or doubled; the answer is OK or an error, never a crash
 * (run under the address sanitizer, this is where it looks). */
Test(config, damaged_files_do_no_damage, .timeout = 120)
{
    static const char good[] =
        "# comment\nactor_rollout_ref:\n  rollout: {n: 4, temperature: 0.7}\n  model:\n"
        "    path: \"a\\tb\\u00e4\"\nspeculative:\n  method: 'suffix'\ntrainer: {steps: 12}\n";
    static const char marks[] = "\n\t :-[]{}&*!|>'\"%@,#?~\\0a\xff";
    for (uint32_t seed = 0; seed < 8000; seed++) {
        char text[sizeof good];
        all_options o;
        pl_error err;
        size_t n = sizeof good - 1;
        memcpy(text, good, sizeof good);
        const uint32_t n_changes = 1 + pl_noise_word(3, seed, 0, 0, 0) % 4;
        for (uint32_t i = 0; i < n_changes; i++)
            text[pl_noise_word(3, seed, 1, 0, i) % n] =
                marks[pl_noise_word(3, seed, 2, 0, i) % (sizeof marks - 1)];
        if (seed % 5 == 0)
            n = pl_noise_word(3, seed, 3, 0, 0) % n;
        const pl_status st = parse_n(&o, text, n, &err);
        cr_assert(st == PL_OK || st == PL_E_CONFIG, "seed %u: %s", seed, err.msg);
    }
}
