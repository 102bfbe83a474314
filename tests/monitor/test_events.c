/* Claims: an event file is, byte for byte, TFRecord frames around the Event messages that
 * TensorBoard reads (tests/oracle/tensorboard_check.py asks TensorBoard itself); it is whole
 * records also after a full disk.  The golden bytes were made with TensorBoard's own classes:
 * Event(...) .SerializeToString(), and RecordWriter for the frames. */
#include "core/file.h"
#include "core/hash.h"
#include "monitor/monitor.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static char dir[] = "/tmp/pl_events_XXXXXX";
static char path[400];
static pl_error err;

static void begin(void)
{
    cr_assert_not_null(mkdtemp(dir));
}

static void end(void)
{
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK, "%s", err.msg);
}

TestSuite(events, .init = begin, .fini = end);

/* How many event files there are; path is the last one's. */
static int find_files(void)
{
    DIR *d = opendir(dir);
    const struct dirent *e;
    int n = 0;

    cr_assert_not_null(d);
    while ((e = readdir(d)) != NULL)
        if (strncmp(e->d_name, "events.out.tfevents.", 20) == 0) {
            cr_assert(snprintf(path, sizeof path, "%s/%s", dir, e->d_name) > 0);
            n++;
        }
    (void)closedir(d);
    return n;
}

static unsigned char *read_file(size_t *n)
{
    char *text = NULL;

    cr_assert_eq(find_files(), 1);
    cr_assert_eq(pl_file_read(&text, n, path, 1 << 20, &err), PL_OK, "%s", err.msg);
    return (unsigned char *)text;
}

static uint64_t little(const unsigned char *p, int n)
{
    uint64_t v = 0;
    for (int i = n - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static uint32_t masked(const unsigned char *p, size_t n)
{
    const uint32_t crc = pl_crc32c(0, p, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

/* Records of a whole file; each passes its checksums. */
static int check_frames(const unsigned char *file, size_t n)
{
    int records = 0;

    for (size_t at = 0; at < n; records++) {
        cr_assert(n - at >= 16);
        const size_t size = (size_t)little(file + at, 8);
        cr_assert(size <= n - at - 16);
        cr_assert_eq(little(file + at + 8, 4), masked(file + at, 8));
        cr_assert_eq(little(file + at + 12 + size, 4), masked(file + at + 12, size));
        at += size + 16;
    }
    return records;
}

static pl_events *open_events(void)
{
    pl_events *e = NULL;
    cr_assert_eq(pl_events_open(&e, dir, &err), PL_OK, "%s", err.msg);
    return e;
}

static const unsigned char version_head[] = {
    0x18, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xa3, 0x7f, 0x4b, 0x22, 0x09};
static const unsigned char version_tail[] = {
    0x1a, 0x0d, 0x62, 0x72, 0x61, 0x69, 0x6e, 0x2e, 0x45, 0x76, 0x65, 0x6e, 0x74, 0x3a, 0x32};
static const unsigned char golden[] = {0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x95, 0xfb,
    0xfe, 0x18, 0x09, 0x00, 0x00, 0x60, 0x5a, 0xc3, 0xc0, 0xda, 0x41, 0x10, 0xac, 0x02, 0x3a, 0x02,
    0x08, 0x01, 0xdc, 0x5c, 0x7b, 0x74, 0x3c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xc8, 0xb7,
    0xa3, 0x52, 0x09, 0x00, 0x00, 0x60, 0x5a, 0xc3, 0xc0, 0xda, 0x41, 0x10, 0xac, 0x02, 0x2a, 0x2e,
    0x0a, 0x14, 0x0a, 0x0d, 0x61, 0x63, 0x74, 0x6f, 0x72, 0x2f, 0x70, 0x67, 0x5f, 0x6c, 0x6f, 0x73,
    0x73, 0x15, 0x00, 0x00, 0x00, 0xbe, 0x0a, 0x16, 0x0a, 0x0f, 0x70, 0x65, 0x72, 0x66, 0x2f, 0x74,
    0x68, 0x72, 0x6f, 0x75, 0x67, 0x68, 0x70, 0x75, 0x74, 0x15, 0x00, 0x00, 0x96, 0x43, 0x7e, 0xf1,
    0xf8, 0x92};

Test(events, records_are_the_bytes_that_tensorboard_writes)
{
    const pl_metric all[] = {{"actor/pg_loss", -0.125}, {"not/a_number", NAN}, {"too/large", 1e39},
        {"infinite", -INFINITY}, {"perf/throughput", 300}};
    pl_events *e = open_events();
    size_t n;

    cr_assert_eq(pl_events_put(e, 300, 1795362153.5, all, 5, &err), PL_OK, "%s", err.msg);
    pl_events_close(e);
    unsigned char *file = read_file(&n);
    cr_assert_eq(check_frames(file, n), 3);
    /* the first record holds the time of now: all but its 8 bytes and the checksum */
    cr_assert_eq(memcmp(file, version_head, sizeof version_head), 0);
    cr_assert_eq(memcmp(file + sizeof version_head + 8, version_tail, sizeof version_tail), 0);
    const size_t first = 16 + (size_t)little(file, 8);
    cr_assert_eq(n - first, sizeof golden);
    cr_assert_eq(memcmp(file + first, golden, sizeof golden), 0);
    free(file);
}

Test(events, a_step_without_figures_is_a_record_and_a_second_file_of_a_second_has_its_own_name)
{
    pl_events *a = open_events();
    size_t n;

    cr_assert_eq(pl_events_put(a, 0, 1, NULL, 0, &err), PL_OK);
    cr_assert_eq(pl_events_put(a, 1, 2, NULL, 0, &err), PL_OK);
    unsigned char *file = read_file(&n);
    cr_assert_eq(check_frames(file, n), 4);
    free(file);
    pl_events *b = open_events();
    cr_assert_eq(find_files(), 2);
    pl_events_close(a);
    pl_events_close(b);
}

Test(events, a_full_disk_leaves_whole_records)
{
    static char name[512];
    const pl_metric all[] = {{name, 1}};
    const struct rlimit small = {256, 256};
    pl_events *e = open_events();
    size_t n;

    memset(name, 'x', sizeof name - 1);
    (void)signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    cr_assert_eq(pl_events_put(e, 1, 1, all, 1, &err), PL_E_IO);
    cr_assert_not_null(strstr(err.msg, "events.out.tfevents."), "%s", err.msg);
    cr_assert_eq(pl_events_put(e, 1, 1, NULL, 0, &err), PL_OK, "%s", err.msg); /* fits */
    pl_events_close(e);
    unsigned char *file = read_file(&n);
    cr_assert_eq(check_frames(file, n), 3);
    free(file);
}

Test(events, a_missing_directory_is_named)
{
    pl_events *e = NULL;
    cr_assert_eq(pl_events_open(&e, "/nowhere/at/all", &err), PL_E_NOENT);
    cr_assert_not_null(strstr(err.msg, "/nowhere/at/all"));
}
