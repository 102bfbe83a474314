/* tests/fuzz/fuzz_reward.c - a line of a reward command against any bytes.  What is accepted
 * and jansson accepts too has the same id; a score is finite, the text printable. */
#include "trainer/reward_internal.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void check_text(const reward_reply *r)
{
    const size_t n = strnlen(r->text, sizeof r->text);

    if (n == sizeof r->text)
        abort();
    for (size_t i = 0; i < n; i++)
        if (r->text[i] < 0x20 || r->text[i] > 0x7e)
            abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *line = (const char *)data;
    reward_reply reply;
    pl_error err = {0};

    const pl_status st = reward_reply_parse(&reply, line, size, &err);
    if (st != PL_OK && (st != PL_E_FORMAT || err.code != st || err.msg[0] == '\0'))
        abort();
    if (st != PL_OK)
        return 0;
    check_text(&reply);
    if (reply.answer == REWARD_SCORE && !isfinite(reply.score))
        abort();
    /* What both accept, both understand alike, but for keys that are written with escapes. */
    json_t *v = json_loadb(line, size, 0, NULL);
    const json_t *id = json_object_get(v, "id");
    if (v && !memchr(line, '\\', size) && json_integer_value(id) != reply.id)
        abort();
    json_decref(v);
    return 0;
}
