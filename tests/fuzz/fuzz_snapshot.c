/* tests/fuzz/fuzz_snapshot.c - a snapshot as another machine's server sends it, and the page that
 * is drawn of it: no input brings a control character to the terminal. */
#include "monitor/view.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    pl_snapshot *s = malloc(sizeof *s);
    pl_json page = {0};
    pl_error err;
    const pl_view_data d = {.source = "run", .now = s, .unix_ms = 1000000};
    const pl_view_options o = {.width = 80 + (int)(size % 70), .height = 24, .has_utf8 = 1};

    if (s && pl_snapshot_parse((const char *)data, size, s, &err) == PL_OK &&
        pl_view_page(&d, &o, &page, &err) == PL_OK)
        for (size_t i = 0; i < page.n; i++)
            if ((unsigned char)page.data[i] < 0x20 && page.data[i] != '\n')
                __builtin_trap();
    pl_json_done(&page);
    free(s);
    return 0;
}
