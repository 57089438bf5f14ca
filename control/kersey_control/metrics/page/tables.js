// The tables: peers, and why packets took the kernel's own path.

import { byId, keep, make, write } from "./elements.js";
import { subnetNumber } from "./peers.js";
import { milliseconds, percent, plural, rate, whole } from "./values.js";

const ROWS = 25; // until all are asked for

const orDash = (value, show) => (value === null || value === undefined ? "–" : show(value));

const COLUMNS = [
  { name: "Subnet", text: (peer) => peer.subnet, sort: (peer) => peer.number },
  {
    name: "Node",
    text: (peer) => peer.node || "–",
    sort: (peer) => subnetNumber(peer.node || "0"),
  },
  { name: "Via", text: (peer) => peer.via || "–", sort: (peer) => peer.via },
  {
    name: "State",
    text: (peer) => peer.judged.words,
    kind: (peer) => `state verdict-${peer.judged.tone}`,
    sort: null,
  },
  {
    name: "Round trip",
    number: true,
    text: (peer) => orDash(peer.reach?.round_trip_seconds, milliseconds),
    sort: (peer) => -(peer.reach?.round_trip_seconds ?? -1),
  },
  {
    name: "Lost to it",
    number: true,
    text: (peer) => orDash(peer.reach?.loss_out, percent),
    sort: (peer) => -(peer.reach?.loss_out ?? -1),
  },
  {
    name: "Lost from it",
    number: true,
    text: (peer) => orDash(peer.reach?.loss_in, percent),
    sort: (peer) => -(peer.reach?.loss_in ?? -1),
  },
  {
    name: "Sent",
    number: true,
    text: (peer) => orDash(peer.sent, rate),
    sort: (peer) => -(peer.sent ?? -1),
  },
  {
    name: "Received",
    number: true,
    text: (peer) => orDash(peer.received, rate),
    sort: (peer) => -(peer.received ?? -1),
  },
  {
    name: "Fast path",
    number: true,
    text: (peer) => orDash(peer.share, percent),
    sort: (peer) => peer.share ?? 2,
  },
];

const choice = { column: "State", reversed: false, all: false };
let known = []; // the peers of the last answer, the worst first

export function showHead() {
  byId("peers")
    .querySelector("thead")
    .replaceChildren(
      make(
        "tr",
        {},
        ...COLUMNS.map((column) => {
          const button = make("button", { type: "button" }, column.name);
          button.addEventListener("click", () => {
            choice.reversed = choice.column === column.name && !choice.reversed;
            choice.column = column.name;
            showChosen();
          });
          return make("th", { scope: "col", class: column.number ? "number" : "" }, button);
        }),
      ),
    );
  byId("reasons")
    .querySelector("thead")
    .replaceChildren(
      make(
        "tr",
        {},
        ...["Reason", "Meaning"].map((name) => make("th", { scope: "col" }, name)),
        ...["Sent", "Received"].map((name) => make("th", { scope: "col", class: "number" }, name)),
      ),
    );
}

function chosen(peers) {
  const wanted = byId("filter").value.trim().toLowerCase();
  const matches = (peer) =>
    [peer.subnet, peer.node, peer.via, peer.judged.words, peer.judged.state].some((text) =>
      text.toLowerCase().includes(wanted),
    );
  const found = wanted ? peers.filter(matches) : [...peers];
  const { sort } = COLUMNS.find((column) => column.name === choice.column);
  if (sort)
    found.sort((a, b) => (sort(a) < sort(b) ? -1 : sort(a) > sort(b) ? 1 : a.number - b.number));
  return choice.reversed ? found.reverse() : found;
}

export function showPeers(peers) {
  known = peers;
  showChosen();
}

// Show only what has this text in it.
export function filterPeers(text) {
  byId("filter").value = text;
  showChosen();
  byId("peers-title").scrollIntoView({ block: "start" });
}

export function listenToTables() {
  byId("filter").addEventListener("input", showChosen);
  byId("more").addEventListener("click", () => {
    choice.all = true;
    showChosen();
  });
}

function showChosen() {
  const found = chosen(known);
  const rows = choice.all ? found : found.slice(0, ROWS);
  write(
    byId("peers-count"),
    found.length === known.length
      ? plural(found.length, "peer")
      : `${whole.format(found.length)} of ${plural(known.length, "peer")}`,
  );
  byId("peers")
    .querySelectorAll("thead th")
    .forEach((head, at) => {
      const sorted = COLUMNS[at].name === choice.column;
      if (sorted) head.setAttribute("aria-sort", choice.reversed ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  keep(
    byId("peers").querySelector("tbody"),
    rows,
    (peer) => peer.subnet,
    () =>
      make(
        "tr",
        {},
        ...COLUMNS.map((column, at) => (at === 0 ? make("th", { scope: "row" }) : make("td"))),
      ),
    (row, peer) =>
      COLUMNS.forEach((column, at) => {
        const kind = column.kind?.(peer) ?? (column.number ? "number" : "");
        if (row.children[at].className !== kind) row.children[at].className = kind;
        write(row.children[at], column.text(peer));
      }),
  );
  byId("more").hidden = rows.length === found.length;
  write(byId("more"), `Show all ${whole.format(found.length)}`);
}

// Return why single packets went by the kernel: the verdicts of the programs that decide it.
function reasonsOf(verdicts, meaning) {
  const [sent, received] = [verdicts.from_pod ?? {}, verdicts.from_uplink ?? {}];
  return [...new Set([...Object.keys(sent), ...Object.keys(received)])]
    .filter((name) => Object.hasOwn(meaning, name))
    .map((name) => ({ name, sent: sent[name] ?? 0, received: received[name] ?? 0 }))
    .sort((a, b) => b.sent + b.received - a.sent - a.received);
}

export function showReasons({ status, words }) {
  const reasons = reasonsOf(status.fast_path?.verdicts ?? {}, words.slow);
  write(
    byId("reasons-words"),
    status.fast_path === null
      ? "There is no fast path: all packets do."
      : reasons.length
        ? "Packets between pods of different nodes, since the programs were loaded."
        : "None did so far.",
  );
  byId("reasons").hidden = reasons.length === 0;
  keep(
    byId("reasons").querySelector("tbody"),
    reasons,
    (reason) => reason.name,
    () =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }),
        make("td", { class: "wrap" }),
        make("td", { class: "number" }),
        make("td", { class: "number" }),
      ),
    (row, { name, sent, received }) =>
      [
        name.replaceAll("_", " "),
        words.slow[name],
        whole.format(sent),
        whole.format(received),
      ].forEach((text, at) => write(row.children[at], text)),
  );
}
