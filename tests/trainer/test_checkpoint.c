/* Claims: a run that goes on from a checkpoint has the bits of one that was never stopped; what is
 * damaged or unfinished is never taken; a full disk costs the new checkpoint, never an old one. */
#include "tests/trainer/bed.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static bed b;
static pl_error err;
static pl_actor_options options;
static char found[256];
static const char *drafter; /* that is saved too */

#define OK(call) cr_assert_eq((call), PL_OK, "%s", err.msg)

static void begin(void)
{
    bed_options(&options);
    options.use_kl_loss = 1; /* the reference is made anew on resuming */
    bed_open(&b, &options, PL_ISA_AUTO, 2);
}

static void end(void)
{
    bed_close(&b);
}

TestSuite(checkpoint, .init = begin, .fini = end, .timeout = 300);

static void step(bed *x, int n)
{
    pl_step_stats stats;
    bed_sample(x, n);
    OK(bed_step(x, n, &stats, &err));
}

static pl_status save(int n, int max_keep)
{
    const pl_run_state s = {.step = n,
        .next_group = 6 * n,
        .policy_version = (uint32_t)n,
        .config_hash = 0xfedcba9876543210u,
        .val_before = n == 1 ? NAN : 1.0 / 3,
        .elapsed_s = 12.25};
    return pl_checkpoint_save(b.run_dir, b.trainer, NULL, drafter, &s, max_keep, &err);
}

static const char *path_of(const char *name)
{
    static char path[256];
    cr_assert(snprintf(path, sizeof path, "%s/%s", b.run_dir, name) > 0);
    return path;
}

static void expect_newest(int n)
{
    char want[64];
    cr_assert(snprintf(want, sizeof want, "/checkpoints/global_step_%d", n) > 0);
    OK(pl_checkpoint_find(b.run_dir, found, sizeof found, &err));
    cr_assert_str_eq(found + strlen(b.run_dir), want);
}

static void expect_text(const char *name, const char *want)
{
    char *text = NULL;
    OK(pl_file_read(&text, NULL, path_of(name), 1000, &err));
    cr_assert_str_eq(text, want);
    free(text);
}

static void change_byte(const char *name, long at)
{
    FILE *f = fopen(path_of(name), "r+b");
    cr_assert_not_null(f);
    cr_assert_eq(fseek(f, at, at < 0 ? SEEK_END : SEEK_SET), 0);
    const int c = fgetc(f);
    cr_assert_eq(fseek(f, -1, SEEK_CUR), 0);
    cr_assert_eq(fputc(c ^ 1, f), c ^ 1);
    cr_assert_eq(fclose(f), 0);
}

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    cr_assert_not_null(f, "%s", path);
    cr_assert(fputs(text, f) >= 0 && fclose(f) == 0);
}

Test(checkpoint, holds_the_drafter_of_its_policy_and_is_whole_without_one)
{
    char dir[300], path[400];
    snprintf(dir, sizeof dir, "%s/version", b.run_dir);
    OK(pl_dir_make(dir, &err));
    snprintf(path, sizeof path, "%s/config.json", dir);
    write_text(path, "{}");
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    write_text(path, "weights");
    drafter = dir;
    step(&b, 1);
    OK(save(1, 0));
    cr_assert_eq(unlink(path), 0, "the version may go, the checkpoint stays");
    cr_assert(pl_path_exists(path_of("checkpoints/global_step_1/drafter/config.json")));
    cr_assert(pl_path_exists(path_of("checkpoints/global_step_1/drafter/model.safetensors")));
    expect_newest(1);
    step(&b, 2);
    OK(save(2, 0)); /* half of the version is gone */
    cr_assert_not(pl_path_exists(path_of("checkpoints/global_step_2/drafter")));
    expect_newest(2);
}

Test(checkpoint, a_resumed_run_has_the_bits_of_an_uninterrupted_one)
{
    static bed other;
    pl_run_state s;

    step(&b, 1);
    step(&b, 2);
    OK(save(2, 0));
    step(&b, 3);
    float *want = bed_copy(&b);

    bed_open(&other, &options, PL_ISA_AUTO, 1);
    expect_newest(2);
    OK(pl_checkpoint_load(found, other.trainer, &s, &err));
    cr_assert_eq(s.step, 2);
    cr_assert_eq(s.next_group, 12);
    cr_assert_eq(s.policy_version, 2);
    cr_assert_eq(s.config_hash, 0xfedcba9876543210u);
    cr_assert_eq(s.val_before, 1.0 / 3);
    cr_assert_eq(s.elapsed_s, 12.25);
    cr_assert_eq(other.trainer->n_updates, 2);
    step(&other, 3);
    cr_assert(bed_same(&other, want));
    free(want);
    bed_close(&other);
}

Test(checkpoint, a_held_out_reward_that_was_not_measured_stays_so)
{
    pl_run_state s;

    OK(save(1, 0));
    expect_newest(1);
    OK(pl_checkpoint_load(found, b.trainer, &s, &err));
    cr_assert(isnan(s.val_before));
}

Test(checkpoint, the_policy_is_a_model_directory_with_the_masters)
{
    pl_source *src = NULL;

    step(&b, 1);
    OK(save(1, 0));
    OK(pl_source_open(&src, path_of("checkpoints/global_step_1/policy"), &err));
    const pl_param *p = &pl_source_params(src)->params[2];
    const size_t n = (size_t)p->rows * (size_t)p->cols;
    float *w = malloc(n * sizeof *w);
    cr_assert_not_null(w);
    OK(pl_source_read(src, p, w, &err));
    cr_assert_eq(memcmp(w, b.trainer->masters + p->offset, n * sizeof *w), 0);
    free(w);
    pl_source_close(src);
}

Test(checkpoint, old_ones_go_and_the_names_for_people_move)
{
    for (int n = 1; n <= 4; n++)
        OK(save(n, 2));
    cr_assert_not(pl_path_exists(path_of("checkpoints/global_step_1")));
    cr_assert_not(pl_path_exists(path_of("checkpoints/global_step_2")));
    cr_assert(pl_path_exists(path_of("checkpoints/global_step_3/state.json")));
    expect_text("latest", "global_step_4\n");
    expect_text("checkpoints/latest_checkpointed_iteration.txt", "4");
    expect_newest(4);
    cr_assert_eq(err.msg[0], '\0');
    OK(save(12, 0)); /* newest by number, not by name */
    expect_newest(12);
}

Test(checkpoint, no_checkpoint_is_no_entry)
{
    cr_assert_eq(pl_checkpoint_find(b.run_dir, found, sizeof found, &err), PL_E_NOENT);
}

Test(checkpoint, damaged_ones_are_passed_over_and_said_so)
{
    for (int n = 1; n <= 5; n++)
        OK(save(n, 0));
    change_byte("checkpoints/global_step_5/policy/model.safetensors", -1);
    cr_assert_eq(truncate(path_of("checkpoints/global_step_4/optimizer.safetensors"), 5000), 0);
    cr_assert_eq(unlink(path_of("checkpoints/global_step_3/state.json")), 0);
    expect_newest(2);
    cr_assert_not_null(strstr(err.msg, "3 damaged checkpoints passed over"), "%s", err.msg);
    cr_assert_not_null(strstr(err.msg, "model.safetensors' is damaged"), "%s", err.msg);
    cr_assert_eq(unlink(path_of("checkpoints/global_step_2/policy/config.json")), 0);
    expect_newest(1);
    change_byte("checkpoints/global_step_1/state.json", 0);
    cr_assert_eq(pl_checkpoint_find(b.run_dir, found, sizeof found, &err), PL_E_FORMAT);
    cr_assert_not_null(strstr(err.msg, "none of 5 checkpoints"), "%s", err.msg);
}

Test(checkpoint, a_damaged_one_is_refused_by_load_and_replaced_by_save)
{
    pl_run_state s;

    OK(save(1, 0));
    change_byte("checkpoints/global_step_1/optimizer.safetensors", 4000);
    cr_assert_eq(
        pl_checkpoint_load(path_of("checkpoints/global_step_1"), b.trainer, &s, &err), PL_E_FORMAT);
    cr_assert_not_null(strstr(err.msg, "optimizer.safetensors"), "%s", err.msg);
    OK(save(1, 0));
    expect_newest(1);
}

Test(checkpoint, what_is_unfinished_or_foreign_is_ignored)
{
    OK(save(1, 0));
    OK(pl_dir_make(path_of("checkpoints/.global_step_9.tmp/policy"), &err));
    OK(pl_dir_make(path_of("checkpoints/global_step_x"), &err));
    OK(pl_dir_make(path_of("checkpoints/global_step_007"), &err));
    OK(pl_dir_make(path_of("checkpoints/global_step_99999999999999999999"), &err));
    expect_newest(1);
    cr_assert_eq(err.msg[0], '\0', "%s", err.msg);
    OK(save(2, 0));
    cr_assert_not(pl_path_exists(path_of("checkpoints/.global_step_9.tmp")));
}

/* The limit stands for a disk that fills up at another place each time. */
Test(checkpoint, a_full_disk_leaves_the_older_one_whole_and_nothing_else)
{
    static const rlim_t sizes[] = {0, 100, 5000, 300000, 600000, 900000};
    struct rlimit limit, all;
    int n_failed = 0;

    OK(save(1, 0));
    (void)signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &all), 0);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        limit = (struct rlimit){sizes[i], all.rlim_max};
        cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
        const pl_status st = save(2, 1);
        cr_assert_eq(setrlimit(RLIMIT_FSIZE, &all), 0);
        if (st == PL_OK)
            continue;
        n_failed++;
        cr_assert_eq(st, PL_E_IO, "%s", err.msg);
        cr_assert_not_null(strstr(err.msg, "older ones are untouched"), "%s", err.msg);
        cr_assert_not(pl_path_exists(path_of("checkpoints/.global_step_2.tmp")));
        cr_assert_not(pl_path_exists(path_of("checkpoints/global_step_2")));
        expect_newest(1);
    }
    cr_assert_geq(n_failed, 4);
    OK(save(2, 1)); /* space returns */
    expect_newest(2);
}

Test(checkpoint, another_numeric_class_or_version_is_refused_in_words)
{
    static const char *const states[] = {"{\"version\":2}",
        "{\"version\":1,\"numeric_class\":\"x\"}", "{}", "[]", "", "{\"version\":1,\"version\":1}"};
    static const char *const words[] = {"version 2 is not known", "numeric class 'x'", "'version'",
        "'version'", "line", "duplicate"};
    pl_run_state s;

    OK(save(1, 0));
    for (int i = 0; i < 6; i++) {
        OK(pl_file_write(
            path_of("checkpoints/global_step_1/state.json"), states[i], strlen(states[i]), &err));
        cr_assert_eq(pl_checkpoint_load(path_of("checkpoints/global_step_1"), b.trainer, &s, &err),
            PL_E_FORMAT);
        cr_assert_not_null(strstr(err.msg, words[i]), "%s", err.msg);
    }
}

Test(checkpoint, another_architecture_is_refused)
{
    pl_tiny_options tiny;
    pl_source *src = NULL;
    pl_run_state s;
    float *masters = NULL;
    pl_model *model = NULL;
    pl_trainer *t = NULL;

    OK(save(1, 0));
    pl_tiny_defaults(&tiny);
    tiny.arch.n_layers = 1;
    OK(pl_dir_make(path_of("small"), &err));
    OK(pl_tiny_write(path_of("small"), &tiny, &err));
    OK(pl_source_open(&src, path_of("small"), &err));
    OK(pl_model_new(&model, pl_source_arch(src), pl_model_ops(b.model), b.team, 1, &err));
    OK(pl_masters_new(&masters, pl_model_params(model), &err));
    OK(pl_model_load(model, src, masters, &err));
    OK(pl_trainer_new(&t, model, masters, &options, BED_LEN, 1, NULL, &err));
    cr_assert_eq(pl_checkpoint_load(path_of("checkpoints/global_step_1"), t, &s, &err), PL_E_SHAPE);
    pl_trainer_free(t);
    pl_model_free(model);
    pl_source_close(src);
}
