// Values as people read them.

export const HOUR = 3600; // seconds

export const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function scaled(value, unit, steps = ["", "k", "M", "G", "T"]) {
  let step = 0;
  while (value >= 1000 && step < steps.length - 1) {
    value /= 1000;
    step += 1;
  }
  const digits = value >= 100 || Number.isInteger(value) ? 0 : 1;
  return `${value.toFixed(digits)} ${steps[step]}${unit}`;
}

export const rate = (bytesPerSecond) => scaled(8 * bytesPerSecond, "bit/s");

export function percent(ratio) {
  const value = 100 * ratio;
  return `${value === 100 || value === 0 ? value : Math.min(value, 99.9).toFixed(1)} %`;
}

export function milliseconds(seconds) {
  const value = 1000 * seconds;
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ms`;
}

export function span(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < HOUR) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / HOUR)} h ${String(Math.floor((seconds % HOUR) / 60)).padStart(2, "0")} min`;
}

export const plural = (count, noun) => `${whole.format(count)} ${noun}${count === 1 ? "" : "s"}`;
export const clock = (secondsAgo) =>
  new Date(Date.now() - 1000 * secondsAgo).toLocaleTimeString("en-GB");
