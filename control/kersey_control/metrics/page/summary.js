// The top of the page: who this is, what is wrong, the figures at a glance, the node.

import { byId, keep, make, write } from "./elements.js";
import { fate, forgedBy, packetsOf, recent } from "./history.js";
import { percent, plural, rate, span, whole } from "./values.js";

const SILENT = 5; // seconds without a turn of the control loop, which turns once a second
const NAMED = 3; // troubled peers of a kind

export function showHeader(answer) {
  const { status } = answer;
  const address = status.uplink?.public_ip ?? "";
  write(byId("host"), answer.host);
  write(
    byId("place"),
    [address, status.subnet, `kerseyd ${status.version}`].filter(Boolean).join(" · "),
  );
  document.title = `${answer.host} · Kersey`;
}

export function troublesOf(answer, peers, counts) {
  const { status } = answer;
  const found = [];
  if (status.silent_seconds > SILENT) {
    found.push(["daemon", `the control loop has been silent for ${span(status.silent_seconds)}`]);
  }
  if (!status.ready)
    found.push(["daemon", "not ready yet: no snapshot of the leases in the kernel"]);
  if (!status.store.connected) found.push(["store", `lost: ${status.store.trouble}`]);
  if (status.lease.trouble) found.push(["lease", status.lease.trouble]);
  for (const [part, why] of Object.entries(status.fast_path?.troubles ?? {})) {
    found.push(["fast path", `${part}: ${why}`]);
  }
  if (status.probes_trouble) found.push(["probes", `not sent: ${status.probes_trouble}`]);
  found.push(...peerTroubles(peers, counts));
  if (status.skipped_records) {
    found.push([
      "store",
      `${plural(status.skipped_records, "record")} skipped so far, see the daemon's log`,
    ]);
  }
  return found;
}

function peerTroubles(peers, counts) {
  const found = ["unprogrammed", "silent"].flatMap((state) =>
    peers
      .filter((peer) => peer.judged.state === state)
      .slice(0, NAMED)
      .map((peer) => [
        "peer",
        `${peer.subnet}${peer.node ? ` (${peer.node})` : ""} ${peer.judged.words}`,
      ]),
  );
  const rest = counts.unprogrammed + counts.silent - found.length;
  if (rest > 0) found.push(["peers", `${whole.format(rest)} more, see the table below`]);
  return found;
}

export function showTroubles(found) {
  byId("troubles").hidden = found.length === 0;
  byId("troubles")
    .querySelector("ul")
    .replaceChildren(...found.map(([what, why]) => make("li", {}, make("b", {}, what), why)));
}

export function tilesOf(answer, peers, counts) {
  return [
    peersTile(answer, peers, counts),
    fastTile(answer),
    trafficTile(answer, peers),
    forgedTile(answer),
  ];
}

function peersTile(answer, peers, counts) {
  const { desired, programmed } = answer.status.peers;
  const probed = peers.length - counts.unknown - counts.unprogrammed;
  const answering = counts.fine + counts.losing;
  const bad = programmed < desired || counts.silent > 0;
  return {
    name: "Peers in the kernel",
    value: `${whole.format(programmed)} of ${whole.format(desired)}`,
    words: probed
      ? `${whole.format(answering)} of ${whole.format(probed)} probed answer`
      : "not probed",
    tone: bad ? "bad" : counts.losing ? "some" : "good",
  };
}

function fastTile(answer) {
  const { status } = answer;
  if (status.fast_path === null) {
    return {
      name: "Fast path",
      value: "none",
      words: `${status.datapath.mode}: ${status.datapath.reason}`,
      tone: "none",
    };
  }
  const { fast, all } = packetsOf(recent(answer.history, 60));
  const troubled = Object.keys(status.fast_path.troubles).length > 0;
  return {
    name: "Fast path, last minute",
    value: all ? percent(fast / all) : "no packets",
    words: all
      ? `of ${plural(all, "packet")}, admission ${status.options.admission}`
      : `admission ${status.options.admission}`,
    tone: troubled ? "some" : "good",
  };
}

function trafficTile(answer, peers) {
  const known = peers.filter((peer) => peer.sent !== null);
  const sum = (way) => known.reduce((total, peer) => total + peer[way], 0);
  const [sent, received] = [sum("sent"), sum("received")];
  return {
    name: "Traffic now",
    value: known.length ? rate(sent + received) : "–",
    words: known.length
      ? `${rate(sent)} sent, ${rate(received)} received`
      : answer.status.fast_path === null
        ? "not counted without a fast path"
        : "known with the next answer",
    tone: "none",
  };
}

function forgedTile(answer) {
  const total = Object.values(forgedBy(answer.history)).reduce((sum, count) => sum + count, 0);
  const off = answer.status.fast_path === null || answer.status.options.spoof_check === "off";
  return {
    name: "Refused senders, last hour",
    value: off ? "not checked" : plural(total, "packet"),
    words: off ? "there is no check by programs" : fate(answer),
    tone: total ? "some" : "none",
  };
}

export function showTiles(tiles) {
  keep(
    byId("tiles"),
    tiles,
    (tile) => tile.name,
    () => make("li", {}, make("span"), make("strong"), make("span")),
    (item, tile) => {
      item.className = tile.tone;
      [tile.name, tile.value, tile.words].forEach((text, at) => write(item.children[at], text));
    },
  );
}

function nodeFacts(status) {
  const { uplink, lease, options, store } = status;
  const ends =
    lease.expires_at === null
      ? "does not end"
      : `ends in ${span(Math.max(0, lease.expires_at - Date.now() / 1000))}`;
  const where = options.etcd_endpoints.join(", ") || options.store;
  return [
    ["Datapath", status.datapath.mode, status.datapath.reason],
    [
      "Fast path",
      status.fast_path ? `admission ${options.admission}` : "none",
      status.fast_path ? `refused senders: ${options.spoof_check}` : "",
    ],
    [
      "Backend",
      status.backend || "not known yet",
      [status.device, status.mtu ? `pods' MTU ${status.mtu}` : ""].filter(Boolean).join(", "),
    ],
    [
      "Uplink",
      uplink ? `${uplink.interface} ${uplink.address}` : "not known yet",
      uplink ? `MTU ${uplink.mtu}, ${uplink.reason}` : "",
    ],
    ["Lease", status.subnet ?? "none yet", status.subnet ? `of ${status.network}, ${ends}` : ""],
    ["Store", store.connected ? "connected" : "lost", where],
  ];
}

export function showNode(status) {
  byId("node").replaceChildren(
    ...nodeFacts(status).flatMap(([name, value, more]) => [
      make("dt", {}, name),
      make("dd", {}, value, more ? make("small", {}, more) : null),
    ]),
  );
}
