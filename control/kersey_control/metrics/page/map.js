// Who reaches whom: a drawing of few peers, a grid of many, the worst first.

import { byId, draw, keep, make, write } from "./elements.js";
import { ORDER, TITLES, shortWords, tooltip } from "./peers.js";
import { milliseconds, plural, whole } from "./values.js";

const DRAWN = 16; // peers; more of them are a grid
const NAMED = 60; // cells with their names in them, of peers that need a look
const CELLS = 4000; // of one state
const BOX = { width: 196, height: 42, pitch: 60 };

const LEGEND = {
  good: "arrives",
  some: "part is lost",
  bad: "is lost, or has no way",
  none: "not known",
};

export function showLegend() {
  byId("legend").replaceChildren(
    ...Object.entries(LEGEND).map(([tone, words]) =>
      make(
        "li",
        {},
        draw(
          "svg",
          { viewBox: "0 0 34 10", "aria-hidden": "true" },
          draw("path", { class: `way ${tone}`, d: "M0 5H26" }),
          draw("path", { class: `head ${tone}`, d: "M25 1L34 5L25 9Z" }),
        ),
        words,
      ),
    ),
  );
}

function mapWords(peers, counts) {
  if (peers.length === 0) return "No other node has a lease.";
  const parts = ORDER.filter((state) => counts[state]).map(
    (state) => `${whole.format(counts[state])} ${TITLES[state].toLowerCase()}`,
  );
  return `${plural(peers.length, "peer")}: ${parts.join(", ")}.`;
}

export function showMap(answer, peers, counts) {
  write(byId("map-words"), mapWords(peers, counts));
  const map = byId("map");
  const kind = peers.length <= DRAWN ? "drawing" : "grid";
  if (map.dataset.kind !== kind) map.replaceChildren();
  map.dataset.kind = kind;
  if (kind === "grid") showGrid(map, peers);
  else
    map.replaceChildren(
      ...(peers.length ? [drawMap(answer, peers, counts, Math.max(260, map.clientWidth))] : []),
    );
}

// Return where things are: this node in the middle and peers at both sides; on a phone at one.
function layOut(count, width) {
  const sides = width >= 640 && count > 1 ? 2 : 1;
  const rows = Math.ceil(count / sides);
  const own = {
    width: sides === 2 ? 168 : Math.min(104, width * 0.28),
    height: Math.max(64, 26 * rows),
  };
  const height = Math.max(sides === 2 ? 230 : 120, rows * BOX.pitch + 8);
  const box = { ...BOX, width: Math.min(BOX.width, width - own.width - 60) };
  const left = sides === 2 ? (width - own.width) / 2 : 0;
  return { sides, own: { ...own, x: left, y: (height - own.height) / 2 }, rows, height, box };
}

function drawMap(answer, peers, counts, width) {
  const plan = layOut(peers.length, width);
  const inOrder = [...peers].sort((a, b) => a.number - b.number);
  const children = inOrder.flatMap((peer, at) => drawPeer(peer, at, inOrder.length, plan, width));
  const svg = draw("svg", {
    viewBox: `0 0 ${width} ${plan.height}`,
    height: plan.height,
    role: "img",
    "aria-label": mapWords(peers, counts),
  });
  svg.append(...children, drawOwn(answer, plan.own));
  return svg;
}

function drawOwn(answer, own) {
  const middle = own.x + own.width / 2;
  const text = (y, kind, words) =>
    draw("text", { x: middle, y, "text-anchor": "middle", class: `on-own ${kind}` }, words);
  return draw(
    "g",
    {},
    draw("rect", {
      class: "own",
      x: own.x,
      y: own.y,
      width: own.width,
      height: own.height,
      rx: 10,
    }),
    text(own.y + own.height / 2 - 5, "title", clipped(answer.host, own.width, 7.6)),
    text(own.y + own.height / 2 + 14, "soft", clipped(answer.status.subnet ?? "", own.width, 6.8)),
  );
}

const clipped = (text, width, perLetter) => {
  const most = Math.floor((width - 12) / perLetter);
  return text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text;
};

function drawPeer(peer, at, count, plan, width) {
  const side = plan.sides === 2 && at % 2 === 0 ? -1 : 1;
  const row = plan.sides === 2 ? Math.floor(at / 2) : at;
  const rowsHere =
    plan.sides === 2 ? (side < 0 ? Math.ceil(count / 2) : Math.floor(count / 2)) : count;
  const pitch = plan.height / rowsHere;
  const y = pitch * (row + 0.5);
  const { box, own } = plan;
  const x = side < 0 ? 0 : width - box.width;
  const from = {
    x: side < 0 ? own.x : own.x + own.width,
    y: own.y + own.height * ((row + 0.5) / rowsHere),
  };
  const to = { x: side < 0 ? box.width : x, y };
  const { judged } = peer;
  return [
    ...drawWay(from, to, -4, judged.out),
    ...drawWay(to, from, 4, judged.in),
    drawBox(peer, x, y - box.height / 2, box),
  ];
}

function drawBox(peer, x, y, box) {
  const { judged } = peer;
  const told =
    judged.state === "fine" && peer.reach.round_trip_seconds !== null
      ? milliseconds(peer.reach.round_trip_seconds)
      : shortWords(peer);
  const left = x + 12;
  return draw(
    "g",
    { class: judged.tone },
    draw("title", {}, tooltip(peer)),
    draw("rect", { class: "box", x, y, width: box.width, height: box.height, rx: 8 }),
    draw("text", { x: left, y: y + 18, class: "title" }, peer.subnet),
    draw(
      "text",
      { x: left, y: y + 34, class: "soft" },
      clipped(peer.node || "no node", box.width - 80, 6.4),
    ),
    draw(
      "text",
      {
        x: x + box.width - 10,
        y: y + 34,
        "text-anchor": "end",
        class: `soft verdict-${judged.tone}`,
      },
      told,
    ),
  );
}

// Draw one direction, `shift` beside the middle so that both are seen; a cross where it is lost.
function drawWay(from, to, shift, tone) {
  const right = to.x > from.x ? 1 : -1;
  const tip = { x: to.x - right * 3, y: to.y + shift };
  const start = { x: from.x + right * 3, y: from.y + shift };
  const end = tip.x - right * 8;
  const bend = (start.x + end) / 2;
  const middle = { x: bend, y: (start.y + tip.y) / 2 };
  const parts = [
    draw("path", {
      class: `way ${tone}`,
      d: `M${start.x} ${start.y}C${bend} ${start.y} ${bend} ${tip.y} ${end} ${tip.y}`,
    }),
    draw("path", {
      class: `head ${tone}`,
      d: `M${tip.x} ${tip.y}L${end} ${tip.y - 4}V${tip.y + 4}Z`,
    }),
  ];
  if (tone === "bad") {
    const { x, y } = middle;
    parts.push(
      draw("path", {
        class: "cross",
        d: `M${x - 5} ${y - 5}L${x + 5} ${y + 5}M${x - 5} ${y + 5}L${x + 5} ${y - 5}`,
      }),
    );
  }
  return parts;
}

function showGrid(map, peers) {
  const groups = ORDER.map((state) => ({
    state,
    members: peers.filter((peer) => peer.judged.state === state),
  })).filter((group) => group.members.length);
  keep(
    map,
    groups,
    (group) => group.state,
    () => make("div", { class: "group" }, make("h3"), make("div", { class: "cells" })),
    (element, { state, members }) => {
      write(
        element.children[0],
        `${TITLES[state]}: ${whole.format(members.length)}${members.length > CELLS ? `, the first ${whole.format(CELLS)} shown` : ""}`,
      );
      const named = ["unprogrammed", "silent", "losing"].includes(state) && members.length <= NAMED;
      keep(
        element.children[1],
        members.slice(0, CELLS),
        (peer) => peer.subnet,
        createCell,
        (cell, peer) => updateCell(cell, peer, named),
      );
    },
  );
}

// Call `pick` with the subnet whose cell is clicked; by keyboard the table is the shorter way.
export function onPick(pick) {
  byId("map").addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (cell) pick(cell.dataset.key);
  });
}

const createCell = () => make("button", { type: "button", tabindex: "-1" });

function updateCell(cell, peer, named) {
  const { judged } = peer;
  const kind = `cell out-${judged.out} in-${judged.in}${named ? " named" : ""}`;
  if (cell.className !== kind) cell.className = kind;
  write(cell, named ? `${peer.subnet} ${shortWords(peer)}` : "");
  const words = tooltip(peer);
  if (cell.title !== words) cell.title = words;
  if (!named) cell.setAttribute("aria-label", `${peer.subnet}: ${judged.words}`);
}
