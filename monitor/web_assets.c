/* monitor/web_assets.c - the page's files, in the program's own bytes: nothing is looked up in a
 * file system, so no path leads out of it. */
#include "monitor/web_internal.h"

#include <string.h>

/* The assembler takes a file in as it is: PL_PAGE_* are paths, given by CMake. */
#define EMBED(name, path)                                                                          \
    __asm__(".section .rodata\n.balign 16\n.global web_" name "\n.global web_" name "_end\n"       \
            "web_" name ":\n.incbin \"" path "\"\nweb_" name "_end:\n.byte 0\n.previous\n")

EMBED("index_html", PL_PAGE_DIR "/index.html");
EMBED("app_js", PL_PAGE_DIR "/app.js");
EMBED("dom_js", PL_PAGE_DIR "/dom.js");
EMBED("charts_js", PL_PAGE_DIR "/charts.js");
EMBED("overview_js", PL_PAGE_DIR "/overview.js");
EMBED("timeline_js", PL_PAGE_DIR "/timeline.js");
EMBED("samples_js", PL_PAGE_DIR "/samples.js");
EMBED("drafter_js", PL_PAGE_DIR "/drafter.js");
EMBED("theme_js", PL_PAGE_DIR "/theme.js");
EMBED("style_css", PL_PAGE_DIR "/style.css");
EMBED("icon_svg", PL_PAGE_DIR "/icon.svg");
EMBED("chart_js", PL_CHART_JS);

extern const char web_index_html[], web_index_html_end[];
extern const char web_app_js[], web_app_js_end[];
extern const char web_dom_js[], web_dom_js_end[];
extern const char web_charts_js[], web_charts_js_end[];
extern const char web_overview_js[], web_overview_js_end[];
extern const char web_timeline_js[], web_timeline_js_end[];
extern const char web_samples_js[], web_samples_js_end[];
extern const char web_drafter_js[], web_drafter_js_end[];
extern const char web_theme_js[], web_theme_js_end[];
extern const char web_style_css[], web_style_css_end[];
extern const char web_icon_svg[], web_icon_svg_end[];
extern const char web_chart_js[], web_chart_js_end[];

#define SCRIPT "text/javascript; charset=utf-8"

static const web_asset assets[] = {
    {"/", "text/html; charset=utf-8", web_index_html, web_index_html_end},
    {"/app.js", SCRIPT, web_app_js, web_app_js_end},
    {"/dom.js", SCRIPT, web_dom_js, web_dom_js_end},
    {"/charts.js", SCRIPT, web_charts_js, web_charts_js_end},
    {"/overview.js", SCRIPT, web_overview_js, web_overview_js_end},
    {"/timeline.js", SCRIPT, web_timeline_js, web_timeline_js_end},
    {"/samples.js", SCRIPT, web_samples_js, web_samples_js_end},
    {"/drafter.js", SCRIPT, web_drafter_js, web_drafter_js_end},
    {"/theme.js", SCRIPT, web_theme_js, web_theme_js_end},
    {"/style.css", "text/css; charset=utf-8", web_style_css, web_style_css_end},
    {"/icon.svg", "image/svg+xml", web_icon_svg, web_icon_svg_end},
    {"/chart.js", SCRIPT, web_chart_js, web_chart_js_end},
};

const web_asset *web_asset_find(const char *path)
{
    for (size_t i = 0; i < sizeof assets / sizeof assets[0]; i++)
        if (strcmp(assets[i].path, path) == 0)
            return &assets[i];
    return NULL;
}
