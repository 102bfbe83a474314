/* cli/doctor.c - paceline doctor: what this machine has, what is used, and whether it is right. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static const char *yes_no(int x)
{
    return x ? "yes" : "no";
}

/* The isas, and for each: available, chosen, the self-test's verdict. */
static int list_backends(const cli_model *m)
{
    static const pl_isa isas[] = {PL_ISA_AMX, PL_ISA_AVX512, PL_ISA_AVX2, PL_ISA_REF};
    int n_bad = 0;

    printf("\nnumeric class    %s\n", PL_NUMERIC_CLASS);
    for (size_t i = 0; i < sizeof isas / sizeof isas[0]; i++) {
        const pl_ops *ops;
        pl_error err = {0};
        const double t0 = seconds();
        const pl_status st = pl_ops_select(&ops, isas[i], &m->cpu, NULL, 0, &err);
        printf("  %-8s       ", pl_isa_name(isas[i]));
        if (st == PL_OK)
            printf("self-test passed in %.1f ms%s\n", (seconds() - t0) * 1e3,
                ops == m->ops ? "   <- used" : "");
        else
            printf("%s\n", err.msg);
        n_bad += st != PL_OK && st != PL_E_DEVICE;
    }
    return n_bad;
}

static void list_memory(void)
{
    const double page = (double)sysconf(_SC_PAGESIZE) / 1e9;
    struct rlimit as = {0};

    printf("\nmemory           %.1f GB, %.1f GB free\n", (double)sysconf(_SC_PHYS_PAGES) * page,
        (double)sysconf(_SC_AVPHYS_PAGES) * page);
    if (getrlimit(RLIMIT_AS, &as) == 0 && as.rlim_cur != RLIM_INFINITY)
        printf(
            "  limit          %.1f GB of address space (ulimit -v)\n", (double)as.rlim_cur / 1e9);
}

int cmd_doctor(int argc, char **argv)
{
    const char *isa = "auto";
    const cli_option options[] = {
        {"isa", CLI_STRING, &isa, 0, 0, "ISA", "ask for this backend (auto)"}, {0}};
    cli_model m = {0};
    pl_error err = {0};
    int n, helped, n_bad = 0;

    pl_status st = cli_parse(argc, argv, "doctor [--isa ISA]", options, &n, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK && n > 0)
        st = pl_fail(&err, PL_E_USAGE, "doctor takes no argument '%s'", argv[1]);
    if (st == PL_OK)
        st = cli_backend_open(&m, isa, 0, &err);
    if (st != PL_OK)
        return cli_report(&err);
    printf("cpu              %s\n", m.cpu.name);
    printf("  cores          %d usable, a team of %d\n", m.cpu.n_cpus, pl_team_size(m.team));
    printf("  caches         L2 %zu KiB, L3 %zu KiB\n", m.cpu.l2_bytes >> 10, m.cpu.l3_bytes >> 10);
    printf("  avx2+fma       %s\n", yes_no(m.cpu.has_avx2));
    printf("  avx512         %s\n", yes_no(m.cpu.has_avx512));
    printf("  avx512_bf16    %s\n", yes_no(m.cpu.has_avx512_bf16));
    printf("  amx_bf16       %s\n", yes_no(m.cpu.has_amx_bf16));
    n_bad = list_backends(&m);
    if (m.note[0])
        printf("  note           %s\n", m.note);
    printf("  used           %s: the fastest that this CPU has and that passes the self-test\n",
        m.ops->name);
    list_memory();
    printf("\ncuda             not built in: this version runs on CPUs only\n");
    pl_team_free(m.team);
    st = cli_flush(&err);
    if (st != PL_OK)
        return cli_report(&err);
    return n_bad > 0 ? 70 : 0;
}
