/* samples.js - search, one sample token by token, one prompt across steps.
 *
 * Prompts and responses are text of others: they go in as text, unseen characters by number. */
import { $, el, get, isNumber, num, plain, share, whole } from "./dom.js";
import { draw, forget } from "./charts.js";

const PAGE = 40, TOKENS = 4000, PIECE = 400, STEPS = 500;
let offset = 0, found = null, listed = "", asked = 0;
const form = $("search");

export function show() { /* drawn when it is asked for */ }

export function enter(rest) {
  const isOne = rest.length >= 2;
  $("sample").hidden = !isOne;
  $("sample-list").hidden = form.hidden = isOne;
  if (isOne) open(rest[0], rest[1]); else list();
}

/* ---- search ---- */

function wanted() {
  const q = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (String(value).trim() !== "") q.set(name, value);
  q.set("offset", offset);
  q.set("limit", PAGE);
  return q.toString();
}

async function list() {
  const q = wanted(), mine = ++asked;
  if (q !== listed) $("found").textContent = "searching";
  try {
    const answer = await get("/api/samples?" + q);
    if (mine !== asked) return;
    found = answer;
    listed = q;
    rows(answer);
    if (answer.info.n_pending > 0 && !$("samples").hidden) setTimeout(() => { if (mine === asked) list(); }, 300);
  } catch (e) {
    if (mine !== asked) return;
    found = null;
    $("rows").replaceChildren();
    $("found").textContent = e.message;
  }
  pager();
}

function facts(s) {
  const fact = (name, value) => el("span", "", name + " ", el("b", "", value));
  return el("div", "facts", fact("step", whole(s.step)), fact("reward", num(s.reward)), fact("tokens", whole(s.n_tokens)),
    fact("ended by", s.finish_reason), isNumber(s.acceptance_length) ? fact("a round", num(s.acceptance_length)) : null,
    fact("policy", whole(s.policy_version)), fact("uid", String(s.uid)));
}

function rows(answer) {
  const i = answer.info;
  $("found").textContent = i.n_rows === 0 && i.n_pending === 0 ? "The run has written no samples yet."
    : `${num(answer.n_match)} of ${num(i.n_rows)} samples, steps ${whole(i.first_step)} to ${whole(i.last_step)}` +
      (i.n_pending > 0 ? `, ${i.n_pending} files still to read` : "") +
      (i.n_bad_lines + i.n_bad_files > 0 ? `, ${i.n_bad_lines} records and ${i.n_bad_files} files unreadable` : "") +
      (i.n_forgotten > 0 ? `, ${i.n_forgotten} older steps left out` : "") +
      (answer.searched !== null && answer.searched !== undefined ? `; text searched back to step ${answer.searched}` : "");
  $("rows").replaceChildren(...answer.samples.map((s) => {
    const b = el("button", "sample-row", facts(s), el("div", "excerpt", plain((s.excerpt ?? "").slice(0, 600)) || "(empty)"));
    b.type = "button";
    b.addEventListener("click", () => { location.hash = `#/samples/${s.step}/${s.uid}`; });
    return b;
  }));
}

function pager() {
  $("page-back").disabled = offset === 0;
  $("page-on").disabled = !found || offset + PAGE >= found.n_match;
}

form.addEventListener("submit", (e) => { e.preventDefault(); offset = 0; list(); });
form.addEventListener("reset", () => { setTimeout(() => { offset = 0; list(); }); });
form.elements.order.addEventListener("change", () => { offset = 0; list(); });
$("page-back").addEventListener("click", () => { offset = Math.max(0, offset - PAGE); list(); scrollTo(0, 0); });
$("page-on").addEventListener("click", () => { offset += PAGE; list(); scrollTo(0, 0); });

/* ---- one sample ---- */

async function open(step, uid) {
  const box = $("sample"), mine = ++asked;
  const back = el("button", "button", "\u2039 All samples");
  back.type = "button";
  back.addEventListener("click", () => { location.hash = "#/samples"; });
  const place = el("div", "detail");
  forget("chart-prompt");
  box.replaceChildren(el("div", "row", back), place);
  try {
    const s = await get(`/api/sample?step=${encodeURIComponent(step)}&uid=${encodeURIComponent(uid)}`);
    if (mine !== asked) return;
    place.append(response(s), prompt(s));
    across(place, s, mine);
  } catch (e) {
    if (mine === asked) place.append(el("p", "card", e.message));
  }
}

function prompt(s) {
  const card = el("div", "card", el("h2", "", "Prompt"));
  const m = Array.isArray(s.messages) ? s.messages : [{ role: "text", content: s.messages }];
  for (const x of m) card.append(el("div", "message", el("b", "", plain(x?.role)), long(plain(x?.content ?? ""))));
  if (s.ground_truth) card.append(el("div", "message", el("b", "", "ground truth"), long(plain(s.ground_truth))));
  return card;
}

const long = (text) => (text.length > 20000 ? text.slice(0, 20000) + ` \u2026 (${text.length} characters)` : text);

function sourceOf(s, i) {
  const name = s.token_source?.[i];
  return name === "learned" || name === "suffix" ? name : "target";
}

function response(s) {
  const card = el("div", "card", el("h2", "", `Response, step ${s.step}, sample ${s.uid}`), facts(s));
  const n = s.tokens.length, counts = { learned: 0, suffix: 0, target: 0 };
  for (let i = 0; i < n; i++) counts[sourceOf(s, i)]++;
  const knows = s.token_source?.length === n && n > 0;
  if (knows) {
    const bar = el("div", "share"), key = el("div", "legend");
    for (const k of ["learned", "suffix", "target"]) {
      const part = el("span", "k-" + k);
      part.style.width = (100 * counts[k]) / n + "%";
      bar.append(part);
      key.append(el("span", "", el("i", "k-" + k), `${k} ${share(counts[k], n)}`));
    }
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", `proposed by: learned ${share(counts.learned, n)}, suffix ${share(counts.suffix, n)}, target ${share(counts.target, n)}`);
    card.append(bar, key);
  }
  const info = el("p", "token-info", n ? "Point at a token, or use the arrow keys: who proposed it, and its log-prob." : "No tokens.");
  info.setAttribute("role", "status");
  card.append(tokens(s, info), info);
  return card;
}

/* One span a token; the next thousands when they are asked for.  Without the tokens' texts (no
 * token_ends, no tokenizer at hand): the whole text, and tokens by number. */
function tokens(s, info) {
  const box = el("div", "tokens");
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Tokens of the response");
  const hasText = Array.isArray(s.pieces) && s.pieces.length === s.tokens.length;
  const out = el("div", "");
  if (!hasText) {
    out.append(el("div", "", el("div", "", long(plain(s.text))), el("p", "muted small",
      "Which token has which text is not known here (the model's tokenizer is not at hand). By number:")));
  }
  out.append(box);
  let shown = 0, at = -1;
  const more = el("button", "button", "");
  const spans = [];
  const add = () => {
    const to = Math.min(shown + TOKENS, s.tokens.length), part = document.createDocumentFragment();
    for (; shown < to; shown++) {
      let text = hasText ? plain(s.pieces[shown]) : s.tokens[shown] + " ";
      if (text.length > PIECE) text = text.slice(0, PIECE) + `\u2026 (${text.length} characters)`;
      const t = el("span", "t t-" + sourceOf(s, shown) + (text === "" ? " t-gap" : ""), text === "" ? "\u00b7" : text);
      t.dataset.i = shown;
      spans.push(t);
      part.append(t);
    }
    box.append(part);
    more.textContent = `Show more (${s.tokens.length - shown} tokens left)`;
    more.hidden = shown >= s.tokens.length;
  };
  const tell = (i) => {
    if (i < 0 || i >= spans.length) return;
    spans[at]?.classList.remove("at");
    at = i;
    spans[i].classList.add("at");
    const lp = s.logprobs?.[i], source = s.token_source?.[i];
    info.textContent = `token ${i + 1} of ${s.tokens.length}: ${hasText ? JSON.stringify(plain(s.pieces[i]).slice(0, 60)) + ", " : ""}id ${s.tokens[i]}` +
      `, ${source ? (source === "target" ? "drawn by the target itself" : "proposed by the " + source + " drafter") : "proposer not recorded"}` +
      (isNumber(lp) ? `, log-prob ${lp.toFixed(4)} (p ${num(Math.exp(lp))})` : "");
  };
  const over = (e) => { const t = e.target.closest?.(".t"); if (t) tell(Number(t.dataset.i)); };
  box.addEventListener("pointerover", over);
  box.addEventListener("click", over);
  box.addEventListener("keydown", (e) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[e.key];
    if (by === undefined) return;
    e.preventDefault();
    tell(Math.max(0, Math.min(spans.length - 1, at + by)));
    spans[at]?.scrollIntoView({ block: "nearest" });
  });
  more.type = "button";
  more.addEventListener("click", add);
  add();
  out.append(more);
  return out;
}

/* ---- one prompt across steps ---- */

const promptChart = { series: [{ label: "mean reward", color: "--s1" }, { label: "_low", color: "--s1", band: true }, { label: "_high", color: "--s1", band: true, fill: "-1" }] };

async function across(place, s, mine) {
  const p = await get(`/api/prompt?prompt=${s.prompt}`).catch((e) => ({ error: e.message, steps: [] }));
  if (mine !== asked) return;
  const card = el("div", "card", el("h2", "", `This prompt across ${p.steps.length} step${p.steps.length === 1 ? "" : "s"}`));
  place.append(card);
  if (p.error) { card.append(el("p", "muted", p.error)); return; }
  if (p.steps.length > 1) {
    const canvas = el("canvas");
    canvas.id = "chart-prompt";
    card.append(el("figure", "plot", canvas));
    card.lastElementChild.style.margin = "0";
    draw("chart-prompt", promptChart, p.steps.map((x) => x.step), [p.steps.map((x) => x.reward_mean), p.steps.map((x) => x.reward_min), p.steps.map((x) => x.reward_max)]);
  }
  const table = el("table", "", el("thead", "", el("tr", "", ...["Step", "Reward", "from", "to", "Tokens", "A round", "Samples"].map((t) => el("th", "", t)))));
  const body = el("tbody");
  for (const x of p.steps.slice(-STEPS).reverse()) {
    const links = el("td");
    for (const uid of x.uids.slice(0, 12)) {
      const a = el("a", "", String(uid));
      a.href = `#/samples/${x.step}/${uid}`;
      if (x.step === s.step && uid === s.uid) a.setAttribute("aria-current", "true");
      links.append(a, " ");
    }
    if (x.uids.length > 12) links.append(`and ${x.uids.length - 12} more`);
    body.append(el("tr", "", el("td", "", whole(x.step)), ...[x.reward_mean, x.reward_min, x.reward_max, x.length_mean, x.acceptance_length].map((v) => el("td", "", num(v))), links));
  }
  table.append(body);
  const scroll = el("div", "scroll", table);
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "The prompt at each step");
  card.append(scroll);
}
