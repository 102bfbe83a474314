/* cli/keygen.c - paceline keygen: the keys that a run needs beyond one machine. */
#include "cli/cli.h"
#include "ipc/ipc.h"

int cmd_keygen(int argc, char **argv)
{
    const cli_option options[] = {{0}};
    pl_error err = {0};
    int n_positional = 0, helped = 0;

    if (cli_parse(argc, argv, "keygen DIR", options, &n_positional, &helped, &err) != PL_OK)
        return cli_report(&err);
    if (helped)
        return 0;
    if (n_positional != 1) {
        pl_error_set(&err, PL_E_USAGE, "keygen wants one directory: paceline keygen DIR");
        return cli_report(&err);
    }
    const char *dir = argv[1];
    if (pl_keys_make(dir, &err) != PL_OK)
        return cli_report(&err);
    printf("%s: keys of a server and of a client\n"
           "  the machine of the run keeps all of it; server.key_secret never leaves it\n"
           "  each other machine gets a directory (mode 700) with three files of it:\n"
           "    server.key  client.key  client.key_secret (mode 600)\n"
           "  copy them over a channel that you trust, as scp is\n"
           "  clients/*.key are the public keys that are admitted: remove one and it is refused\n"
           "  from its next connection on\n",
        dir);
    if (cli_flush(&err) != PL_OK)
        return cli_report(&err);
    return 0;
}
