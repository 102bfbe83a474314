/* charts.js - our charts on Chart.js: bounded points, colours of the theme, versions as marks. */
import { $, css, isNumber, num, whole } from "./dom.js";

const Chart = window.Chart;
const charts = new Map();

/* Vertical lines where a version changed; labels as far as they have room. */
const marks = {
  id: "marks",
  afterDatasetsDraw(chart) {
    const list = chart.$marks;
    if (!list?.length || !chart.scales.x) return;
    const { ctx, chartArea: a, scales: { x } } = chart;
    let free = -Infinity;
    ctx.save();
    ctx.strokeStyle = css("--muted");
    ctx.fillStyle = css("--muted");
    ctx.font = "10px system-ui, sans-serif";
    ctx.setLineDash([3, 3]);
    let drawn = -Infinity;
    for (const m of list) {
      const at = x.getPixelForValue(m.x);
      if (at < a.left || at > a.right || at < drawn + 12) continue;
      drawn = at;
      ctx.globalAlpha = 0.45;
      ctx.beginPath();
      ctx.moveTo(at, a.top);
      ctx.lineTo(at, a.bottom);
      ctx.stroke();
      const w = ctx.measureText(m.label).width;
      if (at - w / 2 > free + 10 && at + w / 2 < a.right + 8) {
        ctx.globalAlpha = 1;
        ctx.fillText(m.label, at - w / 2, a.top - 3);
        free = at + w / 2;
      }
    }
    ctx.restore();
  },
};

const hasData = (d) => d.data.some((p) => (isNumber(p) ? p !== 0 : isNumber(p?.y)));

/* A chart without figures says so. */
const empty = {
  id: "empty",
  afterDraw(chart) {
    if (chart.data.datasets.some(hasData)) return;
    const { ctx, chartArea: a } = chart;
    ctx.save();
    ctx.fillStyle = css("--muted");
    ctx.font = "13px system-ui, sans-serif";
    ctx.textAlign = "center";
    ctx.fillText("nothing recorded", (a.left + a.right) / 2, (a.top + a.bottom) / 2);
    ctx.restore();
  },
};

function options(o) {
  const grid = { color: css("--grid"), drawBorder: false, tickLength: 4 };
  const ticks = { color: css("--muted"), font: { size: 11 }, maxRotation: 0, autoSkipPadding: 14 };
  return {
    animation: false, responsive: true, maintainAspectRatio: false, normalized: true, parsing: !!o.bars,
    layout: { padding: { top: o.marked ? 10 : 2 } },
    indexAxis: o.horizontal ? "y" : "x",
    interaction: { mode: "index", intersect: false, axis: o.horizontal ? "y" : "x" },
    elements: { point: { radius: 0, hoverRadius: 4, hitRadius: 8 }, line: { borderWidth: 2, tension: 0 } },
    plugins: {
      legend: { display: o.series.length > 1, position: "bottom", align: "start",
        labels: { color: css("--muted"), boxWidth: 10, boxHeight: 10, padding: 10, font: { size: 11 },
          filter: (item, data) => !item.text.startsWith("_") && hasData(data.datasets[item.datasetIndex]) } },
      tooltip: { filter: (item) => !item.dataset.label.startsWith("_"),
        callbacks: {
          title: (items) => (items.length ? `${o.xName ?? "step"} ${items[0].label || items[0].parsed.x}` : ""),
          label: (item) => `${item.dataset.label}: ${num(o.horizontal ? item.parsed.x : item.parsed.y)}${o.unit ? " " + o.unit : ""}`,
          afterBody: (items) => (items.length && o.after ? o.after(items[0].parsed.x) : []) } },
    },
    scales: o.horizontal ? {
      x: { stacked: true, beginAtZero: true, grid, ticks: { ...ticks, maxTicksLimit: 6, callback: (v) => num(v) } },
      y: { stacked: true, grid: { display: false, drawBorder: false }, ticks: { ...ticks, autoSkip: false } },
    } : {
      x: o.bars
        ? { stacked: !!o.stacked, grid: { display: false, drawBorder: false }, ticks }
        : { type: "linear", bounds: "data", grid: { display: false, drawBorder: false },
          ticks: { ...ticks, precision: 0, maxTicksLimit: 7, callback: (v) => (Number.isInteger(v) ? whole(v) : "") } },
      y: { stacked: !!o.stacked, beginAtZero: o.zero ?? o.bars ?? false, grid, suggestedMax: o.suggestedMax,
        ticks: { ...ticks, maxTicksLimit: 5, callback: (v) => num(v) } },
      ...(o.series.some((s) => s.axis === "right") ? { right: { position: "right", beginAtZero: true,
        grid: { display: false, drawBorder: false }, ticks: { ...ticks, maxTicksLimit: 5, callback: (v) => num(v) } } } : {}),
    },
  };
}

function dataset(o, s) {
  const color = css(s.color);
  const faint = color + (s.band ? "26" : "55");
  if (o.bars) return { label: s.label, data: [], backgroundColor: color, stack: s.stack ?? "all",
    barPercentage: 1, categoryPercentage: o.gap ?? 0.92, borderRadius: o.radius ?? 0 };
  return { label: s.label, data: [], borderColor: s.band ? "transparent" : s.faint ? faint : color,
    backgroundColor: s.fill || s.band || s.faint ? faint : color, yAxisID: s.axis ?? "y", borderWidth: s.faint ? 1 : s.band ? 0 : 2,
    fill: s.fill ?? false, borderDash: s.dash, spanGaps: true,
    pointHoverRadius: s.band || s.faint ? 0 : 4, pointHoverBackgroundColor: color };
}

function make(id, o) {
  const chart = new Chart($(id), { type: o.bars ? "bar" : "line", options: options(o),
    data: { labels: o.bars ? [] : undefined, datasets: o.series.map((s) => dataset(o, s)) },
    plugins: o.marked ? [marks, empty] : [empty] });
  const e = { o, chart, columns: null };
  charts.set(id, e);
  return e;
}

/* Draw columns over xs.  o: {series: [{label, color, fill, band, faint}], bars, stacked, unit, ...};
 * columns: one array a series.  Few points get dots. */
export function draw(id, o, xs, columns, list) {
  const e = charts.get(id) ?? make(id, o);
  const d = e.chart.data;
  if (o.bars) d.labels = xs;
  columns.forEach((ys, i) => {
    if (o.bars) d.datasets[i].categoryPercentage = xs.length > 60 ? 1 : o.gap ?? 0.92;
    d.datasets[i].data = o.bars
      ? ys.map((y) => (isNumber(y) ? y : 0))
      : xs.reduce((out, x, k) => { if (isNumber(ys[k])) out.push({ x, y: ys[k] }); return out; }, []);
    if (!o.bars && !o.series[i].band)
      d.datasets[i].pointRadius = d.datasets[i].data.length <= (o.series[i].dots ?? 24) ? 2.5 : 0;
  });
  e.chart.$marks = list;
  e.chart.update("none");
  describe(id, o, xs, columns);
}

function describe(id, o, xs, columns) {
  const canvas = $(id);
  const said = o.series.map((s, i) => {
    if (s.label.startsWith("_")) return "";
    const last = columns[i]?.filter(isNumber).at(-1);
    return last === undefined ? "" : `${s.label} ${num(last)}${o.unit ? " " + o.unit : ""}`;
  }).filter(Boolean).join(", ");
  const title = canvas.closest("figure")?.querySelector("h2")?.textContent ?? "chart";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${title}: ${said ? "last " + said : "no figures yet"}`);
}

/* The series of a chart changed in number, or the theme did: made again when it is drawn next. */
export function forget(id) {
  for (const [key, e] of id ? [[id, charts.get(id)]] : [...charts]) {
    e?.chart.destroy();
    charts.delete(key);
  }
}

/* Exponential mean: half of it is of the last n points. */
export function smooth(ys, n) {
  const keep = Math.pow(0.5, 1 / Math.max(n, 1));
  let mean = null;
  return ys.map((y) => {
    if (!isNumber(y)) return null;
    mean = mean === null ? y : keep * mean + (1 - keep) * y;
    return mean;
  });
}
