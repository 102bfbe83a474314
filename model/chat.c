/* model/chat.c - chat templates.  Nothing is interpreted: a template is recognised by its whole
 * text, and each known one has its rendering in C. */
#include "model/bpe.h"

#include <stdlib.h>
#include <string.h>

/* The same templates stand in files with a real newline and with the two characters \n in their
 * string literals; NL is that one. */
#define TURNS(NL)                                                                                  \
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '" NL                       \
    "' + message['content'] + '<|im_end|>' + '" NL "'}}{% endfor %}"
#define TURNS_SHORT(NL)                                                                            \
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '" NL                       \
    "' + message['content'] + '<|im_end|>" NL "'}}{% endfor %}"
#define PROMPT(NL) "{% if add_generation_prompt %}{{ '<|im_start|>assistant" NL "' }}{% endif %}"
#define NO_PROMPT                                                                                  \
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"         \
    "{% endif %}"
#define SMOLLM2(NL)                                                                                \
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"         \
    "{{ '<|im_start|>system" NL SMOLLM2_SYSTEM "<|im_end|>" NL "' }}{% endif %}"                   \
    "{{'<|im_start|>' + message['role'] + '" NL "' + message['content'] + '<|im_end|>' + '" NL     \
    "'}}{% endfor %}" PROMPT(NL)
#define SMOLLM2_SYSTEM "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#define BOTH(chat, macro)                                                                          \
    {chat, macro("\n")},                                                                           \
    {                                                                                              \
        chat, macro("\\n")                                                                         \
    }
#define CHATML_PLAIN(NL)         TURNS(NL) PROMPT(NL)
#define CHATML_SHORT(NL)         TURNS_SHORT(NL) PROMPT(NL)
#define CHATML_GUARDED(NL)       NO_PROMPT TURNS(NL) PROMPT(NL)
#define CHATML_GUARDED_SHORT(NL) NO_PROMPT TURNS_SHORT(NL) PROMPT(NL)
#define CHATML_LINES(OPEN, CLOSE)                                                                  \
    "{%- for message in messages " CLOSE "\n" OPEN                                                 \
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"       \
    "\n{%- endfor %}\n{%- if add_generation_prompt %}\n" OPEN                                      \
    "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}"

static const struct {
    bpe_chat chat;
    const char *text;
} known[] = {
    BOTH(CHAT_SMOLLM2, SMOLLM2),
    BOTH(CHAT_CHATML, CHATML_PLAIN),
    BOTH(CHAT_CHATML, CHATML_SHORT),
    BOTH(CHAT_CHATML, CHATML_GUARDED),
    BOTH(CHAT_CHATML, CHATML_GUARDED_SHORT),
    {CHAT_CHATML, CHATML_LINES("    ", "%}")},
    {CHAT_CHATML, CHATML_LINES("    ", "%}") "\n"},
    {CHAT_CHATML, CHATML_LINES("  ", "%}")},
    {CHAT_CHATML, CHATML_LINES("", "%}")},
};

pl_status chat_set_template(pl_tokenizer *t, const char *text, size_t n, pl_error *err)
{
    if (!text)
        return PL_OK;
    if (n > BPE_MAX_TEMPLATE || memchr(text, '\0', n))
        return pl_fail(err, PL_E_FORMAT,
            "chat template of %zu bytes (at most %d, and none of them zero)", n, BPE_MAX_TEMPLATE);
    char *copy = malloc(n + 1);
    if (!copy)
        return pl_fail(err, PL_E_NOMEM, "chat template of %zu bytes", n);
    memcpy(copy, text, n);
    copy[n] = '\0';
    free(t->chat_template);
    t->chat_template = copy;
    t->chat = CHAT_UNKNOWN;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(copy, known[i].text) == 0)
            t->chat = known[i].chat;
    return PL_OK;
}

const char *pl_chat_name(const pl_tokenizer *t)
{
    static const char *const names[] = {
        [CHAT_NONE] = "none",
        [CHAT_UNKNOWN] = "unknown",
        [CHAT_SMOLLM2] = "smollm2",
        [CHAT_CHATML] = "chatml",
    };
    return names[t->chat];
}

/* Text that is counted when out is NULL and written when it is not. */
typedef struct page {
    char *out;
    size_t n;
} page;

static void put(page *p, const char *s)
{
    const size_t n = strlen(s);
    if (p->out)
        memcpy(p->out + p->n, s, n);
    p->n += n;
}

static void put_turn(page *p, const char *role, const char *content)
{
    put(p, "<|im_start|>");
    put(p, role);
    put(p, "\n");
    put(p, content);
    put(p, "<|im_end|>\n");
}

static void put_all(page *p, bpe_chat chat, const pl_message *messages, int n_messages)
{
    if (chat == CHAT_SMOLLM2 && n_messages > 0 && strcmp(messages[0].role, "system") != 0)
        put_turn(p, "system", SMOLLM2_SYSTEM);
    for (int i = 0; i < n_messages; i++)
        put_turn(p, messages[i].role, messages[i].content);
    put(p, "<|im_start|>assistant\n");
}

pl_status pl_chat_render(const pl_tokenizer *t, const pl_message *messages, int n_messages,
    char **out, size_t *n_bytes, pl_error *err)
{
    page p = {0};
    if (t->chat == CHAT_NONE)
        return pl_fail(err, PL_E_FORMAT,
            "the model has no chat template: give the prompt as plain text (--raw)");
    if (t->chat == CHAT_UNKNOWN)
        return pl_fail(err, PL_E_FORMAT,
            "chat template of the model is not known (known: SmolLM2's and plain ChatML): give the "
            "prompt as plain text (--raw); it begins '%.60s'",
            t->chat_template);
    for (int i = 0; i < n_messages; i++)
        if (!messages[i].role || !messages[i].content)
            return pl_fail(err, PL_E_INVAL, "message %d has no role or no content", i);

    put_all(&p, t->chat, messages, n_messages);
    *n_bytes = p.n;
    p = (page){malloc(p.n + 1), 0};
    if (!p.out)
        return pl_fail(err, PL_E_NOMEM, "conversation of %zu bytes", *n_bytes);
    put_all(&p, t->chat, messages, n_messages);
    p.out[p.n] = '\0';
    *out = p.out;
    return PL_OK;
}

pl_status pl_chat_encode(const pl_tokenizer *t, const pl_message *messages, int n_messages,
    int32_t **out, int *n_out, pl_error *err)
{
    char *text = NULL;
    size_t n = 0;
    pl_status st = pl_chat_render(t, messages, n_messages, &text, &n, err);
    if (st == PL_OK)
        st = pl_tokenizer_encode(t, text, n, 1, out, n_out, err);
    free(text);
    return st;
}
