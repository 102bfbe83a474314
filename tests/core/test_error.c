/* Claims: messages read outside-in, are always terminated, and may be built from themselves. */
#include "core/error.h"

#include <criterion/criterion.h>
#include <string.h>

Test(error, fail_yields_the_code_and_keeps_the_message)
{
    pl_error err;
    const pl_status st = pl_fail(&err, PL_E_IO, "open '%s': %d", "x", 5);
    cr_assert_eq(st, PL_E_IO);
    cr_assert_eq(err.code, PL_E_IO);
    cr_assert_str_eq(err.msg, "open 'x': 5");
}

Test(error, wrap_puts_the_context_in_front)
{
    pl_error err;
    pl_error_set(&err, PL_E_FORMAT, "header too short");
    cr_assert_eq(pl_wrap(&err, PL_E_FORMAT, "weights '%s'", "m"), PL_E_FORMAT);
    cr_assert_str_eq(err.msg, "weights 'm': header too short");
}

Test(error, a_null_error_is_accepted)
{
    cr_assert_eq(pl_fail(NULL, PL_E_NOMEM, "nobody listens"), PL_E_NOMEM);
    pl_error_prefix(NULL, "nor here");
}

Test(error, long_messages_are_cut_and_end_in_dots)
{
    pl_error err;
    char text[3000];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = '\0';

    pl_error_set(&err, PL_E_IO, "%s", text);
    cr_assert_eq(strlen(err.msg), sizeof err.msg - 1);
    cr_assert_str_eq(err.msg + sizeof err.msg - 5, "a...");
    pl_error_prefix(&err, "%s", text);
    cr_assert_eq(strlen(err.msg), sizeof err.msg - 1);
    cr_assert_str_eq(err.msg + sizeof err.msg - 4, "...");
}

Test(error, a_message_may_be_an_argument_of_its_successor)
{
    pl_error err;
    pl_error_set(&err, PL_E_IO, "inner");
    pl_error_set(&err, PL_E_PEER, "outer (%s)", err.msg);
    cr_assert_str_eq(err.msg, "outer (inner)");
    pl_error_prefix(&err, "%s again", err.msg);
    cr_assert_str_eq(err.msg, "outer (inner) again: outer (inner)");
}

Test(error, exit_codes_are_those_of_sysexits)
{
    static const struct {
        pl_status st;
        int code;
    } cases[] = {{PL_OK, 0}, {PL_E_USAGE, 64}, {PL_E_FORMAT, 65}, {PL_E_SHAPE, 65},
        {PL_E_NOENT, 66}, {PL_E_PEER, 69}, {PL_E_NOMEM, 70}, {PL_E_INVAL, 70}, {PL_E_NUMERIC, 70},
        {PL_E_IO, 74}, {PL_E_STOPPED, 75}, {PL_E_CONFIG, 78}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        cr_assert_eq(pl_status_exit_code(cases[i].st), cases[i].code, "status %d", cases[i].st);
}
