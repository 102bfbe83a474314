/* tests/ipc/slow_readers.c - readers of weights that stop for a while, and a publisher that goes
 * on: slow_readers [SECONDS [PUBLICATIONS]] (60, 200).  Four processes begin to fetch 64 MiB and
 * are stopped with SIGSTOP; in SECONDS come PUBLICATIONS versions of 64 MiB.  Says how the
 * publisher's memory grew; exit code 1 when it is more than its bound and what a publication takes
 * anyway. */
#include "core/file.h"
#include "ipc/channel_internal.h"
#include "ipc/socket_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MIB = 1 << 20, READERS = 4, SIZE = 64 * MIB, BOUND = 16 * MIB, SLACK_KIB = 4096 };

typedef struct bed {
    char dir[64], address[96], in[96];
    pid_t readers[READERS];
    int roots[2]; /* a pipe: what to fetch */
    pl_ipc *ipc;
    pl_publisher *publisher;
    int fd; /* of in */
} bed;

/* Of this process, without what is mapped from files; KiB. */
static long anonymous_kib(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    char line[200];
    long kib = 0;

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssAnon: %ld", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib;
}

static void read_slowly(const bed *b, int i)
{
    char out[128];
    pl_error err = {0};
    pl_ipc *ipc = NULL;
    pl_hash root;

    snprintf(out, sizeof out, "%s/out%d", b->dir, i);
    if (read(b->roots[0], &root, sizeof root) == (ssize_t)sizeof root &&
        pl_ipc_new(&ipc, NULL, NULL, &err) == PL_OK)
        (void)pl_fetch(ipc, b->address, &root, SIZE, out, 600 * 1000, NULL, NULL, &err);
    _exit(0);
}

static int start(bed *b)
{
    const pl_publisher_options o = {.address = b->address, .max_contents = 2, .max_bytes = BOUND};
    pl_error err = {0};

    snprintf(b->dir, sizeof b->dir, "/dev/shm/slow-readers-XXXXXX");
    if (!mkdtemp(b->dir) || pipe(b->roots) != 0)
        return 0;
    snprintf(b->address, sizeof b->address, "ipc://%s/s", b->dir);
    snprintf(b->in, sizeof b->in, "%s/in", b->dir);
    for (int i = 0; i < READERS; i++) { /* before there are threads */
        b->readers[i] = fork();
        if (b->readers[i] == 0)
            read_slowly(b, i);
    }
    b->fd = open(b->in, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return b->fd >= 0 && ftruncate(b->fd, SIZE) == 0 &&
           pl_ipc_new(&b->ipc, NULL, NULL, &err) == PL_OK &&
           pl_publisher_new(&b->publisher, b->ipc, &o, NULL, &err) == PL_OK;
}

/* Another content: one chunk differs. */
static int publish(const bed *b, uint32_t version, pl_hash *root)
{
    uint64_t n;
    pl_error err = {0};

    if (pwrite(b->fd, &version, sizeof version, (off_t)(version % 64) * MIB) < 0)
        return 0;
    return pl_publisher_add(b->publisher, b->in, version, root, &n, &err) == PL_OK;
}

static void stop(bed *b)
{
    pl_error ignored = {0};

    for (int i = 0; i < READERS; i++)
        if (b->readers[i] > 0) {
            kill(b->readers[i], SIGKILL);
            kill(b->readers[i], SIGCONT);
            waitpid(b->readers[i], NULL, 0);
        }
    pl_publisher_free(b->publisher);
    pl_ipc_free(b->ipc);
    (void)pl_dir_remove(b->dir, &ignored);
}

/* Publications at even distances.  Returns the highest memory, KiB; -1: one failed. */
static long publish_all(const bed *b, int seconds, int n)
{
    const int64_t t0 = socket_now_ms();
    long most = 0;
    pl_hash root;

    for (int v = 1; v <= n; v++) {
        if (!publish(b, (uint32_t)v, &root))
            return -1;
        const long kib = anonymous_kib();
        most = kib > most ? kib : most;
        const int64_t due = t0 + (int64_t)seconds * 1000 * v / n, now = socket_now_ms();
        if (due > now)
            (void)poll(NULL, 0, (int)(due - now));
    }
    printf(
        "%d publications in %.1f s, readers stopped\n", n, (double)(socket_now_ms() - t0) / 1000);
    return most;
}

int main(int argc, char **argv)
{
    const int seconds = argc > 1 ? atoi(argv[1]) : 60, n = argc > 2 ? atoi(argv[2]) : 200;
    const int64_t deadline = socket_now_ms() + 20000;
    size_t most_standing = 0;
    bed b = {.fd = -1};
    pl_hash root;
    long most = -1, before = 0;

    if (start(&b) && publish(&b, 0, &root)) {
        (void)publish(&b, 0, &root); /* what hashing needs is there */
        before = anonymous_kib();
        for (int i = 0; i < READERS; i++)
            if (write(b.roots[1], &root, sizeof root) < 0)
                perror("pipe");
        while (publisher_standing(b.publisher, NULL) < BOUND / 4 && socket_now_ms() < deadline)
            (void)poll(NULL, 0, 1);
        for (int i = 0; i < READERS; i++)
            kill(b.readers[i], SIGSTOP);
        most = publish_all(&b, seconds, n);
        (void)publisher_standing(b.publisher, &most_standing);
    }
    stop(&b);
    if (most < 0) {
        fprintf(stderr, "slow_readers: cannot publish\n");
        return 1;
    }
    printf("memory %ld KiB before, %ld KiB at most: +%.1f MiB; held for readers at most %.1f of "
           "%d MiB\n",
        before, most, (double)(most - before) / 1024, (double)most_standing / MIB, BOUND / MIB);
    return most_standing > BOUND || most - before > BOUND / 1024 + SLACK_KIB;
}
