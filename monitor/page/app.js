/* app.js - what is known of the run, kept bounded, and which page shows it.
 *
 * The history has at most CAP points: beyond, two neighbours become one.  A snapshot replaces the one
 * before.  Nothing else grows with time. */
import { $, el, get, isNumber, moment } from "./dom.js";
import { forget } from "./charts.js";
import * as overview from "./overview.js";
import * as timeline from "./timeline.js";
import * as samples from "./samples.js";
import * as drafter from "./drafter.js";

const CAP = 800, POINTS = 400;
const pages = { overview, timeline, samples, drafter };

export const run = {
  snapshot: null, skewMs: 0, seenMs: 0, gone: false,
  steps: [], columns: new Map(), last: -1, n: 0,
  column(name) { return this.columns.get(name) ?? []; },
  has(name) { return this.columns.has(name); },
  /* What the snapshot tells is of now. */
  lives() { return !this.gone && (this.snapshot?.life === "running" || this.snapshot?.life === "silent"); },
  seen() { return `not running, last seen ${moment(this.snapshot.updated_ms)}`; },
  /* Milliseconds since the run wrote its snapshot, by the clock of the machine that runs. */
  age() { return this.snapshot ? Date.now() + this.skewMs - this.snapshot.updated_ms : Infinity; },
};

let page = "overview";
let drawing = false;

/* At most one drawing a frame, and none that nobody sees. */
function show() {
  if (drawing || document.hidden) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    pages[page].show(run);
    head();
    performance.mark("drawn");
  });
}

function head() {
  const s = run.snapshot;
  const ended = s && (s.phase === "done" || s.phase === "stopped");
  $("phase").textContent = !s || run.gone ? "" : ended || run.lives() ? s.phase : `was in: ${s.phase}`;
  if (connected === false) return state("away", "reconnecting");
  if (run.gone) return state("away", "the run's directory is gone");
  if (!s) return state("still", run.n > 0 ? "from files" : "no figures yet");
  if (ended) return state(s.phase === "done" ? "done" : "still", s.phase === "done" ? "finished" : "stopped");
  if (!run.lives()) return state("away", run.seen());
  const age = run.age();
  state(age < 5000 ? "live" : "still", age < 5000 ? "live" : `silent for ${Math.round(age / 1000)} s`);
}

function state(kind, words) {
  $("dot").className = "dot " + kind;
  if ($("connection").textContent !== words) $("connection").textContent = words;
}

/* ---- history ---- */

function halve() {
  const n = run.steps.length;
  const pick = (ys, last) => {
    const out = [];
    for (let i = 0; i < n; i += 2) {
      const a = ys[i], b = i + 1 < n ? ys[i + 1] : null;
      out.push(!isNumber(b) ? a : last || !isNumber(a) ? b : (a + b) / 2);
    }
    return out;
  };
  for (const [name, ys] of run.columns) run.columns.set(name, pick(ys, name.includes("version")));
  run.steps = pick(run.steps, true);
}

function append(m) {
  const before = run.steps.length;
  run.steps.push(...m.steps);
  for (const [name, ys] of Object.entries(m.columns)) {
    if (!run.columns.has(name)) run.columns.set(name, new Array(before).fill(null));
    run.columns.get(name).push(...ys);
  }
  for (const ys of run.columns.values()) while (ys.length < run.steps.length) ys.push(null);
  run.n = m.n;
  run.last = m.last;
  while (run.steps.length > CAP) halve();
}

let asking = false, again = null;

/* Steps after the last known one; all anew when the run went back. */
async function history(news) {
  if (asking) { again = news; return; }
  asking = true;
  try {
    if (news && (news.step < run.last || news.n < run.n)) { run.steps = []; run.columns.clear(); run.last = -1; }
    if (!news || news.step > run.last)
      append(await get(`/api/metrics?from=${run.last + 1}&points=${POINTS}`));
    for (const p of Object.values(pages)) p.stale?.();
    show();
  } catch (e) {
    state("away", e.message);
  }
  setTimeout(() => {
    asking = false;
    if (again) { const a = again; again = null; history(a); }
  }, 1000);
}

/* ---- events ---- */

let connected = null;

function listen() {
  const source = new EventSource("/api/events");
  source.addEventListener("open", () => { connected = true; show(); });
  source.addEventListener("error", () => {
    connected = false;
    head();
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
  source.addEventListener("snapshot", (e) => { take(JSON.parse(e.data)); });
  source.addEventListener("gone", () => { run.gone = true; show(); });
  source.addEventListener("back", () => { run.gone = false; show(); });
  source.addEventListener("step", (e) => { history(JSON.parse(e.data)); });
  source.addEventListener("beat", (e) => { run.skewMs = JSON.parse(e.data).now_ms - Date.now(); show(); });
}

function take(snapshot) {
  run.snapshot = snapshot;
  run.gone = false;
  run.seenMs = Date.now();
  show();
}

/* ---- pages ---- */

function go() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  page = name in pages ? name : "overview";
  for (const section of document.querySelectorAll(".page")) section.hidden = section.id !== page;
  for (const a of document.querySelectorAll("nav a"))
    if (a.dataset.page === page) a.setAttribute("aria-current", "page"); else a.removeAttribute("aria-current");
  pages[page].enter?.(rest, run);
  show();
}

function dark() {
  const set = document.documentElement.dataset.theme;
  return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function recolour() { forget(); show(); }

$("theme").addEventListener("click", () => {
  const theme = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("paceline-theme", theme); } catch { /* lasts as long as the page */ }
  recolour();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
addEventListener("hashchange", () => { go(); $("main").focus({ preventScroll: true }); scrollTo(0, 0); });
addEventListener("visibilitychange", show);
let resized = 0;
addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(show, 150); });
setInterval(head, 1000);

async function start() {
  go();
  const now = get("/api/snapshot").then(take, () => {});
  get("/api/run").then((r) => {
    $("run-name").textContent = r.name;
    document.title = `${r.name} \u00b7 Paceline`;
    run.skewMs = r.now_ms - Date.now();
  }, (e) => {
    document.querySelector("main").prepend(el("p", "card", e.message));
  });
  await Promise.all([now, history(null)]);
  listen();
}
start();
