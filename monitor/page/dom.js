/* dom.js - elements, numbers in words, requests.  Text goes in as text, never as markup. */
export const $ = (id) => document.getElementById(id);

/* el("p", "class names", child, ...): strings become text nodes. */
export function el(tag, classes, ...children) {
  const e = document.createElement(tag);
  if (classes) e.className = classes;
  e.append(...children.filter((c) => c !== null && c !== undefined));
  return e;
}

/* What could reorder or hide text, or is no text, is shown by its number. */
const unseen = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
export const plain = (s) => String(s ?? "").replace(unseen, (c) =>
  "\u2329" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "\u232a");

export const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

const short = (text) => text.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");

export function num(x, digits = 3) {
  if (!isNumber(x)) return "\u2013";
  const a = Math.abs(x);
  if (a >= 1e6) return short((x / 1e6).toFixed(2)) + " M";
  if (a >= 1e4) return short((x / 1e3).toFixed(1)) + " k";
  if (Number.isInteger(x)) return String(x);
  if (a >= 1000) return x.toFixed(0);
  if (a !== 0 && a < 0.001) return x.toExponential(1);
  return short(x.toPrecision(digits));
}

/* A step, a version, an id: every digit. */
export const whole = (x) => (isNumber(x) ? String(x) : "\u2013");

export function seconds(s) {
  if (!isNumber(s)) return "\u2013";
  if (s < 0.001) return (s * 1e6).toFixed(0) + " \u00b5s";
  if (s < 1) return (s * 1e3).toFixed(0) + " ms";
  if (s < 100) return num(s) + " s";
  if (s < 6000) return Math.round(s / 60) + " min";
  if (s < 172800) return (s / 3600).toFixed(1) + " h";
  return (s / 86400).toFixed(1) + " days";
}

export const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour12: false });
/* With its day, when that is another one. */
export const moment = (ms) => (new Date(ms).toDateString() === new Date().toDateString() ? ""
  : new Date(ms).toLocaleDateString() + " ") + clock(ms);
export const share = (a, b) => (b > 0 ? Math.round((100 * a) / b) + " %" : "\u2013");

export async function get(path) {
  const answer = await fetch(path, { cache: "no-store", credentials: "same-origin" });
  let body = null;
  try { body = await answer.json(); } catch { /* not JSON: the status tells */ }
  if (!answer.ok) throw new Error(body?.error ?? `${path}: HTTP ${answer.status}`);
  return body;
}

/* Keyed tiles: [label, value, small text]. */
export function tiles(list, items) {
  while (list.children.length > items.length) list.lastElementChild.remove();
  items.forEach(([label, value, sub], i) => {
    let t = list.children[i];
    if (!t) {
      t = el("div", "tile", el("dt"), el("dd"));
      list.append(t);
    }
    t.children[0].textContent = label;
    t.children[1].replaceChildren(value, el("span", "sub", sub ?? "\u200b"));
  });
}

export const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/* A canvas with as many pixels as the screen has for it; null while it is not shown. */
export function fit(canvas) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const w = Math.round(canvas.clientWidth * ratio), h = Math.round(canvas.clientHeight * ratio);
  if (w === 0 || h === 0) return null;
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const c = canvas.getContext("2d");
  c.clearRect(0, 0, w, h);
  return { c, w, h, ratio };
}

/* States of a worker, and phases of the run. */
const kinds = { busy: "busy", training: "training", idle: "idle", lost: "lost", rollout: "rollout",
  eval: "rollout", compare: "rollout", update: "update" };
export const kindOf = (state) => kinds[String(state).toLowerCase()] ?? "other";
