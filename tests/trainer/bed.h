/* tests/trainer/bed.h - a tiny model with a trainer, and samples whose log-probs come from scoring:
 * another path through the model than the trainer's, as a rollout's are. */
#ifndef TESTS_TRAINER_BED_H
#define TESTS_TRAINER_BED_H

#include "core/file.h"
#include "trainer/internal.h"

enum { BED_GROUPS = 6, BED_N = 4, BED_SAMPLES = BED_GROUPS * BED_N, BED_LEN = 96 };

typedef struct bed {
    char dir[64]; /* temporary: model/ and run/ */
    char run_dir[80];
    pl_source *src;
    pl_team *team;
    pl_model *model;
    pl_trainer *trainer;
    pl_actor_options o;
    pl_response responses[BED_SAMPLES];
    pl_sample samples[BED_SAMPLES];
    pl_prompt prompt;
    int32_t tokens[BED_SAMPLES][BED_LEN]; /* prompt and response */
    float logprobs[BED_SAMPLES][BED_LEN];
} bed;

/* Options of the tests: learning rate 1e-3, micro-batches of 256 tokens, keep. */
void bed_options(pl_actor_options *o);
/* Asserts on failure.  The weights are the same every time. */
void bed_open(bed *b, const pl_actor_options *o, pl_isa isa, int n_threads);
void bed_close(bed *b);
/* Fill the samples for a step: texts by number of the step, log-probs of the model as it is now.
 * Group 2 has equal rewards. */
void bed_sample(bed *b, int step);
/* Log-prob sum of each sample under the model as it is now. */
void bed_score(bed *b, double sums[BED_SAMPLES]);
pl_status bed_step(bed *b, int step, pl_step_stats *stats, pl_error *err);
/* A copy of masters, first and second moments. */
float *bed_copy(const bed *b);
/* 1 when the copy has the bits of the trainer. */
int bed_same(const bed *b, const float *copy);

#endif
