/* trainer/rollouts_internal.h - shared by the sources that read rollout records. */
#ifndef PL_TRAINER_ROLLOUTS_INTERNAL_H
#define PL_TRAINER_ROLLOUTS_INTERNAL_H

#include "trainer/scan.h"
#include "trainer/trainer.h"

/* ---- the fields of one line ---- */

typedef enum rollouts_field {
    FIELD_UID,
    FIELD_GROUP,
    FIELD_STEP,
    FIELD_PROMPT,
    FIELD_PROMPT_IDS,
    FIELD_TOKENS,
    FIELD_LENGTH, /* of the response, at the end of tokens that hold the prompt too */
    FIELD_MASK,
    FIELD_LOGPROBS,
    FIELD_TEXT,
    FIELD_REWARD,
    FIELD_ADVANTAGE,
    FIELD_FINISH,
    FIELD_VERSION,
    FIELD_TEMPERATURE,
    FIELD_DRAFT,
    FIELD_ACCEPTED,
    FIELD_STEPS,
    FIELD_SOURCES,
    FIELD_TRUTH,
    FIELD_DATA_SOURCE,
    FIELD_EXTRA,
    FIELDS
} rollouts_field;

typedef struct rollouts_fields {
    const char *names[FIELDS]; /* as the line has it; NULL: not there, or null */
    scan_item items[FIELDS];
    unsigned char places[FIELDS]; /* of the name in the table: an earlier one is preferred */
} rollouts_fields;

/* What the line says, under our names or those of other systems.  Everything stays in the line.
 * Errors: PL_E_FORMAT (broken JSON, a key twice). */
pl_status fields_find(rollouts_fields *f, const char *line, size_t n_bytes, pl_error *err);
/* The value must be there for those that follow.  Errors: PL_E_FORMAT naming the field. */
pl_status fields_int(const rollouts_fields *f, rollouts_field which, int64_t min, int64_t max,
    int64_t *out, pl_error *err);
/* Rounded once from the text, so that the shortest text of a float gives its bits; finite. */
pl_status fields_float(const rollouts_fields *f, rollouts_field which, float *out, pl_error *err);
/* Elements of an array.  Errors: also PL_E_SHAPE when it has more than max. */
pl_status fields_count(
    const rollouts_fields *f, rollouts_field which, int max, int *out, pl_error *err);
/* The n elements of an array; out [n]. */
pl_status fields_ids(
    const rollouts_fields *f, rollouts_field which, int32_t limit, int32_t *out, pl_error *err);
pl_status fields_floats(const rollouts_fields *f, rollouts_field which, float *out, pl_error *err);
pl_status fields_sources(
    const rollouts_fields *f, rollouts_field which, uint8_t *out, pl_error *err);
/* A string's bytes with a NUL after them, *returned owned*. */
pl_status fields_text(
    const rollouts_fields *f, rollouts_field which, char **out, size_t *n_bytes, pl_error *err);

/* ---- one record ---- */

typedef struct rollouts_reader {
    const char *name; /* of the file */
    const pl_tokenizer *tok;
    int n_vocab, max_tokens;
} rollouts_reader;

typedef struct rollouts_entry {
    pl_response response; /* its prompt is that of prompt */
    pl_prompt prompt;
    pl_sample sample;
    int64_t step;
    int line;
    int has_uid;
    uint64_t group; /* hash of the group that the line names; 0: none */
} rollouts_entry;

/* Errors: PL_E_FORMAT, PL_E_SHAPE, PL_E_NOMEM; e is to be freed also then. */
pl_status entry_read(
    const rollouts_reader *r, rollouts_entry *e, const char *line, size_t n_bytes, pl_error *err);
void entry_free(rollouts_entry *e); /* accepts NULL */

/* pl_rollouts_read of bytes in memory, called name in messages. */
pl_status rollouts_parse(pl_rollouts **out, const void *data, size_t n_bytes, const char *name,
    const pl_tokenizer *tok, int n_vocab, int max_tokens, pl_error *err);

#endif
