// Sums over the history that the answer carries.

export function recent(history, seconds) {
  return history.filter((sample) => sample.seconds_ago < seconds);
}

export function packetsOf(samples) {
  const total = { fast: 0, all: 0 };
  for (const sample of samples) {
    total.fast += sample.fast_packets;
    total.all += sample.fast_packets + sample.slow_packets;
  }
  return total;
}

export const shareOf = (sample) => {
  const all = sample.fast_packets + sample.slow_packets;
  return all ? sample.fast_packets / all : null;
};

export function forgedBy(history) {
  const totals = {};
  for (const sample of history) {
    for (const [verdict, count] of Object.entries(sample.forged)) {
      totals[verdict] = (totals[verdict] ?? 0) + count;
    }
  }
  return totals;
}

export const fate = (answer) =>
  answer.status.options.spoof_check === "drop" ? "dropped" : "counted only";
