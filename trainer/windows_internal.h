/* trainer/windows_internal.h - the layout of a data buffer's file, and the view of one process.
 *
 *     header, WINDOWS_HEADER bytes | slot 0 | slot 1 | ...
 *     slot: sequence word, small fields, zeros to WINDOWS_HEAD | tokens | features | hidden
 *
 * Everything is in the machine's byte order: the file never leaves it.  After the header is there,
 * the file is read and written as 64-bit words with acquire loads and release stores, which are
 * plain moves on x86.  The writer makes the sequence word odd, stores the words, makes it even;
 * since every store is a release, a reader that met a new word finds a new number too.
 *
 * A writer that is killed in a slot leaves an odd number.  What a machine that lost its power left
 * is told by the CRC of the small fields and by the hash of the data, which they hold. */
#ifndef PL_TRAINER_WINDOWS_INTERNAL_H
#define PL_TRAINER_WINDOWS_INTERNAL_H

#include "trainer/windows.h"

#include <stdatomic.h>

enum {
    WINDOWS_LAYOUT = 4,
    WINDOWS_HEADER = 4096,
    WINDOWS_HEAD = 128,          /* bytes of a slot before its tokens */
    WINDOWS_ROWS_MAX = 65536,    /* of a window */
    WINDOWS_EMBD_MAX = 1 << 17,  /* C */
    WINDOWS_PLACE_MAX = 1 << 28, /* positions of a sample */
    WINDOWS_SLOTS_MAX = 1 << 24,
    WINDOWS_STATE = 64,  /* offset of the counters in the header: put, bad, evicted */
    WINDOWS_TOUCHED = 96 /* offset of the number of slots that were ever written: who looks into
                            the others makes the kernel find a page for each */
};

typedef struct windows_header {
    char magic[8]; /* "PLWINDOW" */
    uint32_t layout, head_bytes;
    uint64_t target, file_bytes, slot_bytes;
    uint32_t n_slots, window, n_embd;
    uint32_t crc; /* CRC-32C of all before */
} windows_header;
_Static_assert(sizeof(windows_header) == 56, "no padding");

/* The small fields of a slot. */
typedef struct windows_small {
    uint64_t serial; /* counts the puts of this file */
    uint64_t hash;   /* of the data: windows_hash */
    uint64_t noise_key;
    uint32_t uid, policy_version, purpose;
    float temperature, top_p, min_p;
    int32_t top_k, n_prompt, position, n, is_last, max_tokens, served_from;
    uint32_t drafter;
    uint32_t tokens; /* CRC-32C of them: they are read without the rest */
    uint32_t crc;    /* CRC-32C of the sequence number and all before */
} windows_small;
enum { WINDOWS_SMALL_WORDS = 11 };
_Static_assert(sizeof(windows_small) == 8 * WINDOWS_SMALL_WORDS, "no padding");
_Static_assert(8 + sizeof(windows_small) <= WINDOWS_HEAD, "the head holds them");

typedef _Atomic uint64_t windows_word;
_Static_assert(sizeof(windows_word) == 8, "a word is a word");

/* Sizes that follow from the options. */
typedef struct windows_shape {
    uint64_t file_bytes, slot_bytes;
    int n_slots, window, n_embd;
    size_t row;              /* bf16 numbers of a row of hidden: pad32(C) */
    size_t features, hidden; /* offsets in a slot; tokens are at WINDOWS_HEAD */
} windows_shape;

/* A slot in a choice. */
typedef struct windows_candidate {
    uint64_t seen;   /* serial of the window that n_chosen counts */
    uint64_t serial; /* of this choice; the rest too */
    uint64_t key;    /* decides between equals */
    uint32_t n_chosen;
    uint32_t uid, policy_version, age;
    int32_t position;
    int32_t bucket; /* windows between the prompt and it */
    int is_open;    /* may be taken */
    int tier;       /* lower goes first */
} windows_candidate;

struct pl_windows {
    char path[4096];
    int fd;
    int is_writer;
    windows_shape shape;
    windows_word *words; /* the mapping: [shape.file_bytes / 8] */
    int n_vocab;
    /* writer */
    windows_small *held; /* [n_slots] what every slot holds; n 0: nothing */
    uint64_t serial;
    uint32_t newest; /* policy version of the puts of this view */
    int has_put;
    int64_t n_put, n_bad, n_evicted;
    /* choice */
    windows_candidate *candidates; /* [n_slots] */
};

/* Errors: PL_E_INVAL (options that make no sense, no room for a window). */
pl_status windows_plan(windows_shape *s, const pl_windows_options *o, pl_error *err);
/* Of the bytes of one window that was copied out. */
size_t windows_room(int window, int n_embd);
void windows_make_header(windows_header *h, const windows_shape *s, uint64_t target);
/* Is it of this build, target and sizes?  file_bytes: of the file as it is.  On success *s has the
 * sizes of the file.  Errors: PL_E_FORMAT. */
pl_status windows_check_header(windows_shape *s, const windows_header *h, uint64_t file_bytes,
    const pl_windows_options *o, pl_error *err);

windows_word *windows_slot(const pl_windows *b, int i);
/* Slots from here on are empty.  They are taken in order. */
int windows_touched(const pl_windows *b);
uint32_t windows_crc(const windows_small *f, uint64_t sequence);
uint64_t windows_hash(
    const int32_t *tokens, const uint16_t *features, const uint16_t *hidden, int n, size_t row);
/* 1 when all fields are what a window can have. */
int windows_is_sane(const windows_small *f, int window);
/* 1 when all n numbers are finite. */
int windows_is_finite(const uint16_t *x, size_t n);

/* The small fields of slot i as they stand.  Returns 0 for an empty slot, one that changes, and one
 * that is damaged. */
int windows_peek(const pl_windows *b, int i, windows_small *out);
/* Copy slot i out to storage [windows_room].  Returns 0 when it is no more the window of serial, or
 * is damaged. */
int windows_copy(
    const pl_windows *b, int i, uint64_t serial, void *storage, pl_feature_window *out);
/* The same without features and hidden states: storage [shape.window], out's are NULL. */
int windows_copy_tokens(
    const pl_windows *b, int i, uint64_t serial, int32_t *storage, pl_feature_window *out);
/* Writer: overwrite slot i. */
void windows_store(pl_windows *b, int i, const windows_small *f, const pl_feature_window *w);

#endif
