/* Claims tested: the coordinator as a process is the machine of test_coordinator.c with real
 * sockets and a real ledger: it answers over ipc, acknowledges what is in the file, goes on from
 * that file in the next epoch, and leaves when asked.  Waits have deadlines; nothing sleeps. */
#include "core/file.h"
#include "core/journal.h"
#include "tests/rollout/coordinator_bed.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct process {
    char dir[64], ledger[96], address[96], endpoint[96];
    pl_coordinate_options o;
    atomic_int stop;
    pthread_t thread;
    pl_status st;
    pl_error err;
} process;

typedef struct client {
    pl_socket *socket;
    pl_ipc *ipc;
    pl_role role;
    const char *name;
} client;

static int should_stop(void *ctx)
{
    process *p = ctx;
    return atomic_load(&p->stop);
}

static void *process_main(void *ctx)
{
    process *p = ctx;
    p->st = pl_coordinate(&p->o, NULL, &p->err);
    return NULL;
}

static void process_start(process *p)
{
    atomic_store(&p->stop, 0);
    cr_assert_eq(pthread_create(&p->thread, NULL, process_main, p), 0);
}

static void process_join(process *p, int stop)
{
    atomic_store(&p->stop, stop);
    cr_assert_eq(pthread_join(p->thread, NULL), 0);
}

static process *process_make(void)
{
    process *p = calloc(1, sizeof *p);
    cr_assert_not_null(p);
    strcpy(p->dir, "/tmp/pl-coordinate-XXXXXX");
    cr_assert_not_null(mkdtemp(p->dir));
    snprintf(p->ledger, sizeof p->ledger, "%s/ledger", p->dir);
    snprintf(p->address, sizeof p->address, "ipc://%s/s", p->dir);
    snprintf(p->endpoint, sizeof p->endpoint, "%s/endpoint", p->dir);
    p->o = (pl_coordinate_options){.machine = bed_options(),
        .ledger = p->ledger,
        .address = p->address,
        .endpoint_file = p->endpoint,
        .should_stop = should_stop,
        .ctx = p};
    return p;
}

static void process_free(process *p)
{
    pl_error err;
    cr_expect_eq(pl_dir_remove(p->dir, &err), PL_OK);
    free(p);
}

static client join_as(const process *p, pl_role role, const char *name)
{
    client c = {0};
    pl_error err = {0};
    const pl_ipc_options io = {0};
    cr_assert_eq(pl_ipc_new(&c.ipc, &io, NULL, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_socket_connect(&c.socket, c.ipc, p->address, role, &err), PL_OK, "%s", err.msg);
    c.role = role;
    c.name = name;
    return c;
}

static void leave(client *c)
{
    pl_socket_close(c->socket);
    pl_ipc_free(c->ipc);
}

static void say(client *c, pl_msg m)
{
    pl_error err = {0};
    cr_assert_eq(pl_socket_send(c->socket, NULL, &m, &err), PL_OK, "%s", err.msg);
}

/* The next message of a type; m points into the socket. */
static void await(client *c, uint16_t type, pl_msg *m)
{
    pl_msg hello = {.h.type = PL_MSG_HELLO,
        .u.hello = {.role = c->role,
            .name = c->name,
            .numeric_class = "class-a",
            .build = "",
            .host = "",
            .pid = (uint32_t)getpid(),
            .max_seqs = 4}};
    for (int i = 0; i < 100; i++) {
        if (type == PL_MSG_WELCOME || type == PL_MSG_REJECT)
            (void)pl_socket_send(c->socket, NULL, &hello, NULL);
        if (pl_socket_recv(c->socket, 100, NULL, m, NULL) == PL_OK && m->h.type == type) {
            if (type == PL_MSG_WELCOME)
                pl_socket_set_epoch(c->socket, m->h.epoch);
            return;
        }
    }
    cr_assert_fail("no %s within 10 s", pl_msg_name(type));
}

static void say_status(client *c)
{
    say(c, (pl_msg){.h.type = PL_MSG_STATUS,
               .u.status = {.state = PL_WORKER_IDLE, .policy_version = 3}});
}

static pl_status count_results(void *ctx, const pl_journal_record *r, pl_error *err)
{
    (void)err;
    *(int *)ctx += r->type == 2 * PL_MSG_RESULT + 1;
    return PL_OK;
}

static int results_in(const process *p)
{
    char path[128];
    pl_error err = {0};
    pl_journal_report report;
    int n = 0;
    snprintf(path, sizeof path, "%s/000001.journal", p->ledger);
    cr_assert_eq(
        pl_journal_read(path, "PLLEDGR1", count_results, &n, &report, &err), PL_OK, "%s", err.msg);
    return n;
}

Test(coordinate, acknowledges_what_is_in_the_file_and_goes_on_from_it)
{
    process *p = process_make();
    pl_msg m;
    process_start(p);
    client t = join_as(p, PL_ROLE_TRAINER, "trainer"), w = join_as(p, PL_ROLE_WORKER, "w");
    await(&t, PL_MSG_WELCOME, &m);
    cr_expect_eq(m.h.epoch, 1);
    await(&w, PL_MSG_WELCOME, &m);
    say_status(&w);
    say(&t, bed_group(5, 1, 0, 2, 3));
    for (int i = 0; i < 2; i++)
        await(&w, PL_MSG_LEASE, &m);
    const text x = bed_text(5, 100);
    say(&w, bed_result(5, 100, 50, 3, &x));
    await(&w, PL_MSG_ACK, &m);
    cr_expect_eq(results_in(p), 1);
    await(&t, PL_MSG_RESULT, &m);
    cr_expect_str_eq(m.u.result.worker, "w");
    process_join(p, 2);
    cr_expect_eq(p->st, PL_E_STOPPED);

    process_start(p);
    client again = join_as(p, PL_ROLE_WORKER, "w");
    await(&again, PL_MSG_WELCOME, &m);
    cr_expect_eq(m.h.epoch, 2);
    say_status(&again);
    await(&again, PL_MSG_LEASE, &m);
    cr_expect_eq(m.u.lease.uid, 101, "the other one is done");
    say(&again, (pl_msg){.h.type = PL_MSG_LEAVE});
    process_join(p, 1);
    cr_expect_eq(p->st, PL_E_STOPPED);
    leave(&t);
    leave(&w);
    leave(&again);
    process_free(p);
}

static pl_status count_drafters(void *ctx, const pl_journal_record *r, pl_error *err)
{
    (void)err;
    *(int *)ctx += r->type == 2 * PL_MSG_DRAFTER && !r->is_critical;
    return PL_OK;
}

/* A version that says nothing, as a later build may write one. */
static void append_unreadable_drafter(const process *p)
{
    char path[128];
    pl_error err = {0};
    pl_journal *j = NULL;
    pl_journal_report report;
    int n = 0;
    snprintf(path, sizeof path, "%s/000001.journal", p->ledger);
    pl_journal_options jo = {.magic = "PLLEDGR1"};
    for (int i = 0; i < 16; i++) /* of the run 00112233... */
        jo.run_uid[i] = (unsigned char)(i * 17);
    const pl_status st = pl_journal_open(&j, path, &jo, count_drafters, &n, &report, &err);
    cr_assert_eq(st, PL_OK, "%s", err.msg);
    cr_assert_eq(n, 1, "recorded, and not critical");
    cr_assert_eq(pl_journal_put(j, 2 * PL_MSG_DRAFTER, "\x80", 1, &err), PL_OK);
    cr_assert_eq(pl_journal_sync(j, &err), PL_OK);
    pl_journal_close(j);
}

Test(coordinate, a_version_of_the_drafter_outlives_the_process_and_cannot_end_one)
{
    process *p = process_make();
    pl_msg m;
    process_start(p);
    client w = join_as(p, PL_ROLE_WORKER, "w");
    await(&w, PL_MSG_WELCOME, &m);
    say(&w,
        (pl_msg){.h.type = PL_MSG_DRAFTER,
            .u.drafter = {.version = 1, .session = 1, .dir = "/d", .host = "", .endpoint = ""}});
    await(&w, PL_MSG_DRAFTER, &m);
    process_join(p, 2);
    append_unreadable_drafter(p);

    process_start(p);
    client again = join_as(p, PL_ROLE_WORKER, "w");
    await(&again, PL_MSG_WELCOME, &m);
    await(&again, PL_MSG_DRAFTER, &m);
    cr_expect_eq(m.u.drafter.version, 1);
    cr_expect_str_eq(m.u.drafter.dir, "/d");
    process_join(p, 2);
    cr_expect_eq(p->st, PL_E_STOPPED, "%s", p->err.msg);
    leave(&w);
    leave(&again);
    process_free(p);
}

/* In a process of its own: takes two leases when it is told to, says so, and waits for its end. */
static void be_a_worker(const process *p, int from, int to)
{
    char byte;
    pl_msg m;
    if (read(from, &byte, 1) != 1)
        _exit(1);
    client w = join_as(p, PL_ROLE_WORKER, "killed");
    await(&w, PL_MSG_WELCOME, &m);
    say_status(&w);
    for (int i = 0; i < 2; i++)
        await(&w, PL_MSG_LEASE, &m);
    if (write(to, "", 1) != 1)
        _exit(1);
    for (;;)
        pause();
}

Test(coordinate, samples_of_a_killed_process_go_on_elsewhere_without_delay)
{
    process *p = process_make();
    int to[2], from[2];
    char byte = 0;
    pl_msg m;
    p->o.machine.lost_ms = 3600 * 1000;
    cr_assert_eq(pipe(to), 0);
    cr_assert_eq(pipe(from), 0);
    const pid_t child = fork(); /* before there are threads */
    cr_assert_geq(child, 0);
    if (child == 0)
        be_a_worker(p, to[0], from[1]);
    process_start(p);
    client t = join_as(p, PL_ROLE_TRAINER, "trainer");
    await(&t, PL_MSG_WELCOME, &m);
    say(&t, bed_group(5, 1, 0, 2, 3));
    cr_assert_eq(write(to[1], &byte, 1), 1);
    cr_assert_eq(read(from[0], &byte, 1), 1);
    client w = join_as(p, PL_ROLE_WORKER, "w");
    await(&w, PL_MSG_WELCOME, &m);
    say_status(&w);
    cr_assert_eq(kill(child, SIGKILL), 0);
    for (int i = 0; i < 2; i++)
        await(&w, PL_MSG_LEASE, &m); /* within 10 s; of silence it would be an hour */
    cr_assert_eq(waitpid(child, NULL, 0), child);
    process_join(p, 2);
    leave(&t);
    leave(&w);
    process_free(p);
}

/* The place of the trainer is free all the time: nobody from another machine gets it. */
Test(coordinate, lets_only_workers_in_from_another_machine)
{
    process *p = process_make();
    pl_msg m;
    char addresses[512];
    pl_error err = {0};
    p->o.listen = "tcp://127.0.0.1:*";
    process_start(p);
    client w = join_as(p, PL_ROLE_WORKER, "w");
    await(&w, PL_MSG_WELCOME, &m); /* so the addresses are written */
    size_t n = 0;
    char *read = NULL;
    cr_assert_eq(
        pl_file_read(&read, &n, p->endpoint, sizeof addresses - 1, &err), PL_OK, "%s", err.msg);
    snprintf(addresses, sizeof addresses, "%.*s", (int)n, read);
    free(read);
    char *remote = strchr(addresses, '\n') + 1;
    remote[strcspn(remote, "\n")] = '\0';
    snprintf(p->address, sizeof p->address, "%s", remote);
    client t = join_as(p, PL_ROLE_TRAINER, "trainer");
    await(&t, PL_MSG_REJECT, &m);
    cr_expect_str_eq(m.u.reject.reason, "only workers join from another machine");
    client remote_w = join_as(p, PL_ROLE_WORKER, "remote");
    await(&remote_w, PL_MSG_WELCOME, &m);
    process_join(p, 2);
    leave(&w);
    leave(&t);
    leave(&remote_w);
    process_free(p);
}

Test(coordinate, ends_when_the_trainer_is_done_and_sends_all_home)
{
    process *p = process_make();
    pl_msg m;
    process_start(p);
    client t = join_as(p, PL_ROLE_TRAINER, "trainer"), w = join_as(p, PL_ROLE_WORKER, "w");
    await(&t, PL_MSG_WELCOME, &m);
    await(&w, PL_MSG_WELCOME, &m);
    say(&t, (pl_msg){.h.type = PL_MSG_DONE, .u.step = {4}});
    await(&w, PL_MSG_STOP, &m);
    say(&w, (pl_msg){.h.type = PL_MSG_LEAVE});
    process_join(p, 0);
    cr_expect_eq(p->st, PL_OK, "%s", p->err.msg);
    leave(&t);
    leave(&w);
    process_free(p);
}

Test(coordinate, says_what_is_wrong_with_a_ledger)
{
    process *p = process_make();
    pl_error err = {0};
    char path[128];
    snprintf(path, sizeof path, "%s/000001.journal", p->ledger);
    cr_assert_eq(pl_dir_make(p->ledger, &err), PL_OK);
    cr_assert_eq(pl_file_write(path,
                     "this is no journal of anything, and it is more than 64 "
                     "bytes long, as a superblock is.",
                     86, &err),
        PL_OK);
    process_start(p);
    process_join(p, 0);
    cr_expect_eq(p->st, PL_E_FORMAT);
    cr_expect(strstr(p->err.msg, p->ledger), "%s", p->err.msg);
    process_free(p);
}
