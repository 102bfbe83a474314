/* tests/oracle/messages_driver.c - the codec on lines of text, for tests/oracle/messages.py.
 *
 *   messages_driver pack KEY      random messages of every type out, "TYPE NAME HEX" a line
 *   messages_driver read          "TYPE HEX" lines in; what they mean, packed again, as "HEX" out,
 *                                 or "refused: WHY"
 *   messages_driver corpus DIR    one file a type: two bytes of type, a body
 */
#include "ipc/fields.h"
#include "tests/ipc/messages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void print_hex(const pl_bytes *b)
{
    for (size_t i = 0; i < b->n; i++)
        printf("%02x", b->data[i]);
    printf("\n");
}

/* A message of the type, in b. */
static int make(pl_bytes *b, uint16_t type, messages_size size, uint64_t key)
{
    pl_msg m;
    pl_error err = {0};
    unsigned char *store = messages_fill(&m, type, size, key);
    const pl_status st = store == NULL ? PL_E_NOMEM : pl_body_encode(&m, b, &err);
    free(store);
    if (st != PL_OK)
        fprintf(stderr, "messages_driver: %s\n", err.msg);
    return st == PL_OK;
}

static int pack(uint64_t key)
{
    pl_bytes b = {0};
    int is_good = 1;
    for (uint16_t type = 0; type < MESSAGES_TYPES && is_good; type++) {
        for (int size = MESSAGES_LOW; size <= MESSAGES_HIGH; size++) {
            if (ipc_layout_of(type) == NULL)
                continue;
            is_good = is_good && make(&b, type, (messages_size)size, key);
            printf("%d %s ", type, pl_msg_name(type));
            print_hex(&b);
        }
    }
    pl_bytes_done(&b);
    return is_good ? 0 : 1;
}

static int digit(char c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

static void read_line(char *line, unsigned char *body)
{
    pl_bytes b = {0};
    pl_msg m;
    pl_error err = {0};
    char *hex;
    size_t n = 0;
    const uint16_t type = (uint16_t)strtoul(line, &hex, 10);

    hex += strspn(hex, " ");
    for (; hex[0] > ' ' && hex[1] > ' '; hex += 2)
        body[n++] = (unsigned char)(digit(hex[0]) << 4 | digit(hex[1]));
    if (pl_body_decode(&m, type, body, n, &err) == PL_OK && pl_body_encode(&m, &b, &err) == PL_OK)
        print_hex(&b);
    else
        printf("refused: %s\n", err.msg);
    pl_bytes_done(&b);
}

static int read_lines(void)
{
    const size_t room = 2 * PL_BODY_MAX + 64;
    char *line = malloc(room);
    unsigned char *body = malloc(room);
    if (line == NULL || body == NULL)
        return 1;
    while (fgets(line, (int)room, stdin) != NULL)
        read_line(line, body);
    free(line);
    free(body);
    return 0;
}

static int write_corpus(const char *dir)
{
    pl_bytes b = {0};
    for (uint16_t type = 0; type < MESSAGES_TYPES; type++) {
        char path[4096];
        if (ipc_layout_of(type) == NULL)
            continue;
        if (!make(&b, type, MESSAGES_RANDOM, 1))
            return 1;
        snprintf(path, sizeof path, "%s/%s", dir, pl_msg_name(type));
        FILE *f = fopen(path, "wb");
        if (f == NULL)
            return 1;
        fputc(type & 255, f);
        fputc(type >> 8, f);
        fwrite(b.data, 1, b.n, f);
        if (fclose(f) != 0)
            return 1;
    }
    pl_bytes_done(&b);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "pack") == 0)
        return pack(strtoull(argv[2], NULL, 10));
    if (argc == 2 && strcmp(argv[1], "read") == 0)
        return read_lines();
    if (argc == 3 && strcmp(argv[1], "corpus") == 0)
        return write_corpus(argv[2]);
    fprintf(stderr, "usage: messages_driver pack KEY | read | corpus DIR\n");
    return 64;
}
