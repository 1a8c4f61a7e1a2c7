// What the page measures: frames per second, and the delay between the two devices.

/** Counts events of the last second. */
export class Rate {
  #times = [];

  tick(now = performance.now()) {
    this.#times.push(now);
    if (this.#times.length > 400) this.#times.splice(0, 200);
  }

  perSecond(now = performance.now()) {
    while (this.#times.length > 0 && now - this.#times[0] > 1_000) this.#times.shift();
    return this.#times.length;
  }
}

/** Less than this share of the frames gets through: the network is slow. */
const SLOW_SHARE = 0.7;
/** Over this time, so that one hiccup says nothing. */
const SHARE_MS = 3_000;
/** Fewer frames a second than this are no stream. */
const STREAM_RATE = 5;

/** How many frames get through, of all that there were: from two counts that only grow. */
export class Share {
  #samples = [];

  /** Another connection counts from its own beginning. */
  clear() {
    this.#samples = [];
  }

  /** `through` and `lost` since the beginning; frames a second of the last seconds when few get through, else null. */
  add(through, lost, now) {
    this.#samples.push({ through, lost, now });
    while (this.#samples.length > 2 && now - this.#samples[1].now >= SHARE_MS) this.#samples.shift();
    const first = this.#samples[0];
    const seconds = (now - first.now) / 1_000;
    if (seconds * 1_000 < SHARE_MS) return null;
    const done = (through - first.through) / seconds;
    const all = done + (lost - first.lost) / seconds;
    return all >= STREAM_RATE && done / all < SLOW_SHARE ? { done: Math.round(done), all: Math.round(all) } : null;
  }
}

/** Round trips to the other device and back, in milliseconds; shown is their median, so that one hiccup does not jump. */
export class Delay {
  #recent = [];

  add(roundTrip) {
    this.#recent.push(roundTrip);
    if (this.#recent.length > 600) this.#recent.splice(0, 300);
  }

  clear() {
    this.#recent = [];
  }

  /** The median since the last call; null when nothing was measured. */
  take() {
    const sorted = this.#recent.splice(0).sort((a, b) => a - b);
    return sorted.length === 0 ? null : sorted[sorted.length >> 1];
  }
}

/** A line of the last measurements, as an SVG path in a box of 120 x 32. */
export class Sparkline {
  #line;
  #area;
  #values = [];

  constructor(svg) {
    this.#line = svg.querySelector("[data-line]");
    this.#area = svg.querySelector("[data-area]");
  }

  add(value) {
    this.#values.push(value);
    if (this.#values.length > 60) this.#values.shift();
    const top = Math.max(4, ...this.#values.filter((each) => each !== null)) * 1.15;
    const points = this.#values
      .map((each, i) => (each === null ? null : `${(120 - (this.#values.length - 1 - i) * (120 / 59)).toFixed(1)} ${(31 - (each / top) * 28).toFixed(1)}`))
      .filter((point) => point !== null);
    this.#line.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
    this.#area.setAttribute("d", points.length > 1 ? `M${points.join("L")}L120 32L${points[0].split(" ")[0]} 32Z` : "");
  }
}
