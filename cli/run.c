/* cli/run.c - paceline run: in one process (rollout.num_workers=0), or as the supervisor of many.
 */
#include "cli/replay_parts.h"

#include <string.h>
#include <sys/prctl.h>

static void print_config(const run_config *c, int with_help)
{
    pl_config_section sections[RUN_SECTIONS];
    run_config copy = *c;
    run_config_sections(&copy, sections);
    pl_config_dump(sections, RUN_SECTIONS, with_help, stdout);
}

int cmd_run(int argc, char **argv)
{
    const double t0 = run_seconds();
    run_config config;
    run_supervise_options wire = {0};
    int dry_run = 0, help_config = 0, n, helped;
    const cli_option options[] = {
        {"dry-run", CLI_FLAG, &dry_run, 0, 0, NULL,
            "print the resolved config and the memory plan"},
        {"help-config", CLI_FLAG, &help_config, 0, 0, NULL, "every key, its range and its default"},
        {"listen", CLI_STRING, &wire.listen, 0, 0, "ADDRESS",
            "let workers of other machines join, at tcp://HOST:PORT (wants --keys)"},
        {"keys", CLI_STRING, &wire.keys, 0, 0, "DIR", "keys of paceline keygen"},
        {0},
    };
    pl_error err = {0};

    pl_status st =
        cli_parse(argc, argv, "run CONFIG [key=value ...] [--dry-run]", options, &n, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK && help_config) {
        st = run_config_load(&config, NULL, NULL, 0, &err);
        print_config(&config, 1);
        return st == PL_OK ? 0 : cli_report(&err);
    }
    if (st == PL_OK && n < 1)
        st = pl_fail(&err, PL_E_USAGE, "run wants a config file, as configs/quickstart.yaml");
    if (st == PL_OK)
        st = run_config_load(&config, argv[1], argv + 2, n - 1, &err);
    if (st == PL_OK && wire.listen && config.rollout.num_workers == 0)
        st = pl_fail(&err, PL_E_CONFIG,
            "--listen wants worker processes: set rollout.num_workers to 1 or more");
    if (st == PL_OK && wire.listen && !wire.keys)
        st = pl_fail(
            &err, PL_E_USAGE, "--listen wants --keys DIR: make them with paceline keygen DIR");
    if (st != PL_OK)
        return cli_report(&err);
    cli_catch_signals(0);
    if (dry_run)
        print_config(&config, 0);
    if (config.rollout.num_workers == 0 || dry_run)
        return run_loop(&config, t0, dry_run, 0);
    config.wire = wire;
    return run_supervise(&config);
}

/* The policy trainer's process, started by run_supervise: its stdout is the table of steps. */
int cmd_trainer(int argc, char **argv)
{
    const double t0 = run_seconds();
    const char *connect = NULL;
    run_config config;
    run_supervise_options wire = {0};
    char path[PL_CONFIG_STR + 16];
    int n, helped;
    const cli_option options[] = {
        {"connect", CLI_STRING, &connect, 0, 0, "RUN_DIR", "the run"},
        {"listen", CLI_STRING, &wire.listen, 0, 0, "ADDRESS", "as of paceline run"},
        {"keys", CLI_STRING, &wire.keys, 0, 0, "DIR", "as of paceline run"},
        {0},
    };
    pl_error err = {0};

    if (argc > 1 && strcmp(argv[1], "replay") == 0)
        return replay_in_trainer(argc - 1, argv + 1);
    pl_status st = cli_parse(argc, argv, "trainer --connect RUN_DIR", options, &n, &helped, &err);
    if (st == PL_OK && helped)
        return 0;
    if (st == PL_OK && (!connect || n > 0 || strlen(connect) >= PL_CONFIG_STR))
        st = pl_fail(&err, PL_E_USAGE, "trainer wants --connect RUN_DIR: paceline run starts it");
    if (st == PL_OK) {
        snprintf(path, sizeof path, "%s/config.yaml", connect);
        st = run_config_load(&config, path, NULL, 0, &err);
    }
    if (st != PL_OK)
        return cli_report(&err);
    (void)prctl(PR_SET_NAME, "pl-trainer"); /* the program is started as /proc/self/exe */
    snprintf(config.trainer.default_local_dir, PL_CONFIG_STR, "%s", connect);
    config.wire = wire;
    cli_catch_signals(1);
    return run_loop(&config, t0, 0, 1);
}
