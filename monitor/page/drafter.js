/* drafter.js - the learned drafter: acceptance by depth and version, before and after updates. */
import { $, el, get, isNumber, num, seconds, share, tiles, whole } from "./dom.js";
import { draw, forget } from "./charts.js";
import { idleChart, idleColumns, versionMarks } from "./overview.js";

const DEPTHS = 8, NEWEST = 5;
let totals = null, shown = null;
let isStale = true, askedMs = 0, depthCount = 0, alphaCount = 0;
export function stale() { isStale = true; }
export function enter() { isStale = true; }

const last = (ys) => ys.findLast(isNumber);
const colors = ["--s1", "--s2", "--s3", "--s4", "--s5", "--s6", "--s7", "--s8"];

export function show(run) {
  if (!isStale) return;
  isStale = false;
  const has = run.has("drafter/version");
  $("no-drafter").hidden = has;
  for (const part of [$("drafter-tiles"), document.querySelector("#drafter .grid"), $("versions").closest(".card")]) part.hidden = !has;
  if (!has) return;
  shown = run;
  figures(run);
  curves(run);
  versions();
}

function figures(run) {
  const c = (n) => last(run.column(n));
  const drafted = c("rollout/spec_num_draft_learned"), accepted = c("rollout/spec_num_accepted_learned");
  tiles($("drafter-tiles"), [
    ["Version", whole(c("drafter/version")), `${num(c("drafter/swaps"))} swaps in the last step`],
    ["Tokens a round", num(c("drafter/accept_length")), "rounds with the learned drafter"],
    ["Accepted", share(accepted, drafted), `${num(accepted)} of ${num(drafted)} drafted`],
    ["Loss", num(c("drafter/loss")), `${num(c("drafter/trained_tokens"))} tokens trained`],
    ["Idle used", totals ? share(totals.drafter_s, totals.idle_s) : "\u2013", totals ? `${seconds(totals.drafter_s)} of ${seconds(totals.idle_s)} idle` : ""],
    ["Published", num(totals?.published), `versions; ${num(totals?.rollbacks)} taken back`],
  ]);
}

function curves(run) {
  const x = run.steps, c = (n) => run.column(n);
  const marks = versionMarks(run);
  const depths = Array.from({ length: DEPTHS }, (_, i) => i + 1).filter((d) => run.has(`drafter/alpha_pos_${d}`));
  if (depths.length !== alphaCount) { forget("chart-alpha"); alphaCount = depths.length; }
  draw("chart-alpha", { marked: true, series: depths.map((d, i) => ({ label: `${d}`, color: colors[i] })) }, x,
    depths.map((d) => c(`drafter/alpha_pos_${d}`)), marks);
  $("alpha-note").textContent = depths.length ? "share accepted of those reached; 1 = the first drafted token" : "not trained yet";
  draw("chart-drafted", { marked: true, unit: "tokens", series: [{ label: "with the learned drafter", color: "--s4" }, { label: "all rounds", color: "--s2" }] }, x,
    [c("drafter/accept_length"), c("rollout/spec_accept_length")], marks);
  draw("chart-drafter-loss", { marked: true, series: [{ label: "loss", color: "--s1" }] }, x, [c("drafter/loss")], marks);
  $("drafter-loss-note").textContent = isNumber(last(c("drafter/loss"))) ? `last ${num(last(c("drafter/loss")))}` : "";
  draw("chart-split", idleChart, x, idleColumns(run));
  draw("chart-training", { bars: true, series: [{ label: "optimizer steps", color: "--training" }] }, x, [c("drafter/optimizer_steps")]);
}

async function versions() {
  if (Date.now() - askedMs < 2000) { setTimeout(versions, 2100); return; }
  askedMs = Date.now();
  const answer = await get("/api/versions").catch(() => ({ versions: [] })), list = answer.versions;
  totals = answer.totals;
  if (shown) figures(shown);
  depth(list.slice(-NEWEST));
  const head = ["Version", "Steps", "Before", "After", "Change", "Learned rounds", "Loss", "1", "2", "3", "4"];
  const body = el("tbody");
  for (const v of [...list].reverse()) {
    const change = isNumber(v.before) && isNumber(v.after) ? v.after - v.before : null;
    const cell = el("td", change > 0 ? "better" : change < 0 ? "worse" : "", change === null ? "\u2013" : (change > 0 ? "+" : "") + change.toFixed(2));
    body.append(el("tr", "", el("td", "", "d" + v.version), el("td", "", v.first_step === v.last_step ? `${v.first_step}` : `${v.first_step}\u2013${v.last_step}`),
      el("td", "", num(v.before)), el("td", "", num(v.after)), cell, el("td", "", num(v.drafted_length)), el("td", "", num(v.loss)),
      ...[0, 1, 2, 3].map((i) => el("td", "", num(v.alpha[i], 2)))));
  }
  $("versions").replaceChildren(el("caption", "muted small", "Acceptance length, mean of up to five steps each side; at the right acceptance by depth"),
    el("thead", "", el("tr", "", ...head.map((h) => el("th", "", h)))), body);
}

function depth(list) {
  if (list.length !== depthCount) { forget("chart-depth"); depthCount = list.length; }
  else forget("chart-depth"); /* labels are versions */
  const n = Math.max(1, ...list.map((v) => v.alpha.findLastIndex(isNumber) + 1));
  const xs = Array.from({ length: n }, (_, i) => i + 1);
  draw("chart-depth", { xName: "depth", zero: true, suggestedMax: 1, series: list.map((v, i) => ({ label: "d" + v.version, color: colors[(list.length - 1 - i) % colors.length] })) },
    xs, list.map((v) => v.alpha.slice(0, n)));
}
