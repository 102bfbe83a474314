/* Claims: a request's target is taken apart or refused in words, never half; columns have at most
 * as many points as were asked for and stand for all steps; a drafter version has what came before
 * and after it; the timeline is read on from where the page was. */
#include "core/file.h"
#include "monitor/web_internal.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static web_query q;
static int status;

static const char *parse(const char *target)
{
    return web_query_parse(&q, target, &status);
}

Test(query, values_lose_their_escapes)
{
    cr_assert_null(parse("/api/samples?text=a+b%20%c3%A9%26&step=3&empty="));
    cr_assert_str_eq(q.path, "/api/samples");
    cr_assert_str_eq(web_query_text(&q, "text"), "a b \xc3\xa9&");
    cr_assert_str_eq(web_query_text(&q, "empty"), "");
    cr_assert_null(web_query_text(&q, "none"));
}

Test(query, what_is_no_path_is_nothing)
{
    static const char *const none[] = {"/../key", "/%2e%2e/key", "/a%00b", "/A", "/a b", "/\x01",
        "/a\xff", "/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};

    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        const int is_dots = i == 0; /* of letters and dots: a path, but none of the table */
        cr_assert_eq(parse(none[i]) == NULL, is_dots, "%s", none[i]);
        cr_assert(is_dots ? web_asset_find(q.path) == NULL : status == 404, "%s", none[i]);
    }
    cr_assert_not_null(parse("http://evil.com/"));
    cr_assert_eq(status, 400);
    cr_assert_not_null(parse(""));
}

Test(query, broken_fields_are_refused)
{
    static const char *const broken[] = {"/?a=%", "/?a=%4", "/?a=%zz", "/?a=%00", "/?=1", "/?A=1",
        "/?a=1&a=2", "/?abcdefghijklmnop=1", "/?a=1&b&c&d&e&f&g&h&i&j&k&l&m"};

    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        cr_assert_not_null(parse(broken[i]), "%s", broken[i]);
        cr_assert_eq(status, 400, "%s", broken[i]);
    }
}

Test(query, lengths_are_bounded)
{
    char *target = malloc(WEB_TARGET_MAX + 2);

    cr_assert_not_null(target);
    memset(target, 'a', WEB_TARGET_MAX + 1);
    memcpy(target, "/?a=", 4);
    target[4 + WEB_VALUE - 1] = 0;
    cr_assert_null(parse(target));
    target[4 + WEB_VALUE - 1] = 'a';
    target[4 + WEB_VALUE] = 0;
    cr_assert_not_null(parse(target));
    cr_assert_eq(status, 400);
    target[4 + WEB_VALUE] = 'a';
    target[WEB_TARGET_MAX + 1] = 0;
    cr_assert_not_null(parse(target));
    cr_assert_eq(status, 414);
    free(target);
}

Test(query, numbers_are_whole_and_in_range)
{
    int64_t v = 5;
    double x = 5;

    cr_assert_null(
        parse("/?a=12&b=13&c=x&d=&e=-1&f=nan&g=1e400&h=0x10&i=99999999999999999999&j= 1"));
    cr_assert_eq(web_query_int(&q, "a", 0, 12, &v), 1);
    cr_assert_eq(v, 12);
    cr_assert_eq(web_query_int(&q, "d", 0, 12, &v), 0);
    cr_assert_eq(web_query_int(&q, "none", 0, 12, &v), 0);
    cr_assert_eq(v, 12);
    for (const char *name = "bcefghij"; *name; name++) {
        const char field[2] = {*name, 0};
        cr_assert_eq(web_query_int(&q, field, 0, 12, &v), -1, "%s", field);
    }
    for (const char *name = "cfgj"; *name; name++) {
        const char field[2] = {*name, 0};
        cr_assert_eq(web_query_number(&q, field, &x), -1, "%s", field);
    }
    cr_assert_eq(web_query_number(&q, "e", &x), 1);
    cr_assert_eq(x, -1);
}

/* ---- what is shown ---- */

static char dir[] = "/tmp/pl_web_XXXXXX";
static pl_error err;
static pl_history *h;
static pl_json j;

static void begin(void)
{
    pl_metrics *m = NULL;

    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(pl_metrics_open(&m, dir, -1, &err), PL_OK, "%s", err.msg);
    for (int64_t step = 1; step <= 10; step++) {
        const pl_metric metrics[] = {{"reward", (double)step},
            {"drafter/version", step < 6 ? 1 : 2}, {"rollout/spec_accept_length", step < 6 ? 2 : 3},
            {"drafter/rollbacks", step == 6}};
        cr_assert_eq(pl_metrics_put(m, step, metrics, 4, &err), PL_OK, "%s", err.msg);
    }
    pl_metrics_close(m);
    cr_assert_eq(pl_history_open(&h, dir, &err), PL_OK, "%s", err.msg);
    cr_assert_eq(pl_history_poll(h), 1);
}

static void end(void)
{
    pl_json_done(&j);
    pl_history_close(h);
    cr_assert_eq(pl_dir_remove(dir, &err), PL_OK, "%s", err.msg);
}

TestSuite(web, .init = begin, .fini = end);

static void has(const char *text)
{
    cr_assert_not_null(j.data);
    cr_assert_not_null(strstr(j.data, text), "no %s in %s", text, j.data);
}

Test(web, few_points_stand_for_all_steps)
{
    web_columns(&j, h, 0, 4);
    has("\"n\":10,\"stride\":3,\"last\":10,");
    has("\"steps\":[3,6,9,10]");
    has("\"reward\":[2,5,8,10]");
    has("\"drafter/version\":[1,2,2,2]"); /* of a version the last, not the mean */
}

Test(web, columns_go_on_after_a_step)
{
    web_columns(&j, h, 9, 100);
    has("\"stride\":1,");
    has("\"steps\":[9,10]");
    has("\"reward\":[9,10]");
    pl_json_clear(&j);
    web_columns(&j, h, 11, 100);
    has("\"steps\":[],\"columns\":{}}");
}

Test(web, a_version_has_its_before_and_after)
{
    web_versions(&j, h);
    has("{\"version\":1,\"first_step\":1,\"last_step\":5,\"accept_length\":2,");
    has("{\"version\":2,\"first_step\":6,\"last_step\":10,\"accept_length\":3,");
    has("\"before\":2,\"after\":3,");
    has("\"rollbacks\":1,");
}

Test(web, the_timeline_is_read_on)
{
    pl_timeline *t = NULL;

    cr_assert_eq(web_timeline(&j, dir, -1, &err), PL_E_NOENT);
    pl_json_clear(&j);
    cr_assert_eq(pl_timeline_open(&t, dir, 1 << 20, &err), PL_OK, "%s", err.msg);
    pl_timeline_put(t, "worker-0", "BUSY", 1000, 50, NULL);
    cr_assert_eq(web_timeline(&j, dir, -1, &err), PL_OK, "%s", err.msg);
    has("\"events\":[[\"worker-0\",\"BUSY\",1000,50]],");
    const char *next = strstr(j.data, "\"next\":");
    cr_assert_not_null(next);
    const int64_t at = atoll(next + 7);
    pl_timeline_put(t, "worker-0", "IDLE", 1050, 20, NULL);
    pl_timeline_close(t);
    pl_json_clear(&j);
    cr_assert_eq(web_timeline(&j, dir, at, &err), PL_OK, "%s", err.msg);
    has("\"events\":[[\"worker-0\",\"IDLE\",1050,20]],");
}
