// What is known of each peer, as judgements: values in, values out.

import { milliseconds, percent, rate, span } from "./values.js";

export const ORDER = ["unprogrammed", "silent", "losing", "unknown", "fine"];
export const TITLES = {
  unprogrammed: "Not programmed",
  silent: "Silent",
  losing: "Losing packets",
  unknown: "Not probed",
  fine: "Answering",
};

function grade(loss) {
  if (loss === null || loss === undefined) return "none";
  if (loss <= 0) return "good";
  return loss < 0.9 ? "some" : "bad";
}

// Judge one peer: its state, each direction as good, some (loss), bad or none (unknown), and words.
function judge(peer) {
  if (peer.condition !== "programmed") {
    const words = peer.reason ? `${peer.condition}: ${peer.reason}` : peer.condition;
    return { state: "unprogrammed", out: "bad", in: "bad", words, tone: "bad" };
  }
  const reach = peer.reach;
  if (!reach)
    return { state: "unknown", out: "none", in: "none", words: "not probed", tone: "none" };
  if (reach.answering === "unknown") {
    return { state: "unknown", out: "none", in: "none", words: "no answer yet", tone: "none" };
  }
  if (reach.answering === "silent") return judgeSilent(reach);
  const out = grade(reach.loss_out ?? reach.loss);
  const back = grade(reach.loss_in ?? reach.loss);
  if (out === "bad" || back === "bad" || out === "some" || back === "some") {
    return { state: "losing", out, in: back, words: lossWords(reach), tone: "some" };
  }
  return { state: "fine", out: "good", in: "good", words: "answers", tone: "good" };
}

function judgeSilent(reach) {
  const last =
    reach.answered_seconds_ago === null
      ? "no answer so far"
      : `last answer ${span(reach.answered_seconds_ago)} ago`;
  const found = { state: "silent", out: "bad", in: "bad", tone: "bad" };
  if (reach.one_way === "out") {
    return { ...found, in: "good", words: `packets to it are lost, those from it arrive; ${last}` };
  }
  if (reach.one_way === "in") {
    return {
      ...found,
      out: "good",
      words: `packets to it arrive, those from it are lost; ${last}`,
    };
  }
  return { ...found, words: `does not answer; ${last}` };
}

function lossWords(reach) {
  if (reach.loss_out === null || reach.loss_in === null) {
    return `loses ${percent(reach.loss)}, direction unknown`;
  }
  const parts = [
    ["to it", reach.loss_out],
    ["from it", reach.loss_in],
  ];
  return `loses ${parts
    .filter((part) => part[1] > 0)
    .map((part) => `${percent(part[1])} ${part[0]}`)
    .join(", ")}`;
}

export function subnetNumber(subnet) {
  return subnet.split(/[./]/).reduce((sum, part) => sum * 256 + Number(part), 0);
}

const sentBytes = (traffic) => traffic.fast_sent.bytes + traffic.slow_sent.bytes;
const receivedBytes = (traffic) => traffic.fast_received.bytes + traffic.slow_received.bytes;

function fastShare(traffic) {
  const fast = traffic.fast_sent.packets + traffic.fast_received.packets;
  const all = fast + traffic.slow_sent.packets + traffic.slow_received.packets;
  return all ? fast / all : null;
}

// Return the peers with judgements, rates since the last answer and loss, the worst first.
export function survey(answer, before, seconds) {
  const earlier = new Map((before?.peers ?? []).map((peer) => [peer.subnet, peer.traffic]));
  const peers = answer.peers.map((peer) => {
    const was = earlier.get(peer.subnet);
    const known = peer.traffic && was && seconds > 0;
    return {
      ...peer,
      judged: judge(peer),
      sent: known ? Math.max(0, sentBytes(peer.traffic) - sentBytes(was)) / seconds : null,
      received: known
        ? Math.max(0, receivedBytes(peer.traffic) - receivedBytes(was)) / seconds
        : null,
      share: peer.traffic ? fastShare(peer.traffic) : null,
      number: subnetNumber(peer.subnet),
    };
  });
  return peers.sort((a, b) => worse(a, b) || a.number - b.number);
}

const worst = (peer) =>
  Math.max(peer.reach?.loss_out ?? 0, peer.reach?.loss_in ?? 0, peer.reach?.loss ?? 0);
const worse = (a, b) =>
  ORDER.indexOf(a.judged.state) - ORDER.indexOf(b.judged.state) || worst(b) - worst(a);

export function countStates(peers) {
  const counts = Object.fromEntries(ORDER.map((state) => [state, 0]));
  for (const peer of peers) counts[peer.judged.state] += 1;
  return counts;
}

export function shortWords({ judged, reach, condition }) {
  if (judged.state === "unprogrammed") return condition;
  if (judged.state === "losing")
    return `${percent(Math.max(reach.loss_out ?? 0, reach.loss_in ?? 0, reach.loss ?? 0))} lost`;
  return { silent: "silent", unknown: judged.words, fine: "answers" }[judged.state];
}

export function tooltip(peer) {
  const reach = peer.reach;
  const parts = [
    `${peer.subnet}, node ${peer.node || "unknown"}, ${peer.via || "no way"}`,
    peer.judged.words,
  ];
  if (reach && reach.round_trip_seconds !== null)
    parts.push(`round trip ${milliseconds(reach.round_trip_seconds)}`);
  if (peer.sent !== null) parts.push(`${rate(peer.sent)} sent, ${rate(peer.received)} received`);
  return parts.join("\n");
}
