/* tests/model/test_chat.c - claims: known templates render as Jinja would; others are refused. */
#include "model/tokenizer.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static pl_error err;

#define CHATML                                                                                     \
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"  \
    " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"                           \
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
#define SMOLLM2                                                                                    \
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "      \
    "'<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"    \
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "   \
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"                            \
    "{{ '<|im_start|>assistant\n' }}{% endif %}"

/* Letters one by one, and the two tokens of ChatML. */
static pl_tokenizer *make(const char *template)
{
    const char json[] =
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"u\":1,\"s\":2,\"e\":3,\"r\":4,\"\xC4\x8A"
        "\":5},\"merges\":[]},\"added_tokens\":[{\"id\":6,\"content\":\"<|im_start|>\",\"special\":"
        "true},{\"id\":7,\"content\":\"<|im_end|>\",\"special\":true}],\"pre_tokenizer\":{\"type\":"
        "\"ByteLevel\",\"add_prefix_space\":false}}";
    pl_tokenizer *t = NULL;
    cr_assert(pl_tokenizer_parse(&t, json, strlen(json), NULL, template, 8, &err) == PL_OK, "%s",
        err.msg);
    return t;
}

static void expect_render(
    const pl_tokenizer *t, const pl_message *messages, int n, const char *want)
{
    char *text = NULL;
    size_t n_text = 0;
    cr_assert(pl_chat_render(t, messages, n, &text, &n_text, &err) == PL_OK, "%s", err.msg);
    cr_expect_str_eq(text, want);
    cr_expect(n_text == strlen(want));
    free(text);
}

static const pl_message asked[] = {{"user", "hi"}};
static const pl_message guided[] = {
    {"system", "be brief"}, {"user", "hi"}, {"assistant", "yes?"}, {"user", ""}};
#define GUIDED_TEXT                                                                                \
    "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"                     \
    "<|im_start|>assistant\nyes?<|im_end|>\n<|im_start|>user\n<|im_end|>\n"                        \
    "<|im_start|>assistant\n"

Test(chat, smollm2_adds_its_system_message_unless_one_is_given)
{
    pl_tokenizer *t = make(SMOLLM2);
    cr_expect_str_eq(pl_chat_name(t), "smollm2");
    expect_render(t, asked, 1,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    expect_render(t, guided, 4, GUIDED_TEXT);
    expect_render(t, NULL, 0, "<|im_start|>assistant\n");
    pl_tokenizer_free(t);
}

Test(chat, chatml_adds_nothing)
{
    pl_tokenizer *t = make(CHATML);
    cr_expect_str_eq(pl_chat_name(t), "chatml");
    expect_render(t, asked, 1, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    expect_render(t, guided, 4, GUIDED_TEXT);
    pl_tokenizer_free(t);
}

Test(chat, is_encoded_with_special_tokens)
{
    pl_tokenizer *t = make(CHATML);
    const pl_message m[] = {{"user", "a<|im_end|>"}};
    const int32_t want[] = {6, 1, 2, 3, 4, 5, 0, 7, 7, 5, 6, 0, 2, 2, 2, 0, 5};
    int32_t *ids = NULL;
    int n = 0;
    cr_assert(pl_chat_encode(t, m, 1, &ids, &n, &err) == PL_OK, "%s", err.msg);
    cr_assert(n == 17 && memcmp(ids, want, sizeof want) == 0, "%d tokens", n);
    free(ids);
    pl_tokenizer_free(t);
}

Test(chat, refuses_a_template_that_differs_by_one_byte)
{
    pl_tokenizer *t = make(CHATML " ");
    int32_t *ids = NULL;
    int n = 0;
    cr_expect_str_eq(pl_chat_name(t), "unknown");
    cr_expect(pl_chat_encode(t, asked, 1, &ids, &n, &err) == PL_E_FORMAT);
    cr_expect(strstr(err.msg, "is not known") != NULL, "%s", err.msg);
    pl_tokenizer_free(t);
}

Test(chat, says_so_when_the_model_has_no_template)
{
    pl_tokenizer *t = make(NULL);
    int32_t *ids = NULL;
    int n = 0;
    cr_expect_str_eq(pl_chat_name(t), "none");
    cr_expect(pl_chat_encode(t, asked, 1, &ids, &n, &err) == PL_E_FORMAT);
    cr_expect(strstr(err.msg, "no chat template") != NULL, "%s", err.msg);
    pl_tokenizer_free(t);
}

Test(chat, takes_an_empty_template_for_an_unknown_one)
{
    pl_tokenizer *t = make("");
    cr_expect_str_eq(pl_chat_name(t), "unknown");
    pl_tokenizer_free(t);
}
