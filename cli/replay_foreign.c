/* cli/replay_foreign.c - rollouts that another system wrote: its files, and its groups. */
#define _GNU_SOURCE
#include "cli/replay_train.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- files ---- */

static int ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static int is_record_file(const struct dirent *e)
{
    return ends_with(e->d_name, ".jsonl") || ends_with(e->d_name, ".jsonl.zst");
}

/* By the numbers in them: step_10 comes behind step_9. */
static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strverscmp((*a)->d_name, (*b)->d_name);
}

static pl_status list_dir(train_files *f, const char *path, pl_error *err)
{
    struct dirent **list = NULL;
    const int n = scandir(path, &list, is_record_file, by_name);
    pl_status st = PL_OK;

    if (n < 0)
        return pl_fail(err, PL_E_IO, "--rollouts '%s': %s", path, strerror(errno));
    if (n == 0)
        st = pl_fail(err, PL_E_NOENT, "--rollouts '%s' holds no .jsonl or .jsonl.zst file", path);
    f->paths = calloc((size_t)n + 1, sizeof *f->paths);
    for (int i = 0; i < n; i++) {
        const size_t room = strlen(path) + strlen(list[i]->d_name) + 2;
        char *name = f->paths && st == PL_OK ? malloc(room) : NULL;
        if (name) {
            snprintf(name, room, "%s/%s", path, list[i]->d_name);
            f->paths[f->n++] = name;
        }
        free(list[i]);
    }
    free(list);
    return st == PL_OK && f->n < n ? pl_fail(err, PL_E_NOMEM, "no memory for %d names", n) : st;
}

pl_status train_files_list(train_files *f, const char *path, pl_error *err)
{
    struct stat s;

    memset(f, 0, sizeof *f);
    if (stat(path, &s) != 0)
        return pl_fail(err, errno == ENOENT ? PL_E_NOENT : PL_E_IO, "--rollouts '%s': %s", path,
            strerror(errno));
    if (S_ISDIR(s.st_mode))
        return list_dir(f, path, err);
    f->paths = calloc(1, sizeof *f->paths);
    if (f->paths)
        f->paths[0] = strdup(path);
    f->n = f->paths && f->paths[0];
    return f->n > 0 ? PL_OK : pl_fail(err, PL_E_NOMEM, "no memory for a name");
}

void train_files_done(train_files *f)
{
    for (int i = 0; i < f->n; i++)
        free(f->paths[i]);
    free(f->paths);
    memset(f, 0, sizeof *f);
}

/* ---- groups ---- */

typedef struct placed {
    pl_sample sample;
    int at;    /* in the file */
    int first; /* of its prompt, in the file */
} placed;

static int compare_prompts(const placed *a, const placed *b)
{
    const pl_response *x = a->sample.response, *y = b->sample.response;

    if (x->n_prompt != y->n_prompt)
        return x->n_prompt < y->n_prompt ? -1 : 1;
    return memcmp(x->prompt, y->prompt, (size_t)x->n_prompt * sizeof *x->prompt);
}

static int by_prompt(const void *a, const void *b)
{
    const placed *x = a, *y = b;
    const int order = compare_prompts(x, y);
    return order != 0 ? order : x->at - y->at;
}

static int by_first(const void *a, const void *b)
{
    const placed *x = a, *y = b;
    return x->first != y->first ? x->first - y->first : x->at - y->at;
}

/* Sizes of the groups now that they are side by side. */
static pl_status measure(pl_rollouts *x, const placed *p, const char *path, pl_error *err)
{
    int size = 0, first_uid = 0;

    x->n_groups = 0;
    for (int i = 0, n = 0; i < x->n; i += n) {
        for (n = 1; i + n < x->n && p[i + n].first == p[i].first; n++)
            continue;
        if (size == 0) {
            size = n;
            first_uid = i;
        }
        if (n != size)
            return pl_fail(err, PL_E_FORMAT,
                "'%s': %d samples of the prompt on line %d, %d of that on line %d: groups of one "
                "size are wanted",
                path, size, p[first_uid].at + 1, n, p[i].at + 1);
        x->n_groups++;
    }
    x->group_size = size;
    return PL_OK;
}

pl_status train_regroup(pl_rollouts *x, const char *path, pl_error *err)
{
    if (x->group_size > 1 || x->n == 1)
        return PL_OK;
    placed *p = malloc((size_t)x->n * sizeof *p);
    if (!p)
        return pl_fail(err, PL_E_NOMEM, "no memory for %d samples", x->n);
    for (int i = 0; i < x->n; i++)
        p[i] = (placed){x->samples[i], i, i};
    qsort(p, (size_t)x->n, sizeof *p, by_prompt);
    for (int i = 1; i < x->n; i++)
        if (compare_prompts(&p[i - 1], &p[i]) == 0)
            p[i].first = p[i - 1].first;
    qsort(p, (size_t)x->n, sizeof *p, by_first);
    const pl_status st = measure(x, p, path, err);
    for (int i = 0; i < x->n && st == PL_OK; i++)
        x->samples[i] = p[i].sample;
    free(p);
    return st;
}
