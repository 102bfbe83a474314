/* model/hf_config.h - config.json and generation_config.json of a Hugging Face Llama. */
#ifndef PL_MODEL_HF_CONFIG_H
#define PL_MODEL_HF_CONFIG_H

#include "model/arch.h"

/* Read both files of dir (generation_config.json may be missing) into *a and check it.
 * Errors: PL_E_NOENT, PL_E_IO, PL_E_FORMAT, PL_E_SHAPE. */
pl_status hf_config_read(pl_arch *a, const char *dir, pl_error *err);
/* Write both.  dtype is "float32" or "bfloat16".  Errors: PL_E_IO, PL_E_NOMEM. */
pl_status hf_config_write(const char *dir, const pl_arch *a, const char *dtype, pl_error *err);

#endif
