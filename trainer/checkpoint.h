/* trainer/checkpoint.h - parts of a checkpoint directory; included only inside trainer/. */
#ifndef PL_TRAINER_CHECKPOINT_H
#define PL_TRAINER_CHECKPOINT_H

#include "trainer/internal.h"

enum { CHECKPOINT_PATH = 4096, CHECKPOINT_FILES = 64 };

/* dir + "/" + name.  Errors: PL_E_IO when it is too long. */
pl_status checkpoint_join(
    char out[CHECKPOINT_PATH], const char *dir, const char *name, pl_error *err);

/* optimizer.safetensors: both moments of every parameter, streamed to and from the flat arrays. */
pl_status moments_save(const pl_trainer *t, const char *path, pl_error *err);
pl_status moments_load(pl_trainer *t, const char *path, pl_error *err);

/* state.json: the state of the run, and size and hash of every other file of the checkpoint. */
typedef struct checkpoint_state {
    pl_run_state run;
    int64_t n_updates;
} checkpoint_state;

/* Write dir/state.json about the files that dir holds now. */
pl_status state_save(const char *dir, const checkpoint_state *s, pl_error *err);
/* Read it and compare every file.  Errors: PL_E_FORMAT naming what is damaged, PL_E_NOENT. */
pl_status state_load(const char *dir, checkpoint_state *s, pl_error *err);

#endif
