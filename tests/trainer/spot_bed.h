/* tests/trainer/spot_bed.h - a tiny target, buffers of windows whose text is easy to draft, and a
 * spot trainer over them. */
#ifndef TESTS_TRAINER_SPOT_BED_H
#define TESTS_TRAINER_SPOT_BED_H

#include "trainer/spot_internal.h"

enum { SPOT_ROWS = 32, SPOT_TOKENS = 32 };

typedef struct spot_bed {
    char dir[64];     /* temporary */
    char drafter[80]; /* dir/drafter */
    char buffer[80];  /* dir/buffer */
    const char *buffers[1];
    const pl_ops *ops;
    pl_team *team;
    pl_model *m;
    float *masters;
    pl_windows *w; /* the writer's view */
    pl_spot_options o;
    int token_shift;    /* added to every token of the text */
    uint32_t served_by; /* version that served its rounds from row served_from on */
    int served_from;
    int prompt_even; /* tokens of the prompt of samples with an even uid; of the others: 4 */
} spot_bed;

void spot_bed_open(spot_bed *b);
void spot_bed_close(spot_bed *b);
/* A window of SPOT_ROWS of a sample: text in which every token says the next; the target knows it.
 * size: of the hidden states, 4 is sharp. */
void spot_bed_put(spot_bed *b, uint32_t uid, uint32_t version, float size);
/* uids begin .. end - 1, version 1. */
void spot_bed_fill(spot_bed *b, uint32_t begin, uint32_t end);
/* NULL name: "w0". */
pl_spot *spot_bed_spot(spot_bed *b, const char *name);
void spot_bed_begin(spot_bed *b, pl_spot *s, uint64_t session, int is_lead);
/* n pieces, none of which may fail. */
void spot_bed_work(pl_spot *s, int n);
/* Work until a version is published, at most n pieces; 0: none was. */
uint32_t spot_bed_publish(pl_spot *s, int n, pl_spot_published *out);
/* Hash of the valid half; *r its record. */
uint64_t spot_bed_hash(const pl_spot *s, spot_record *r);

#endif
