/* overview.js - where the run stands: step, phase, workers, curves. */
import { $, clock, css, el, fit, isNumber, kindOf, num, seconds, share, tiles, whole } from "./dom.js";
import { draw, smooth } from "./charts.js";

let isStale = true;
export function stale() { isStale = true; }
export function enter() { isStale = true; }

export function show(run) {
  now(run);
  figures(run);
  workers(run);
  lengths(run);
  if (!isStale) return;
  isStale = false;
  curves(run);
}

/* It did not come to its end, and its process is not there. */
const isDead = (run) => run.gone || run.snapshot?.life === "not running";
const isOver = (run) => run.snapshot?.phase === "done" || run.snapshot?.phase === "stopped";

const last = (ys) => ys.findLast(isNumber);

function now(run) {
  const s = run.snapshot;
  const step = s ? s.step : Math.max(run.last, 0), total = s ? s.total_steps : 0;
  $("step").textContent = total > 0 ? `Step ${step} of ${total}` : `Step ${step}`;
  $("eta").textContent = s && run.lives() && isNumber(s.eta_s) && s.eta_s > 0 ? `about ${seconds(s.eta_s)} left` : "";
  const done = total > 0 ? Math.min(100, (100 * step) / total) : 0;
  $("run-progress").firstElementChild.style.width = done + "%";
  $("run-progress").setAttribute("aria-valuenow", done.toFixed(0));
  $("awaited").textContent = run.gone ? "The run's directory is gone: what follows is what was read before."
    : isDead(run) ? `The run is ${run.seen()}, in: ${s.phase}.`
    : s ? s.awaited || `${s.phase} since ${clock(s.phase_ms)}`
    : "The run wrote no snapshot: what follows is from its files.";
  const n = s ? s.n_samples : 0;
  const bar = $("batch-progress");
  bar.hidden = $("batch").hidden = !(n > 0);
  bar.classList.toggle("past", isDead(run));
  if (!(n > 0)) return;
  bar.children[0].style.width = (100 * s.n_done) / n + "%";
  bar.children[1].style.width = (100 * Math.min(s.n_running, n - s.n_done)) / n + "%";
  const words = `${s.n_done} of ${n} samples done, ${s.n_running} running, ${s.n_queued} queued, ${num(s.n_tokens)} tokens`;
  bar.setAttribute("aria-label", "Batch: " + words);
  $("batch").textContent = words + (s.n_lost ? `, ${s.n_lost} ${s.n_lost === 1 ? "worker" : "workers"} lost so far` : "") + (isDead(run) ? ", when last seen" : "");
}

function figures(run) {
  const s = run.snapshot;
  const rewards = run.column("critic/rewards/mean");
  const reward = last(rewards), first = rewards.find(isNumber);
  const up = isNumber(reward) && isNumber(first) ? `${reward >= first ? "+" : ""}${num(reward - first)} since the start` : "";
  const p = percentiles(run), isNow = run.lives();
  tiles($("tiles"), [
    ["Reward", num(reward), up],
    ["Tokens a second", num(isNow && s.rate > 0 ? s.rate : last(run.column("perf/rollout_throughput"))), isNow && s.rate > 0 ? "now, all workers" : "last step's rollouts"],
    ["Acceptance length", num(last(run.column("rollout/spec_accept_length"))), "tokens a round; 1 = no draft"],
    ["Response length", num(last(run.column("response_length/mean"))), p ? `p50 ${num(p.p50)}, p99 ${num(p.p99)}${isNow ? " now" : ""}` : `longest ${num(last(run.column("response_length/max")))}`],
    ["Policy version", s && s.policy_version !== null ? whole(s.policy_version) : run.last < 0 ? "\u2013" : whole(run.last), s && s.drafter_version ? `drafter version ${s.drafter_version}` : "no learned drafter"],
    ["Idle seconds", num(last(run.column("bubble/idle_s")) ?? idleOfWorkers(s)), idleWords(run)],
  ]);
}

/* Of all workers since they joined; undefined: none is known. */
function idleOfWorkers(s) {
  return s?.workers.length ? s.workers.reduce((sum, w) => sum + w.idle_s, 0) : undefined;
}

function idleWords(run) {
  if (!run.columns.has("bubble/idle_s") && run.snapshot?.workers.length) {
    const all = run.snapshot.workers.reduce((sum, w) => sum + w.busy_s + w.training_s + w.idle_s, 0);
    return `${share(idleOfWorkers(run.snapshot), all)} of workers' time`;
  }
  const idle = last(run.column("bubble/idle_s")), trained = last(run.column("bubble/drafter_s"));
  return idle > 0 && isNumber(trained) ? `${share(trained, idle)} trained the drafter` : "of the last step";
}

/* ---- workers ---- */

const states = { J: "joining", B: "busy", I: "idle", T: "training", S: "stopping", D: "draining", L: "lost" };

export function legend(box, names) {
  if (box.children.length) return;
  box.append(...names.map((n) => el("span", "", el("i", "k-" + kindOf(n)), n)));
}

function strip(canvas, text) {
  const f = fit(canvas);
  if (!f) return;
  const w = f.w / text.length;
  for (let i = 0; i < text.length; i++) {
    let j = i;
    while (j < text.length && text[j] === text[i]) j++;
    if (states[text[i]]) {
      f.c.fillStyle = css("--" + kindOf(states[text[i]]));
      f.c.fillRect(i * w, 0, (j - i) * w + 0.5, f.h);
    }
    i = j - 1;
  }
  const n = (c) => text.split(c).length - 1;
  canvas.setAttribute("aria-label", `last ${text.length} seconds: busy ${n("B")} s, training ${n("T")} s, idle ${n("I")} s`);
}

function newWorker() {
  const c = el("canvas");
  c.setAttribute("role", "img");
  return el("div", "worker", el("span", "name"), el("span", "state", el("i", "key"), el("span")), c, el("span", "figures"));
}

function workers(run) {
  const s = run.snapshot, isPast = isDead(run) || isOver(run);
  const box = $("workers"), list = s?.workers ?? [];
  box.classList.toggle("past", isPast);
  legend($("worker-legend"), ["busy", "training", "idle", "other", "lost"]);
  $("workers-note").textContent = s ? (s.n_workers > list.length ? `the first ${list.length} of ${s.n_workers}` : `${list.length}, ${isPast ? "4 minutes until last seen" : "the last 4 minutes"}`) : "known while the run lives";
  while (box.children.length > list.length) box.lastElementChild.remove();
  list.forEach((w, i) => {
    if (!box.children[i]) box.append(newWorker());
    const [name, state, canvas, text] = box.children[i].children;
    name.textContent = name.title = w.name;
    state.firstElementChild.className = "key k-" + kindOf(w.state);
    state.lastElementChild.textContent = (isPast && w.state !== "LOST" && w.state !== "DRAINING" ? "was " : "") + w.state.toLowerCase();
    strip(canvas, w.strip);
    const known = w.busy_s + w.training_s + w.idle_s;
    text.textContent = (isPast ? "" : `${w.n_running} running, ${num(w.rate)} tok/s, `) + `busy ${share(w.busy_s, known)}` +
      (w.training_s > 0 ? `, training ${share(w.training_s, known)}` : "");
    text.title = text.textContent + (w.policy_version === null ? "" : `, policy version ${w.policy_version}`) +
      (w.drafter_version ? `, drafter version ${w.drafter_version}` : "") + `, ${w.n_threads} threads, process ${w.pid}`;
    if (w.policy_version !== null && w.policy_version !== s.policy_version) text.textContent += `, policy ${w.policy_version}`;
    if (w.drafter_version && w.drafter_version !== s.drafter_version) text.textContent += `, drafter ${w.drafter_version}`;
  });
}

/* ---- lengths of the batch ---- */

/* Buckets are a quarter of an octave wide: these are where the bucket begins.  What the snapshot of a
 * run that is over holds is of the closing comparison: its last step tells. */
function percentiles(run) {
  const s = run.snapshot;
  if (!s) return null;
  if (isOver(run)) {
    const c = (n) => last(run.column("response_length/" + n));
    return isNumber(c("p50")) ? { p50: c("p50"), p90: c("p90"), p95: c("p95"), p99: c("p99"), max: c("max") } : null;
  }
  const all = s.lengths.map((n, i) => n + s.running_lengths[i]);
  const total = all.reduce((a, b) => a + b, 0);
  if (total === 0) return null;
  const at = (q) => {
    let left = q * total, i = 0;
    while (i < all.length - 1 && left > all[i]) left -= all[i++];
    return s.length_from[i];
  };
  return { p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), max: at(1) };
}

const lengthChart = { bars: true, stacked: true, gap: 0.94, radius: 2, xName: "tokens from",
  series: [{ label: "finished", color: "--s2" }, { label: "still running", color: "--s1" }] };

function lengths(run) {
  const s = run.snapshot, p = percentiles(run), over = isOver(run);
  $("lengths-note").textContent = p ? `p50 ${num(p.p50)} \u00b7 p90 ${num(p.p90)} \u00b7 ${isNumber(p.p95) ? `p95 ${num(p.p95)} \u00b7 ` : ""}p99 ${num(p.p99)} \u00b7 longest ${num(p.max)}${over ? " (last step)" : "+"}` : over ? "known while the run lives" : "none yet";
  if (!s || over) return draw("chart-lengths", lengthChart, [], [[], []]);
  const used = s.lengths.map((n, i) => n + s.running_lengths[i] > 0);
  const from = Math.max(0, used.indexOf(true) - 1), to = Math.min(used.length, used.lastIndexOf(true) + 2);
  const xs = p ? s.length_from.slice(from, to).map((n) => num(n)) : [];
  draw("chart-lengths", lengthChart, xs, p ? [s.lengths.slice(from, to), s.running_lengths.slice(from, to)] : [[], []]);
}

/* ---- curves ---- */

/* Where the drafter's version changed. */
export function versionMarks(run) {
  const ys = run.column("drafter/version"), out = [];
  let before = null;
  ys.forEach((v, i) => {
    if (isNumber(v) && before !== null && v !== before) out.push({ x: run.steps[i], label: "d" + v });
    if (isNumber(v)) before = v;
  });
  return out;
}

const charts = {
  reward: { series: [{ label: "mean", color: "--s1", faint: true }, { label: "smoothed", color: "--s1", dots: 0 },
    { label: "_low", color: "--s1", band: true }, { label: "_high", color: "--s1", band: true, fill: "-1" }] },
  accept: { marked: true, unit: "tokens", series: [{ label: "acceptance length", color: "--s2" }, { label: "rounds with the learned drafter", color: "--s4" }] },
  length: { unit: "tokens", zero: true, series: [{ label: "mean", color: "--s1" }, { label: "longest", color: "--s3" }, { label: "shortest", color: "--s7" }] },
  rate: { zero: true, unit: "tok/s", series: [{ label: "rollouts", color: "--s1" }, { label: "whole step", color: "--s2" }, { label: "tail", color: "--s3" }] },
  time: { bars: true, stacked: true, unit: "s", series: [{ label: "rollouts", color: "--s1" }, { label: "update", color: "--s2" }, { label: "rest", color: "--s7" }] },
  loss: { series: [{ label: "policy loss", color: "--s1" }, { label: "KL", color: "--s4" }, { label: "gradient norm (right)", color: "--s3", axis: "right" }] },
};
export const idleChart = { bars: true, stacked: true, unit: "s", series: [
  { label: "trained the drafter", color: "--training" }, { label: "gate", color: "--s6" }, { label: "packing", color: "--s4" },
  { label: "waited in a session", color: "--s7" }, { label: "unused", color: "--idle" }] };

/* Idle seconds a step, by what was done in them. */
export function idleColumns(run) {
  const c = (n) => run.column("bubble/" + n);
  const parts = ["drafter_s", "gate_s", "pack_s", "wait_s"].map(c);
  const idle = c("idle_s");
  const rest = idle.map((x, i) => (isNumber(x) ? Math.max(0, x - parts.reduce((a, p) => a + (p[i] ?? 0), 0)) : null));
  return [...parts, rest];
}

/* Which versions rolled a step out. */
export const versionsOf = (run) => (step) => {
  const drafter = run.column("drafter/version")[run.steps.indexOf(step)];
  return [`policy version ${step - 1}`, ...(isNumber(drafter) ? [`drafter version ${drafter}`] : [])];
};

function curves(run) {
  charts.accept.after ??= versionsOf(run);
  const x = run.steps, c = (n) => run.column(n);
  const reward = c("critic/rewards/mean");
  const merged = run.n > x.length ? `${run.n} steps, about ${Math.round(run.n / x.length)} a point` : `${run.n} steps`;
  draw("chart-reward", charts.reward, x, [reward, smooth(reward, Math.max(2, x.length / 80)), c("critic/rewards/min"), c("critic/rewards/max")]);
  $("reward-note").textContent = merged;
  draw("chart-accept", charts.accept, x, [c("rollout/spec_accept_length"), c("drafter/accept_length")], versionMarks(run));
  $("accept-note").textContent = run.has("drafter/version") ? `policy version: the step before, dashed: drafter version (d${whole(last(c("drafter/version")))})` : "policy version: the step before";
  draw("chart-length", charts.length, x, [c("response_length/mean"), c("response_length/max"), c("response_length/min")]);
  $("length-note").textContent = isNumber(last(c("response_length/clip_ratio"))) ? `${share(last(c("response_length/clip_ratio")), 1)} cut at the limit` : "";
  draw("chart-rate", charts.rate, x, [c("perf/rollout_throughput"), c("perf/throughput"), c("rollout/tail_throughput")]);
  $("rate-note").textContent = `${num(last(c("perf/rollout_throughput")))} in the last step`;
  time(run);
  draw("chart-idle", idleChart, x, idleColumns(run));
  $("idle-note").textContent = run.has("bubble/idle_s") ? idleWords(run) : "by step recorded only with a drafter that trains";
  draw("chart-loss", charts.loss, x, [c("actor/pg_loss"), c("actor/ppo_kl"), c("actor/grad_norm")]);
}

function time(run) {
  const gen = run.column("timing_s/gen"), update = run.column("timing_s/update_actor"), step = run.column("timing_s/step");
  const rest = step.map((s, i) => (isNumber(s) ? Math.max(0, s - (gen[i] ?? 0) - (update[i] ?? 0)) : null));
  draw("chart-time", charts.time, run.steps, [gen, update, rest]);
  const all = last(step);
  $("time-note").textContent = isNumber(all) ? `last: ${seconds(all)}, ${share(last(gen), all)} rollouts` : "";
}
