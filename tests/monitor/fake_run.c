/* tests/monitor/fake_run.c - the files of a run that never was, for the page's tests: metrics of
 * many steps, samples whose text attacks whoever shows it, a timeline, a snapshot.
 *
 *     fake_run DIR STEPS [SECONDS [FAST]]
 *
 * With SECONDS the run goes on that long: a snapshot every 250 ms, FAST (1) steps a second. */
#define _GNU_SOURCE
#include "core/file.h"
#include "core/json.h"
#include "monitor/monitor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

enum { WORKERS = 6, GROUPS = 4, SAMPLES = 4, WORDS = 12 };

static const char *const words[WORDS] = {" the", " answer", " is", " 7", ".", "\n", " so", " 日",
    " <script>document.title='owned'</script>", " \x1b]0;owned\x07", " \xe2\x80\xae txt", " é"};

static uint64_t state = 42;
static double uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) / 9007199254740992.0;
}

static int64_t unix_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t version_at(int64_t step)
{
    return step < 3 ? 1 : 1 + step / 7;
}

static pl_status put_step(pl_metrics *m, int64_t step, pl_error *err)
{
    const double x = 1 - exp(-(double)step / 400), u = uniform() - 0.5, v = uniform() - 0.5;
    const double reward = 0.15 + 0.6 * x + 0.12 * u, length = 240 + 180 * x + 60 * v;
    const double gen = 20 - 6 * x + 3 * u, idle = 30 + 12 * v, trained = idle * (0.45 + 0.2 * u);
    const double accept = 1.8 + 1.1 * x + 0.2 * u;
    const pl_metric metrics[] = {{"critic/rewards/mean", reward},
        {"critic/rewards/max", fmin(1, reward + 0.4)},
        {"critic/rewards/min", fmax(0, reward - 0.4)}, {"response_length/mean", length},
        {"response_length/max", 900 + 80 * v}, {"response_length/min", 24 + 8 * u},
        {"response_length/clip_ratio", 0.03 + 0.02 * u}, {"actor/pg_loss", 0.02 * v},
        {"actor/ppo_kl", 0.001 * (1 + u)}, {"actor/entropy", 1.2 - 0.5 * x},
        {"actor/grad_norm", 0.8 + 0.3 * u}, {"actor/lr", 1e-6}, {"actor/kl_loss", 0},
        {"actor/pg_clipfrac", 0.01 + 0.01 * u}, {"rollout/spec_accept_length", accept},
        {"rollout/spec_accept_rate", 0.5 + 0.2 * x},
        {"rollout/zero_std/count", floor(3 * uniform())}, {"rollout/tail_throughput", 60 + 20 * v},
        {"rollout/spec_num_draft_learned", 9000}, {"rollout/spec_num_accepted_learned", 5200},
        {"drafter/version", (double)version_at(step)}, {"drafter/accept_length", accept + 0.5},
        {"drafter/optimizer_steps", floor(20 + 10 * u)}, {"drafter/trained_tokens", 52000},
        {"drafter/loss", 2.2 - x + 0.1 * u}, {"drafter/swaps", 2},
        {"drafter/published", step % 7 == 0}, {"drafter/rollbacks", step % 90 == 0},
        {"drafter/alpha_pos_1", 0.62 + 0.2 * x + 0.04 * u},
        {"drafter/alpha_pos_2", 0.5 + 0.2 * x + 0.04 * v},
        {"drafter/alpha_pos_3", 0.4 + 0.2 * x + 0.04 * u},
        {"drafter/alpha_pos_4", 0.3 + 0.2 * x + 0.04 * v}, {"bubble/idle_s", idle},
        {"bubble/drafter_s", trained}, {"bubble/gate_s", idle * 0.06},
        {"bubble/pack_s", idle * 0.04}, {"bubble/wait_s", idle * 0.1},
        {"perf/throughput", 700 + 200 * x + 80 * u},
        {"perf/rollout_throughput", 1100 + 300 * x + 90 * u},
        {"perf/total_num_tokens", 64 * length}, {"timing_s/gen", gen},
        {"timing_s/update_actor", 6 + v}, {"timing_s/step", gen + 7.5 + v}};

    return pl_metrics_put(m, step, metrics, (int)(sizeof metrics / sizeof metrics[0]), err);
}

static void put_list(pl_json *j, const char *key, int n, const int *word, int what)
{
    static const char *const sources[3] = {"\"target\"", "\"suffix\"", "\"learned\""};

    pl_json_text(j, key);
    for (int i = 0; i < n; i++) {
        pl_json_text(j, i == 0 ? "" : ",");
        if (what == 0)
            pl_json_int(j, word[i]);
        else if (what == 1)
            pl_json_float(j, (float)-uniform());
        else
            pl_json_text(j, sources[(word[i] + i / 5) % 3]);
    }
    pl_json_text(j, "]");
}

static void put_sample(pl_json *j, int64_t step, int uid)
{
    const int n = uid % 7 == 3 ? 900 : 20 + (int)(80 * uniform());
    int word[1024], end = 0;
    char prompt[160];

    snprintf(prompt, sizeof prompt,
        ",\"prompt\":[{\"role\":\"user\",\"content\":\"<img src=x onerror=alert(1)> What is the "
        "first "
        "digit of %d?\"}],\"prompt_ids\":[1,2,3]",
        70 + uid / SAMPLES % GROUPS);
    pl_json_text(j, "{\"uid\":");
    pl_json_int(j, uid);
    pl_json_text(j, ",\"step\":");
    pl_json_int(j, step);
    pl_json_text(j, prompt);
    for (int i = 0; i < n; i++)
        word[i] = (int)(uniform() * (i % 40 == 7 ? WORDS : 8));
    put_list(j, ",\"tokens\":[", n, word, 0);
    put_list(j, ",\"logprobs\":[", n, word, 1);
    pl_json text = {0};
    for (int i = 0; i < n; i++)
        pl_json_text(&text, words[word[i]]);
    pl_json_text(j, ",\"text\":");
    pl_json_string(j, text.data, text.n);
    pl_json_done(&text);
    pl_json_text(j, ",\"reward\":");
    pl_json_float(j, (float)(uniform() < 0.5));
    pl_json_text(j, ",\"advantage\":0.5,\"finish_reason\":\"stop\",\"policy_version\":");
    pl_json_int(j, step - 1);
    pl_json_text(j, ",\"spec_num_draft_tokens\":60,\"spec_num_accepted_tokens\":30,"
                    "\"spec_num_verify_steps\":");
    pl_json_int(j, 1 + n / 2);
    pl_json_text(j, ",\"ground_truth\":\"7\"");
    put_list(j, ",\"token_source\":[", n, word, 2);
    pl_json_text(j, ",\"token_ends\":[");
    for (int i = 0; i < n; i++) {
        end += (int)strlen(words[word[i]]);
        pl_json_text(j, i == 0 ? "" : ",");
        pl_json_int(j, end);
    }
    pl_json_text(j, "]}\n");
}

static pl_status put_rollouts(const char *dir, int64_t step, pl_error *err)
{
    pl_json j = {0};
    char path[4096];

    for (int i = 0; i < GROUPS * SAMPLES; i++)
        put_sample(&j, step, i);
    const size_t room = ZSTD_compressBound(j.n);
    void *out = malloc(room);
    const size_t n = out && !j.failed ? ZSTD_compress(out, room, j.data, j.n, 1) : 0;
    snprintf(path, sizeof path, "%s/rollouts/step_%06lld.jsonl.zst", dir, (long long)step);
    const pl_status st = n > 0 && !ZSTD_isError(n) ? pl_file_write(path, out, n, err)
                                                   : pl_fail(err, PL_E_NOMEM, "rollouts");
    free(out);
    pl_json_done(&j);
    return st;
}

/* The last two minutes of the workers: each is busy, trains, idles. */
static void put_timeline(pl_timeline *t, int64_t end_us, int64_t us)
{
    static const char *const names[3] = {"BUSY", "TRAINING", "IDLE"};
    char track[32];

    for (int w = 0; w < WORKERS; w++) {
        int64_t at = end_us - us;
        snprintf(track, sizeof track, "worker-%d", w);
        for (int i = 0; at < end_us; i = (i + 1) % 3) {
            const int64_t length = (int64_t)((i == 0      ? 9
                                                 : i == 1 ? 4
                                                          : 2) *
                                             1e6 * (0.4 + uniform()));
            pl_timeline_put(
                t, track, names[i], at, length < end_us - at ? length : end_us - at, NULL);
            at += length;
        }
    }
    for (int64_t at = end_us - us; at + 21000000 < end_us; at += 21000000) {
        pl_timeline_put(t, "trainer", "rollout", at, 15000000, NULL);
        pl_timeline_put(t, "trainer", "update", at + 15000000, 6000000, NULL);
    }
}

static void fill_snapshot(pl_snapshot *s, int64_t step, int64_t total, int tick)
{
    const int64_t now = unix_ms();

    *s = (pl_snapshot){.run = "0123456789abcdef",
        .pid = (uint32_t)getpid(),
        .phase = PL_PHASE_ROLLOUT,
        .started_ms = now - 3600000,
        .updated_ms = now,
        .phase_ms = now - 9000,
        .step = step,
        .total_steps = total,
        .batch = (uint64_t)step + 1,
        .n_samples = 512,
        .n_done = (uint32_t)(200 + tick % 300),
        .n_running = 12,
        .n_tokens = 150000,
        .rate = 1234 + 50 * sin(tick / 9.0),
        .eta_s = 5400,
        .policy_version = (uint32_t)step,
        .drafter_version = (uint32_t)version_at(step),
        .n_workers = WORKERS};
    snprintf(s->awaited, sizeof s->awaited,
        "12 responses of 3 prompts, the longest at 3100 of 4096 tokens, on worker-0 and worker-3");
    for (int i = 8; i < 40; i++)
        s->lengths[i] = (uint32_t)(60 * exp(-(i - 24) * (i - 24) / 40.0) + (i > 30 ? 2 : 0));
    for (int i = 36; i < 43; i++)
        s->running_lengths[i] = (uint32_t)(i % 3 + 1);
    for (int w = 0; w < WORKERS; w++) {
        pl_snapshot_worker *k = &s->workers[w];
        *k = (pl_snapshot_worker){.state = w == 4   ? PL_WORKER_TRAINING
                                           : w == 5 ? PL_WORKER_IDLE
                                                    : PL_WORKER_BUSY,
            .n_threads = 8,
            .pid = 4000 + (uint32_t)w,
            .policy_version = (uint32_t)step,
            .drafter_version = (uint32_t)version_at(step),
            .n_running = w < 4 ? 3 : 0,
            .rate = w < 4 ? 300 : 0,
            .busy_s = 700,
            .training_s = 120,
            .idle_s = 80};
        snprintf(k->name, sizeof k->name, "worker-%d", w);
        for (int i = 0; i < PL_SNAPSHOT_STRIP; i++)
            k->strip[i] = (uint8_t)(1 + ((i + 17 * w + tick / 4) % 60 < 38      ? PL_WORKER_BUSY
                                            : (i + 17 * w + tick / 4) % 60 < 52 ? PL_WORKER_TRAINING
                                                                                : PL_WORKER_IDLE));
    }
}

static pl_status write_run(const char *dir, int64_t steps, int live_s, int fast, pl_error *err)
{
    const struct timespec quarter = {0, 250000000};
    char path[4096];
    pl_metrics *m = NULL;
    pl_timeline *t = NULL;
    pl_snapshot_file *f = NULL;
    pl_snapshot *s = calloc(1, sizeof *s);

    snprintf(path, sizeof path, "%s/rollouts", dir);
    pl_status st = s ? pl_dir_make(path, err) : pl_fail(err, PL_E_NOMEM, "snapshot");
    if (st == PL_OK)
        st = pl_metrics_open(&m, dir, -1, err);
    for (int64_t i = 1; i <= steps && st == PL_OK; i++)
        st = put_step(m, i, err);
    for (int64_t i = steps > 30 ? steps - 30 : 1; i <= steps && st == PL_OK; i++)
        st = put_rollouts(dir, i, err);
    if (st == PL_OK)
        st = pl_timeline_open(&t, dir, 64 << 20, err);
    if (st == PL_OK) {
        put_timeline(t, unix_ms() * 1000, 300000000);
        st = pl_snapshot_open(&f, dir, err);
    }
    for (int tick = 0; tick <= 4 * live_s && st == PL_OK; tick++) {
        if (tick > 0)
            nanosleep(&quarter, NULL);
        if (tick % 4 == 3) {
            for (int i = 0; i < fast && st == PL_OK; i++)
                st = put_step(m, ++steps, err);
            put_timeline(t, unix_ms() * 1000, 1000000);
        }
        fill_snapshot(s, steps, steps + 100, tick);
        pl_snapshot_write(f, s);
    }
    pl_snapshot_close(f);
    pl_timeline_close(t);
    pl_metrics_close(m);
    free(s);
    return st;
}

int main(int argc, char **argv)
{
    pl_error err = {0};

    if (argc < 3) {
        fprintf(stderr, "usage: fake_run DIR STEPS [SECONDS [FAST]]\n");
        return 64;
    }
    if (write_run(argv[1], atoll(argv[2]), argc > 3 ? atoi(argv[3]) : 0,
            argc > 4 ? atoi(argv[4]) : 1, &err) != PL_OK) {
        fprintf(stderr, "fake_run: %s\n", err.msg);
        return 1;
    }
    return 0;
}
