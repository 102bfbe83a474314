/* cli/drafter_save.c - a warm-up on disk: drafter, trainer and place, whole or as before. */
#define _GNU_SOURCE /* renameat2 */
#include "cli/drafter.h"
#include "core/file.h"
#include "core/json.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_ROOM = 4096 };

static void put(pl_json *j, const char *key, int64_t v)
{
    pl_json_text(j, key);
    pl_json_int(j, v);
}

static pl_status write_place(const drafter_place *p, const char *dir, pl_error *err)
{
    char path[PATH_ROOM + 32], hashes[128];
    pl_json j = {0};

    snprintf(path, sizeof path, "%s/warmup.json", dir);
    snprintf(hashes, sizeof hashes,
        ",\"data\":\"%016" PRIx64 "\",\"options\":\"%016" PRIx64 "\",\"model\":\"%016" PRIx64
        "\"}\n",
        p->data, p->options, p->model);
    put(&j, "{\"step\":", p->step);
    put(&j, ",\"tokens\":", p->tokens);
    put(&j, ",\"epoch\":", p->epoch);
    put(&j, ",\"window\":", p->window);
    pl_json_text(&j, hashes);
    pl_status st = pl_json_check(&j, "warmup.json", err);
    if (st == PL_OK)
        st = pl_file_write(path, j.data, j.n, err);
    pl_json_done(&j);
    return st;
}

/* Put fresh in the place of dir, at once where the file system can exchange names. */
static pl_status replace_dir(const char *fresh, const char *dir, pl_error *err)
{
    if (!pl_path_exists(dir))
        return pl_dir_commit(fresh, dir, err);
    if (renameat2(AT_FDCWD, fresh, AT_FDCWD, dir, RENAME_EXCHANGE) == 0)
        return pl_dir_remove(fresh, err); /* the old one now */
    if (errno != EINVAL && errno != ENOSYS)
        return pl_fail(err, PL_E_IO, "'%s': %s", dir, strerror(errno));
    const pl_status st = pl_dir_remove(dir, err);
    return st == PL_OK ? pl_dir_commit(fresh, dir, err) : st;
}

static pl_status begin_fresh(const char *dir, char fresh[PATH_ROOM], pl_error *err)
{
    if (snprintf(fresh, PATH_ROOM, "%s.tmp.%ld", dir, (long)getpid()) >= PATH_ROOM)
        return pl_fail(err, PL_E_IO, "'%s': name too long", dir);
    const pl_status st = pl_dir_remove(fresh, err);
    return st == PL_OK ? pl_dir_make(fresh, err) : st;
}

pl_status drafter_try_out(const char *dir, pl_error *err)
{
    char fresh[PATH_ROOM];
    pl_status st = begin_fresh(dir, fresh, err);

    if (st == PL_OK)
        st = pl_dir_remove(fresh, err);
    return st == PL_OK ? PL_OK
                       : pl_wrap(err, st, "--out '%s' cannot be written, name another", dir);
}

pl_status drafter_save(
    const drafter_student *s, const drafter_place *p, const char *dir, pl_error *err)
{
    char fresh[PATH_ROOM], path[PATH_ROOM + 32];

    pl_status st = begin_fresh(dir, fresh, err);

    if (st != PL_OK)
        return pl_wrap(err, st, "drafter '%s'", dir);
    snprintf(path, sizeof path, "%s/trainer.state", fresh);
    pl_eagle_trainer_swap_average(s->trainer); /* the average is what is used, where there is one */
    st = pl_eagle_save(s->eagle, fresh, err);
    if (st == PL_OK)
        st = pl_eagle_trainer_save(s->trainer, path, err);
    pl_eagle_trainer_swap_average(s->trainer);
    if (st == PL_OK)
        st = write_place(p, fresh, err);
    if (st == PL_OK)
        st = replace_dir(fresh, dir, err);
    if (st != PL_OK)
        pl_dir_remove(fresh, NULL);
    return st == PL_OK ? PL_OK : pl_wrap(err, st, "drafter '%s'", dir);
}

static int take_int(const json_t *root, const char *key, int64_t *out)
{
    const json_t *x = json_object_get(root, key);
    *out = json_integer_value(x);
    return json_is_integer(x) && *out >= 0;
}

static int take_hash(const json_t *root, const char *key, uint64_t *out)
{
    const char *text = json_string_value(json_object_get(root, key));
    return text && sscanf(text, "%" SCNx64, out) == 1;
}

pl_status drafter_read_place(drafter_place *p, const char *dir, pl_error *err)
{
    char path[PATH_ROOM], *text = NULL;
    size_t n;
    json_error_t je;

    if (snprintf(path, sizeof path, "%s/warmup.json", dir) >= PATH_ROOM)
        return pl_fail(err, PL_E_IO, "'%s': name too long", dir);
    const pl_status st = pl_file_read(&text, &n, path, 1 << 16, err);
    if (st != PL_OK)
        return st;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &je);
    const int good = root && take_int(root, "step", &p->step) &&
                     take_int(root, "tokens", &p->tokens) && take_int(root, "epoch", &p->epoch) &&
                     take_int(root, "window", &p->window) && take_hash(root, "data", &p->data) &&
                     take_hash(root, "options", &p->options) && take_hash(root, "model", &p->model);
    json_decref(root);
    free(text);
    return good ? PL_OK
                : pl_fail(err, PL_E_FORMAT,
                      "'%s' is not the state of a warm-up, or it is damaged: name another --out",
                      path);
}
