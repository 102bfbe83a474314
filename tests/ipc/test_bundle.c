/* Claims: the same files make the same bundle, and come back; weights, bundles and strange names
 * never travel in one; a bundle that was cut, changed or made to harm is refused in words, before
 * anything is written. */
#include "core/file.h"
#include "ipc/channel_internal.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[] = "/tmp/paceline-bundle-XXXXXX";

static void make_dir(void)
{
    cr_assert(mkdtemp(dir));
}

static void remove_dir(void)
{
    cr_assert_eq(pl_dir_remove(dir, NULL), PL_OK);
}

TestSuite(bundle, .init = make_dir, .fini = remove_dir, .timeout = 60);

static const char *in_dir(const char *name)
{
    static char path[4][256];
    static int i;
    i = (i + 1) % 4;
    snprintf(path[i], sizeof path[i], "%s/%s", dir, name);
    return path[i];
}

static void put(const char *name, const char *text)
{
    pl_error err = {0};
    cr_assert_eq(
        pl_file_write(in_dir(name), text, strlen(text), &err), PL_OK, "%s: %s", name, err.msg);
}

static char *get(const char *name, size_t *n)
{
    char *text = NULL;
    pl_error err = {0};
    cr_assert_eq(pl_file_read(&text, n, in_dir(name), 1 << 20, &err), PL_OK, "%s", err.msg);
    return text;
}

static void fill(const char *sub, int backwards)
{
    static const char *const files[][2] = {{"config.json", "{}"}, {"a", ""}, {"Z-1_x.txt", "zet"},
        {"model.safetensors", "weights"}, {"tokenizer.json", "{\"model\":1}"}};
    char name[64];

    cr_assert_eq(pl_dir_make(in_dir(sub), NULL), PL_OK);
    for (int i = 0; i < 5; i++) {
        const int k = backwards ? 4 - i : i;
        snprintf(name, sizeof name, "%s/%s", sub, files[k][0]);
        put(name, files[k][1]);
    }
    snprintf(name, sizeof name, "%s/deeper", sub);
    cr_assert_eq(pl_dir_make(in_dir(name), NULL), PL_OK);
    snprintf(name, sizeof name, "%s/.hidden", sub);
    put(name, "not for others");
}

Test(bundle, same_files_are_same_bytes_and_come_back)
{
    size_t n, n2, n_text;
    pl_error err = {0};

    fill("x", 0);
    fill("y", 1);
    cr_assert_eq(pl_bundle_write(in_dir("x"), &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_bundle_write(in_dir("x"), &err), PL_OK, "not in itself: %s", err.msg);
    cr_assert_eq(pl_bundle_write(in_dir("y"), &err), PL_OK, "%s", err.msg);
    char *x = get("x/bundle", &n), *y = get("y/bundle", &n2);
    cr_assert(n == n2 && memcmp(x, y, n) == 0);
    cr_assert_eq(pl_dir_make(in_dir("to"), NULL), PL_OK);
    cr_assert_eq(pl_bundle_unpack(in_dir("x/bundle"), in_dir("to"), &err), PL_OK, "%s", err.msg);
    char *text = get("to/tokenizer.json", &n_text);
    cr_assert_str_eq(text, "{\"model\":1}");
    free(text);
    text = get("to/a", &n_text);
    cr_assert_eq(n_text, 0);
    free(text);
    cr_assert_not(pl_path_exists(in_dir("to/model.safetensors")));
    cr_assert_not(pl_path_exists(in_dir("to/.hidden")));
    cr_assert_not(pl_path_exists(in_dir("to/bundle")));
    free(x);
    free(y);
}

Test(bundle, what_cannot_travel_is_named)
{
    pl_error err = {0};

    cr_assert_eq(pl_bundle_write(in_dir("nowhere"), &err), PL_E_IO);
    put("a file", "");
    cr_assert_eq(pl_bundle_write(dir, &err), PL_E_FORMAT);
    cr_assert(strstr(err.msg, "a file"), "%s", err.msg);
    cr_assert_eq(unlink(in_dir("a file")), 0);
    put("big", "");
    cr_assert_eq(truncate(in_dir("big"), BUNDLE_FILE_BYTES_MAX + 1), 0);
    cr_assert_eq(pl_bundle_write(dir, &err), PL_E_FORMAT);
    cr_assert(strstr(err.msg, "big"), "%s", err.msg);
    cr_assert_not(pl_path_exists(in_dir("bundle")));
}

/* ---- hostile bytes ---- */

typedef struct made {
    unsigned char b[512];
    size_t n;
} made;

static void begin(made *m, uint32_t n_files)
{
    memset(m, 0, sizeof *m);
    memcpy(m->b, "PLBUNDL1", 8);
    memcpy(m->b + 8, &n_files, 4);
    m->n = 12;
}

static void entry(made *m, const char *name, uint64_t n_bytes)
{
    m->b[m->n++] = (unsigned char)strlen(name);
    memcpy(m->b + m->n, name, strlen(name));
    m->n += strlen(name);
    memcpy(m->b + m->n, &n_bytes, 8);
    m->n += 8;
}

static void check_refused(const made *m, const char *why)
{
    pl_error err = {0};

    cr_assert_eq(pl_file_write(in_dir("b"), m->b, m->n, NULL), PL_OK);
    cr_assert_eq(pl_dir_make(in_dir("to"), NULL), PL_OK);
    cr_assert_eq(pl_bundle_unpack(in_dir("b"), in_dir("to"), &err), PL_E_FORMAT, "%s", why);
    cr_assert(strstr(err.msg, why), "'%s' in '%s'", why, err.msg);
    cr_assert(pl_dir_is_free(in_dir("to")), "%s", why);
}

Test(bundle, names_that_harm_are_refused)
{
    static const char *const names[] = {"../x", "a/b", ".bashrc", "a b", "model.safetensors",
        "x.safetensors", "bundle", "a\n", "\xc3\xa4"};
    made m;

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        begin(&m, 2);
        entry(&m, "A", 0);
        entry(&m, names[i], 0);
        check_refused(&m, "a name that no file here may have");
    }
    begin(&m, 1);
    entry(&m, "", 0);
    check_refused(&m, "a name of 0 bytes");
    begin(&m, 1);
    entry(&m, "ab", 0);
    m.b[14] = 0; /* "a\0": shorter than it says */
    check_refused(&m, "a name that no file");
}

Test(bundle, sizes_and_orders_that_lie_are_refused)
{
    made m;

    begin(&m, 257);
    check_refused(&m, "at most 256");
    begin(&m, 1);
    entry(&m, "a", UINT64_MAX);
    check_refused(&m, "at most 67108864");
    begin(&m, 1);
    entry(&m, "a", 1);
    check_refused(&m, "its table says");
    begin(&m, 1);
    entry(&m, "a", 0);
    m.n++;
    check_refused(&m, "its table says");
    begin(&m, 2);
    entry(&m, "a", 0);
    entry(&m, "a", 0);
    check_refused(&m, "there twice");
    begin(&m, 2);
    entry(&m, "b", 0);
    entry(&m, "a", 0);
    check_refused(&m, "out of order");
    begin(&m, 2);
    entry(&m, "a", 0);
    check_refused(&m, "cut off");
}

Test(bundle, no_cut_and_no_changed_head_is_believed)
{
    size_t n;
    made m;
    bundle_table *t = malloc(sizeof *t);

    fill("x", 0);
    cr_assert_eq(pl_bundle_write(in_dir("x"), NULL), PL_OK);
    char *whole = get("x/bundle", &n);
    cr_assert_lt(n, sizeof m.b);
    for (size_t cut = 0; cut < n; cut++) {
        memcpy(m.b, whole, cut);
        m.n = cut;
        cr_assert_eq(bundle_parse(t, m.b, cut, cut, NULL), PL_E_FORMAT, "%zu bytes", cut);
    }
    for (size_t i = 0; i < 12; i++)
        for (int bit = 0; bit < 8; bit++) {
            memcpy(m.b, whole, n);
            m.b[i] ^= (unsigned char)(1 << bit);
            cr_assert_eq(bundle_parse(t, m.b, n, n, NULL), PL_E_FORMAT);
        }
    free(whole);
    free(t);
}
