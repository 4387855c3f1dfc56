// Numbers as people read them. What nobody knows is a dash.

const UNKNOWN = "–";
const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

const isKnown = (value) => value !== null && value !== undefined && Number.isFinite(value);

export const count = (value) => (!isKnown(value) ? UNKNOWN : value < 1e5 ? whole.format(value) : short.format(value));

export const speed = (value) => (!isKnown(value) ? UNKNOWN : value > 0 && value < 10 ? value.toFixed(1) : count(value));

export const plural = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

export function bytes(value) {
  if (!isKnown(value)) return UNKNOWN;
  const gib = value / 2 ** 30;
  return gib >= 1 ? `${gib.toFixed(gib < 100 ? 1 : 0)} GiB` : `${(value / 2 ** 20).toFixed(0)} MiB`;
}

// What a GPU tells of itself, as parts of a line.
export function use(gpu) {
  return [
    isKnown(gpu.used_bytes) && `${bytes(gpu.used_bytes)} of ${bytes(gpu.total_bytes)}`,
    isKnown(gpu.utilization) && `${Math.round(100 * gpu.utilization)} % busy`,
    isKnown(gpu.temperature_c) && `${Math.round(gpu.temperature_c)} °C`,
    isKnown(gpu.power_w) && `${Math.round(gpu.power_w)} W`,
  ].filter(Boolean);
}

export function duration(seconds) {
  if (!isKnown(seconds)) return UNKNOWN;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export const time = (date) => date.toLocaleTimeString([], { hour12: false });
