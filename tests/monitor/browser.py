#!/usr/bin/env python3
"""browser.py - clicks through the page of a run in headless Chromium, as a user does.

    browser.py PACELINE FAKE_RUN [--shots DIR] [--steps N] [--watch SECONDS]

Desktop and phone width, light and dark: every page is opened, a sample is searched and opened, a token
pointed at, the theme switched, keys pressed.  It fails on console errors, violations of the page's
content security policy, text of a sample that acts, and anything wider than the screen.  It prints
when the first paint was, and with --watch how the page's memory grew.  Exit code 77 without a browser.

Chromium is driven over its debugging pipe: one JSON message, one NUL byte.
"""
import argparse
import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "chrome-headless-shell"]
PAGES = ["overview", "timeline", "samples", "drafter"]
SCREENS = [(1440, 900, "light"), (1440, 900, "dark"), (390, 844, "light"), (390, 844, "dark")]


class Browser:
    def __init__(self, program, home):
        to_read, self.to = os.pipe()
        self.answers, from_write = os.pipe()
        self.data, self.number, self.events = b"", 0, []

        def take_pipes():
            # 3 and 4 may be in use as one another's source
            a, b = os.dup2(to_read, 60), os.dup2(from_write, 61)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--no-first-run", "--disable-dev-shm-usage", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--mute-audio",
             "--user-data-dir=" + home, "--remote-debugging-pipe", "about:blank"],
            close_fds=False, preexec_fn=take_pipes, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(from_write)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = None
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(domain + ".enable")

    session = None

    def receive(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self.data:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.answers], [], [], left)[0]:
                return None
            more = os.read(self.answers, 1 << 20)
            if not more:
                raise RuntimeError("the browser ended")
            self.data += more
        text, self.data = self.data.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive(60)
            if answer is None:
                raise RuntimeError(method + ": no answer in a minute")
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(method + ": " + answer["error"]["message"])
                return answer["result"]
            self.events.append(answer)

    def js(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                           awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(expression + ": " + json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def until(self, expression, seconds=20):
        end = time.monotonic() + seconds
        while not self.js(expression):
            if time.monotonic() > end:
                raise RuntimeError("waited in vain for: " + expression)
            time.sleep(0.03)

    def complaints(self):
        """What the browser had to say against the page since the last call."""
        found = []
        for e in self.events:
            p = e.get("params", {})
            if e.get("method") == "Runtime.exceptionThrown":
                d = p["exceptionDetails"]
                found.append(d.get("exception", {}).get("description") or d["text"])
            elif e.get("method") == "Runtime.consoleAPICalled" and p["type"] in ("error", "assert"):
                found.append(json.dumps(p["args"])[:300])
            elif e.get("method") == "Log.entryAdded" and p["entry"]["level"] == "error":
                found.append(p["entry"]["text"] + " " + p["entry"].get("url", ""))
        self.events = []
        return found

    def shot(self, path):
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        with open(path, "wb") as f:
            f.write(base64.b64decode(data))

    def close(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Test:
    def __init__(self, browser, url, shots):
        self.b, self.url, self.shots, self.failed = browser, url, shots, []

    def check(self, holds, words):
        if not holds:
            self.failed.append(words)
            print("FAILED:", words)

    def look(self, name):
        wide = self.b.js("document.documentElement.scrollWidth")
        self.check(wide <= self.width, f"{name}: {wide} px wide on a screen of {self.width}")
        for c in self.b.complaints():
            self.check(False, f"{name}: {c}")
        title = self.b.js("document.title")
        self.check("owned" not in title, f"{name}: text of a sample acted: title {title!r}")
        if self.shots:
            self.b.shot(os.path.join(self.shots, name + ".png"))

    def screen(self, width, height, scheme):
        name, self.width = f"{width}-{scheme}", width
        self.b.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                    deviceScaleFactor=1 if width > 500 else 2, mobile=width < 500)
        self.b.call("Emulation.setEmulatedMedia",
                    features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.b.call("Page.navigate", url=self.url)
        self.b.until("performance.getEntriesByName('drawn').length > 0 && "
                     "document.querySelectorAll('#tiles .tile').length === 6")
        self.b.until("document.querySelectorAll('#workers .worker').length > 0")
        paint = self.b.js("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? -1")
        drawn = self.b.js("performance.getEntriesByName('drawn')[0].startTime")
        print(f"{name}: first paint {paint:.0f} ms, first figures {drawn:.0f} ms")
        self.look(name + "-overview")
        for page in PAGES[1:]:
            self.b.js(f"document.querySelector('nav a[data-page={page}]').click()")
            self.b.until(f"!document.getElementById('{page}').hidden")
            if page == "timeline":
                self.b.until("document.querySelectorAll('#tracks .track').length > 0")
            if page == "samples":
                self.b.until("document.querySelectorAll('#rows .sample-row').length > 0")
            if page == "drafter":
                self.b.until("document.querySelectorAll('#versions tbody tr').length > 0")
            self.look(f"{name}-{page}")
        self.samples(name)
        self.timeline(name)
        self.keys(name)

    def samples(self, name):
        self.b.js("location.hash = '#/samples'")
        self.b.until("!document.getElementById('search').hidden")
        self.b.js("(() => { const f = document.getElementById('search'); f.text.value = '日'; "
                  "f.min_length.value = 500; f.requestSubmit(); })()")
        self.b.until("document.getElementById('found').textContent.includes(' of ')")
        self.b.until("document.querySelectorAll('#rows .sample-row').length > 0")
        self.b.js("document.querySelector('#rows .sample-row').click()")
        self.b.until("document.querySelectorAll('#sample .t').length > 100")
        self.b.until("document.querySelector('#sample table tbody tr') !== null")
        at = self.b.js("(() => { const t = [...document.querySelectorAll('#sample .t-learned')]"
                       ".find(t => t.textContent.trim().length > 1); t.scrollIntoView({block: 'center'}); "
                       "const r = t.getClientRects()[0]; return [r.left + r.width / 2, r.top + 6]; })()")
        self.b.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
        self.b.until("document.querySelector('#sample .token-info').textContent.startsWith('token ')")
        words = self.b.js("document.querySelector('#sample .token-info').textContent")
        self.check("learned" in words, f"{name}: a learned token says {words!r}")
        self.check(self.b.js("document.querySelectorAll('#sample script, #sample img').length") == 0,
                   f"{name}: markup of a sample became elements")
        self.check(self.b.js("!/[\\u202e\\u001b]/.test(document.getElementById('sample').textContent)"),
                   f"{name}: unseen characters of a sample reach the page")
        self.look(name + "-sample")

    def timeline(self, name):
        self.b.js("location.hash = '#/timeline'")
        self.b.until("document.querySelectorAll('#tracks canvas').length > 0")
        self.b.js("(() => { const s = document.getElementById('time-window'); s.value = '30'; "
                  "s.dispatchEvent(new Event('change')); document.getElementById('time-back').click(); })()")
        at = self.b.js("(() => { const r = document.querySelector('#tracks canvas')"
                       ".getBoundingClientRect(); return [r.left + r.width / 2, r.top + 6]; })()")
        self.b.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0], y=at[1])
        self.b.until("/from|nothing/.test(document.getElementById('time-info').textContent)")

    def keys(self, name):
        self.b.js("location.hash = '#/overview'")
        self.b.until("!document.getElementById('overview').hidden")
        self.b.js("document.activeElement?.blur()")
        seen = set()
        for _ in range(12):
            for kind in ("keyDown", "keyUp"):
                self.b.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab",
                            windowsVirtualKeyCode=9)
            seen.add(self.b.js("document.activeElement.id || document.activeElement.dataset.page || ''"))
        for wanted in ["theme", *PAGES]:
            self.check(wanted in seen, f"{name}: {wanted!r} is not reached by the Tab key")
        before = self.b.js("getComputedStyle(document.body).backgroundColor")
        self.b.js("document.getElementById('theme').click()")
        after = self.b.js("getComputedStyle(document.body).backgroundColor")
        self.check(before != after, f"{name}: the button does not switch the theme")
        bare = self.b.js("[...document.querySelectorAll('button, a, input, select, canvas')].filter(e => "
                         "e.offsetParent && !(e.textContent.trim() || e.getAttribute('aria-label') || "
                         "e.labels?.length)).map(e => e.id || e.outerHTML.slice(0, 60))")
        self.check(not bare, f"{name}: without a name: {bare}")
        self.b.js("localStorage.removeItem('paceline-theme')")
        for c in self.b.complaints():
            self.check(False, f"{name}: {c}")

    def watch(self, seconds):
        """Memory of the open page after collections, at the start and at the end."""
        self.b.call("Page.navigate", url=self.url)
        self.b.until("performance.getEntriesByName('drawn').length > 0")
        self.b.call("HeapProfiler.enable")
        sizes, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(5, seconds / 4))
            self.b.events = []
            self.b.call("HeapProfiler.collectGarbage")
            sizes.append(self.b.call("Runtime.getHeapUsage")["usedSize"] / 1e6)
        points = self.b.js("import('/app.js').then(m => `${m.run.steps.length} points of ${m.run.n} steps`)")
        print(f"watched {seconds} s: heap {sizes[0]:.1f} MB, then {sizes[-1]:.1f} MB, at most "
              f"{max(sizes):.1f} MB; {points}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("paceline")
    p.add_argument("fake_run")
    p.add_argument("--shots")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--watch", type=int, default=0)
    p.add_argument("--fast", type=int, default=1, help="steps a second while watched")
    o = p.parse_args()
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        print("SKIPPED: no chromium here (apt-get install chromium, or CHROMIUM=FILE)")
        return 77
    if o.shots:
        os.makedirs(o.shots, exist_ok=True)
    with tempfile.TemporaryDirectory() as home:
        run = os.path.join(home, "run")
        os.mkdir(run)
        fake = subprocess.Popen([o.fake_run, run, str(o.steps), str(90 + o.watch), str(o.fast)])
        while not os.path.exists(os.path.join(run, "snapshot")):
            time.sleep(0.05)
        server = subprocess.Popen([o.paceline, "monitor", run, "--web", "127.0.0.1:0"],
                                  stdout=subprocess.PIPE, text=True)
        url = server.stdout.readline().strip()
        b = Browser(program, os.path.join(home, "chromium"))
        t = Test(b, url, o.shots)
        try:
            for screen in SCREENS:
                t.screen(*screen)
            if o.watch:
                t.watch(o.watch)
        finally:
            b.close()
            for process in (server, fake):
                process.terminate()
                process.wait()
    print("ok" if not t.failed else f"{len(t.failed)} failed")
    return 1 if t.failed else 0


if __name__ == "__main__":
    sys.exit(main())
