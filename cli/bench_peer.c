/* cli/bench_peer.c - oneDNN's products of the same shapes, timed by a helper program on request.
 *
 * The product never links oneDNN: bench/onednn_gemms.c is built beside it when the library is
 * there, and runs as a child.  A line to it asks for a round; a line back holds its seconds. */
#include "cli/bench.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

pl_status bench_peer_open(bench *b, bench_child *peer, const pl_arch *a, int rows, int head_rows,
    int backward, int *found, pl_error *err)
{
    const int shapes[5][3] = {
        {rows, (a->n_heads + 2 * a->n_kv_heads) * a->head_dim, a->n_embd}, /* q, k, v in one */
        {rows, a->n_embd, a->n_heads * a->head_dim},
        {rows, 2 * a->n_ff, a->n_embd}, /* gate and up in one */
        {rows, a->n_embd, a->n_ff},
        {head_rows, a->n_vocab, a->n_embd},
    };
    char path[4096], threads[16], layers[16], text[5][48];
    const char *argv[] = {path, threads, backward ? "train" : "forward", layers, text[0], text[1],
        text[2], text[3], "head", text[4], NULL};

    *found = 0;
    const pl_status st = bench_program(path, sizeof path, "onednn_gemms", err);
    if (st != PL_OK)
        return st;
    if (access(path, X_OK) != 0) {
        fprintf(b->notes,
            "no ratio to oneDNN: %s is not there; to get it: "
            "tools/install_packages.sh bench, then make again\n",
            path);
        return PL_OK;
    }
    snprintf(threads, sizeof threads, "%d", b->n_threads);
    snprintf(layers, sizeof layers, "%d", a->n_layers);
    for (int i = 0; i < 5; i++)
        snprintf(text[i], sizeof text[i], "%dx%dx%d", shapes[i][0], shapes[i][1], shapes[i][2]);
    *found = 1;
    return bench_child_start(peer, argv, err);
}

/* One line of at most size - 1 bytes, without its end.  Returns 0 when the child is gone. */
static int read_line(int fd, char *line, size_t size)
{
    size_t n = 0;

    while (n + 1 < size) {
        const ssize_t got = read(fd, line + n, 1);
        if (got < 0 && errno == EINTR && !cli_stop)
            continue;
        if (got != 1)
            return 0;
        if (line[n] == '\n')
            break;
        n++;
    }
    line[n] = 0;
    return 1;
}

pl_status bench_peer_round(bench_child *peer, double *seconds, pl_error *err)
{
    char line[64], *end = line;

    if (send(peer->fd, "\n", 1, MSG_NOSIGNAL) == 1 && read_line(peer->fd, line, sizeof line))
        *seconds = strtod(line, &end);
    if (end == line || !(*seconds > 0))
        return pl_fail(err, PL_E_PEER,
            "onednn_gemms stopped: its reason stands above; without the program beside paceline "
            "the bench runs, and leaves the ratio out");
    return PL_OK;
}
