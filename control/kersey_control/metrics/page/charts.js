// The last hour in charts, which tell the sample under the pointer in words.

import { byId, draw, make, write } from "./elements.js";
import { fate, forgedBy, packetsOf, recent, shareOf } from "./history.js";
import { HOUR, clock, percent, plural, scaled, whole } from "./values.js";

// Where a chart's plot is, in pixels; all charts are as wide as the first.
const PLOT = { width: 0, height: 150, left: 44, right: 6, top: 8, bottom: 20 };
const NARROWEST = 200;
const CHOICES = [300, 600, 1200, 1800]; // seconds, below an hour

const plotX = (ago, length) =>
  PLOT.left + (PLOT.width - PLOT.left - PLOT.right) * (1 - Math.min(ago, length) / length);
const plotY = (ratio) => PLOT.top + (PLOT.height - PLOT.top - PLOT.bottom) * (1 - ratio);

// Return how much time a chart shows: what there is, from five minutes to an hour.
function lengthOf(history) {
  const oldest = history.length ? history[0].seconds_ago + history[0].seconds : 0;
  return CHOICES.find((length) => oldest <= length) ?? HOUR;
}

function axes(length, top) {
  const lines = [0, 0.5, 1].map((ratio) =>
    draw("path", { class: "axis", d: `M${PLOT.left} ${plotY(ratio)}H${PLOT.width - PLOT.right}` }),
  );
  const values = [0, 0.5, 1].map((ratio) =>
    draw(
      "text",
      { class: "soft", x: PLOT.left - 6, y: plotY(ratio) + 4, "text-anchor": "end" },
      top(ratio),
    ),
  );
  const times = [1, 0.5, 0].map((part) =>
    draw(
      "text",
      {
        class: "soft",
        x: plotX(part * length, length),
        y: PLOT.height - 4,
        "text-anchor": ["end", "middle", "start"][2 * part],
      },
      part ? `−${whole.format(((part * length) / 60) * 10) / 10} min` : "now",
    ),
  );
  return [...lines, ...values, ...times];
}

// Draw areas on top of each other: for each sample from `below` to `above`, both 0 to 1.
function area(samples, length, kind, below, above) {
  const d = samples
    .filter((sample) => above(sample) > below(sample))
    .map((sample) => {
      const [left, right] = [
        plotX(sample.seconds_ago + sample.seconds, length),
        plotX(sample.seconds_ago, length),
      ];
      return `M${left} ${plotY(below(sample))}V${plotY(above(sample))}H${right}V${plotY(below(sample))}Z`;
    });
  return draw("path", { class: kind, d: d.join("") });
}

// Draw one line through all samples for which there is a value; it breaks where there is none.
function line(samples, length, kind, value) {
  let pen = "M";
  let d = "";
  for (const sample of samples) {
    const y = value(sample);
    if (y === null) {
      pen = "M";
      continue;
    }
    d += `${pen}${plotX(sample.seconds_ago + sample.seconds, length)} ${plotY(y)}H${plotX(sample.seconds_ago, length)}`;
    pen = "L";
  }
  return draw("path", { class: kind, d });
}

function roundUp(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

const charts = new Map();

// Show a chart in its figure: `parts` are its shapes, `read` tells one sample in words.
function showChart(id, words, label, parts, history, length, read, keys = []) {
  const figure = byId(id);
  write(figure.querySelector(".words"), words);
  charts.set(id, { words, history, length, read });
  const svg = draw(
    "svg",
    {
      viewBox: `0 0 ${PLOT.width} ${PLOT.height}`,
      role: "img",
      "aria-label": label,
    },
    ...parts,
  );
  const list = make(
    "ul",
    { class: "keys" },
    ...keys.map(([kind, text]) =>
      make(
        "li",
        {},
        draw(
          "svg",
          { viewBox: "0 0 10 10", "aria-hidden": "true" },
          draw("rect", { class: kind, width: 10, height: 10, rx: 2 }),
        ),
        text,
      ),
    ),
  );
  [...figure.children].slice(1).forEach((child) => child.remove());
  figure.append(svg, list);
}

const nothingYet = (answer) =>
  answer.status.fast_path === null
    ? "There is no fast path, so nothing is counted."
    : "The first sample comes within some ten seconds.";

function showShare(answer, length) {
  const history = recent(answer.history, length);
  const shares = history.map(shareOf).filter((share) => share !== null);
  const { fast, all } = packetsOf(history);
  const words =
    history.length === 0
      ? nothingYet(answer)
      : shares.length === 0
        ? "No packets."
        : `${percent(fast / all)} of ${scaled(all, "").trim()} packets; lowest ${percent(Math.min(...shares))}`;
  const parts = [
    ...axes(length, (ratio) => `${100 * ratio} %`),
    area(
      history,
      length,
      "area tint",
      () => 0,
      (sample) => shareOf(sample) ?? 0,
    ),
    line(history, length, "line fast", shareOf),
  ];
  const read = (sample) =>
    shareOf(sample) === null
      ? "no packets"
      : `${percent(shareOf(sample))} of ${plural(sample.fast_packets + sample.slow_packets, "packet")}`;
  showChart("share", words, `Share of the fast path: ${words}`, parts, history, length, read);
}

function showTraffic(answer, length) {
  const history = recent(answer.history, length);
  const fast = (sample) => (8 * sample.fast_bytes) / sample.seconds;
  const all = (sample) => fast(sample) + (8 * sample.slow_bytes) / sample.seconds;
  const top = roundUp(Math.max(0, ...history.map(all)));
  const sum = (way) => history.reduce((total, sample) => total + sample[way], 0);
  const words =
    history.length === 0
      ? nothingYet(answer)
      : `${scaled(sum("fast_bytes") + sum("slow_bytes"), "B")}; most ${scaled(Math.max(0, ...history.map(all)), "bit/s")}`;
  const parts = [
    ...axes(length, (ratio) => scaled(ratio * top, "")),
    area(
      history,
      length,
      "area fast",
      () => 0,
      (sample) => fast(sample) / top,
    ),
    area(
      history,
      length,
      "area slow",
      (sample) => fast(sample) / top,
      (sample) => all(sample) / top,
    ),
  ];
  const read = (sample) =>
    `${scaled(fast(sample), "bit/s")} fast, ${scaled(all(sample) - fast(sample), "bit/s")} slow`;
  const keys = [
    ["key-fast", "fast path"],
    ["key-slow", "kernel's own path"],
  ];
  showChart("traffic", words, `Traffic in bit/s: ${words}`, parts, history, length, read, keys);
}

function showForged(answer, length) {
  const history = recent(answer.history, length);
  const totals = forgedBy(history);
  const meaning = answer.words.forged;
  const verdicts = [...new Set([...Object.keys(meaning), ...Object.keys(totals)])];
  const kind = (verdict) => `r${Math.min(verdicts.indexOf(verdict), 4) + 1}`;
  const rates = (sample) =>
    Object.values(sample.forged).reduce((sum, count) => sum + count, 0) / sample.seconds;
  const top = roundUp(Math.max(0, ...history.map(rates)));
  const upTo = (sample, end) =>
    verdicts.slice(0, end).reduce((sum, verdict) => sum + (sample.forged[verdict] ?? 0), 0) /
    sample.seconds /
    top;
  const total = Object.values(totals).reduce((sum, count) => sum + count, 0);
  const words =
    history.length === 0
      ? nothingYet(answer)
      : total
        ? `${plural(total, "packet")}, ${fate(answer)}`
        : "None.";
  const parts = [
    ...axes(length, (ratio) => `${scaled(ratio * top, "").trim()}/s`),
    ...verdicts.map((verdict, at) =>
      area(
        history,
        length,
        kind(verdict),
        (sample) => upTo(sample, at),
        (sample) => upTo(sample, at + 1),
      ),
    ),
  ];
  const read = (sample) =>
    Object.entries(sample.forged)
      .map(([verdict, count]) => `${plural(count, "packet")}: ${meaning[verdict] ?? verdict}`)
      .join("; ") || "none";
  const keys = Object.entries(totals).map(([verdict, count]) => [
    kind(verdict),
    `${whole.format(count)}: ${meaning[verdict] ?? verdict}`,
  ]);
  showChart(
    "forged",
    words,
    `Refused senders in packets a second: ${words}`,
    parts,
    history,
    length,
    read,
    keys,
  );
}

export function showCharts(answer) {
  PLOT.width = Math.max(NARROWEST, byId("share").querySelector("figcaption").clientWidth);
  const length = lengthOf(answer.history);
  showShare(answer, length);
  showTraffic(answer, length);
  showForged(answer, length);
}

// Have each chart tell the sample under the pointer.
export function listenToCharts() {
  for (const figure of document.querySelectorAll("#charts figure")) {
    figure.addEventListener("pointermove", (event) => readChart(figure, event));
    figure.addEventListener("pointerleave", () => leaveChart(figure));
  }
}

// Say in a chart's words what its sample under the pointer is.
function readChart(figure, event) {
  const { words, history, length, read } = charts.get(figure.id) ?? {};
  const svg = figure.querySelector("svg");
  if (!history || !svg || event.target.closest("svg") !== svg) return;
  const place = svg.getBoundingClientRect();
  const x = ((event.clientX - place.left) / place.width) * PLOT.width;
  const ago = (1 - (x - PLOT.left) / (PLOT.width - PLOT.left - PLOT.right)) * length;
  const sample = history.find(
    (each) => ago >= each.seconds_ago && ago < each.seconds_ago + each.seconds,
  );
  write(
    figure.querySelector(".words"),
    sample ? `${clock(sample.seconds_ago)}: ${read(sample)}` : words,
  );
  svg.querySelector(".guide")?.remove();
  if (sample) svg.append(draw("path", { class: "guide", d: `M${x} ${plotY(0)}V${plotY(1)}` }));
}

function leaveChart(figure) {
  figure.querySelector(".guide")?.remove();
  const chart = charts.get(figure.id);
  if (chart) write(figure.querySelector(".words"), chart.words);
}
