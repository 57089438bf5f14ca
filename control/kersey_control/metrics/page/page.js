// What the status page shows, from status.json, every few seconds.
//
// An answer that does not come leaves the last one, greyed, with its age. Nobody else is asked, and
// nothing while the page is hidden.

import { listenToCharts, showCharts } from "./charts.js";
import { byId, write } from "./elements.js";
import { onPick, showLegend, showMap } from "./map.js";
import { countStates, survey } from "./peers.js";
import { showHeader, showNode, showTiles, showTroubles, tilesOf, troublesOf } from "./summary.js";
import { filterPeers, listenToTables, showHead, showPeers, showReasons } from "./tables.js";
import { span } from "./values.js";

const REFRESH = 5000; // ms
const PATIENCE = 8000; // ms for one answer

const shown = { answer: null, at: 0, peers: [], failing: "", asking: false };

function show(answer, at) {
  if (shown.answer && shown.answer.status.version !== answer.status.version) {
    location.reload(); // this script is of the version before
    return;
  }
  shown.peers = survey(answer, shown.answer, (at - shown.at) / 1000);
  shown.answer = answer;
  shown.at = at;
  shown.failing = "";
  document.querySelector("main").hidden = false;
  render();
}

function render() {
  const { answer, peers } = shown;
  const counts = countStates(peers);
  showHeader(answer);
  showTroubles(troublesOf(answer, peers, counts));
  showTiles(tilesOf(answer, peers, counts));
  showNode(answer.status);
  showMap(answer, peers, counts);
  showCharts(answer);
  showPeers(peers);
  showReasons(answer);
}

function showPulse() {
  const age = span((performance.now() - shown.at) / 1000);
  const pulse = byId("pulse");
  pulse.className = shown.failing ? "lost" : shown.answer ? "live" : "";
  document.body.classList.toggle("stale", Boolean(shown.failing && shown.answer));
  // Read aloud where it changes; the age beside it changes all the time.
  write(byId("pulse-state"), shown.failing || (shown.answer ? "live" : "waiting for kerseyd"));
  const words = shown.failing ? `what you see is ${age} old` : `updated ${age} ago`;
  write(byId("pulse-age"), shown.answer ? words : "");
}

// Return what kerseyd says now; null, with the reason in `shown`, where it says nothing.
async function ask() {
  try {
    const response = await fetch("status.json", { signal: AbortSignal.timeout(PATIENCE) });
    if (response.ok) return await response.json();
    shown.failing = `kerseyd answers with ${response.status}`;
  } catch {
    shown.failing = "kerseyd does not answer";
  }
  return null;
}

async function refresh() {
  if (document.hidden || shown.asking) return;
  shown.asking = true;
  const answer = await ask();
  shown.asking = false;
  if (answer) show(answer, performance.now());
  showPulse();
}

showHead();
showLegend();
listenToCharts();
listenToTables();
onPick(filterPeers);
addEventListener("resize", () => shown.answer && render()); // drawings are as wide as there is room
document.addEventListener("visibilitychange", refresh);
setInterval(showPulse, 1000);
setInterval(refresh, REFRESH);
refresh();
