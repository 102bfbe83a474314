/* timeline.js - one row a worker: what it did, and where its seconds went.  At most KEEP events. */
import { $, clock, css, el, fit, get, kindOf, seconds, share } from "./dom.js";
import { draw } from "./charts.js";
import { idleChart, idleColumns, legend } from "./overview.js";

const KEEP = 8000, ROWS = 64;
const KINDS = ["busy", "training", "idle", "rollout", "update", "other", "lost"];
let events = [];      /* [track, name, begin_us, us] in order of their ends */
let tracks = [];      /* names, in order */
let next = -1, endUs = 0;
let windowS = 120, atUs = null; /* end of the window; null: follows */
let loading = false, askedMs = 0, missing = "", damaged = false;
let isStale = true, pointed = false;
export function stale() { isStale = true; }

export function enter() {
  isStale = true;
  askedMs = 0;
}

async function load() {
  if (loading || Date.now() - askedMs < 1000) return;
  loading = true;
  askedMs = Date.now();
  try {
    const t = await get(`/api/timeline?from=${next}`);
    if (t.next < next) events = [];
    if (next < 0) damaged = t.damaged === true;
    next = t.next;
    events = events.concat(t.events).slice(-KEEP);
    tracks = [...new Set(events.map((e) => e[0]))].sort((a, b) => a.localeCompare(b, "en", { numeric: true })).slice(0, ROWS);
    endUs = events.reduce((m, e) => Math.max(m, e[2] + e[3]), 0);
    missing = "";
  } catch (e) {
    missing = e.message;
  }
  loading = false;
  paint();
}

export function show(run) {
  legend($("time-legend"), KINDS);
  load();
  paint();
  if (!isStale) return;
  isStale = false;
  draw("chart-idle-steps", idleChart, run.steps, idleColumns(run));
}

function span() {
  const first = events.length ? events[0][2] : 0;
  const end = atUs ?? endUs;
  return windowS > 0 ? [Math.max(end - windowS * 1e6, Math.min(first, end - 1e6)), end] : [first, endUs];
}

function newTrack(i) {
  const c = el("canvas");
  c.setAttribute("role", "img");
  c.tabIndex = 0;
  const over = (e) => tell(i, (e.clientX - c.getBoundingClientRect().left) / c.clientWidth);
  c.addEventListener("pointermove", over);
  c.addEventListener("pointerdown", over);
  c.addEventListener("focus", () => { pointed = true; $("time-info").textContent = c.getAttribute("aria-label"); });
  return el("div", "track", el("span", "name"), c);
}

/* What was going on on a track at a place of the window. */
function tell(i, at) {
  const [from, to] = span();
  const us = from + at * (to - from);
  const e = events.findLast((x) => x[0] === tracks[i] && x[2] <= us && us < x[2] + x[3]);
  pointed = true;
  $("time-info").textContent = e
    ? `${e[0]}: ${e[1].toLowerCase()}, ${seconds(e[3] / 1e6)} from ${clock(e[2] / 1000)}`
    : `${tracks[i]}: nothing recorded at ${clock(us / 1000)}`;
}

function paint() {
  const box = $("tracks"), [from, to] = span();
  const sums = new Map(tracks.map((t) => [t, Object.fromEntries(KINDS.map((k) => [k, 0]))]));
  while (box.children.length > tracks.length) box.lastElementChild.remove();
  tracks.forEach((t, i) => {
    if (!box.children[i]) box.append(newTrack(i));
    const [name, canvas] = box.children[i].children;
    name.textContent = name.title = t;
    const f = fit(canvas), sum = sums.get(t);
    for (const [track, what, begin, us] of events) {
      if (track !== t || begin + us < from || begin > to) continue;
      const a = Math.max(begin, from), b = Math.min(begin + us, to);
      const kind = kindOf(what);
      sum[kind] += (b - a) / 1e6;
      if (!f) continue;
      f.c.fillStyle = css("--" + kind);
      const left = Math.round(((a - from) / (to - from)) * f.w), right = Math.round(((b - from) / (to - from)) * f.w);
      f.c.fillRect(left, 0, Math.max(1, right - left), f.h);
    }
    const all = Object.values(sum).reduce((x, y) => x + y, 0);
    const parts = KINDS.filter((k) => sum[k] > 0).map((k) => `${k} ${share(sum[k], all)}`);
    canvas.setAttribute("aria-label", `${t}: ${parts.join(", ") || "nothing recorded"} in the window`);
  });
  axis(from, to);
  shares(sums);
  const info = $("time-info");
  if (!events.length) info.textContent = missing || (damaged ? "trace.json is damaged: there is no event in it." : askedMs && !loading ? "The run has written no timeline yet." : "");
  else if (!pointed) info.textContent = "Point at a row, or move to it with the Tab key.";
  $("time-forward").disabled = atUs === null;
  $("time-now").disabled = atUs === null;
}

function axis(from, to) {
  const box = $("time-axis"), n = innerWidth < 640 ? 3 : 6;
  if (!events.length) return box.replaceChildren();
  box.replaceChildren(...Array.from({ length: n }, (_, i) => el("span", "", clock((from + ((to - from) * i) / (n - 1)) / 1000))));
}

const sharesChart = { bars: true, stacked: true, unit: "s", gap: 0.7, xName: "", horizontal: true, series: KINDS.map((k) => ({ label: k, color: "--" + k })) };

function shares(sums) {
  const names = [...sums.keys()];
  $("plot-shares").style.height = Math.max(160, 90 + 26 * names.length) + "px";
  draw("chart-shares", sharesChart, names, KINDS.map((k) => names.map((n) => sums.get(n)[k])));
}

function move(part) {
  const [, to] = span();
  const first = events.length ? events[0][2] : 0;
  if (windowS === 0 || !events.length) return;
  const at = Math.max(to + part * windowS * 1e6, Math.min(first + windowS * 1e6, endUs));
  atUs = at >= endUs ? null : at;
  paint();
}

$("time-back").addEventListener("click", () => move(-0.5));
$("time-forward").addEventListener("click", () => move(0.5));
$("time-now").addEventListener("click", () => { atUs = null; paint(); });
$("time-window").addEventListener("change", (e) => { windowS = Number(e.target.value); atUs = null; paint(); });
