// How fast the game is, as the page sees it: samples of the last minutes, their medians and 95th percentiles.
// Knows nothing of connections. A latency is the time from a key's event to the painted frame that used it.

const SAMPLES = 2000;
const RATE_FRAMES = 30;
const ROWS = {
  frame_time_ms: "frame time, ms", frames_per_second: "frames/s", real_time_factor: "real-time factor",
  key_to_picture_ms: "key to picture, ms", engine_ms: "engine, ms",
};

export class Statistics {
  constructor() {
    this.clear();
  }

  clear() {
    this.samples = Object.fromEntries(Object.keys(ROWS).map((name) => [name, []]));
    this.presses = []; // {number, time} of keys whose frame is not painted yet
    this.interrupt();
  }

  // The next frame does not follow the last one in time: a pause, a jump.
  interrupt() {
    this.painted = [];
    this.presses = [];
  }

  pressed(number, time) {
    this.presses.push({ number, time });
    if (this.presses.length > 100) this.presses.shift();
  }

  // A frame is on the screen at `time` (ms, as performance.now()).
  paintedAt(time, frame, nominalRate) {
    for (const press of this.presses.filter(({ number }) => number <= frame.input)) {
      this.add("key_to_picture_ms", time - press.time);
    }
    this.presses = this.presses.filter(({ number }) => number > frame.input);
    this.add("engine_ms", frame.engineMs);
    const last = this.painted.at(-1);
    if (last !== undefined) this.add("frame_time_ms", time - last);
    this.painted.push(time);
    if (this.painted.length > RATE_FRAMES + 1) this.painted.shift();
    if (this.painted.length > 2) {
      const rate = ((this.painted.length - 1) * 1000) / (time - this.painted[0]);
      this.add("frames_per_second", rate);
      this.add("real_time_factor", rate / nominalRate);
    }
  }

  add(name, value) {
    this.samples[name].push(value);
    if (this.samples[name].length > SAMPLES) this.samples[name].shift();
  }

  summary() {
    const quantile = (sorted, share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? null;
    return Object.fromEntries(Object.entries(this.samples).map(([name, values]) => {
      const sorted = [...values].sort((a, b) => a - b);
      return [name, {
        now: values.at(-1) ?? null, median: quantile(sorted, 0.5), percentile_95: quantile(sorted, 0.95), samples: values.length,
      }];
    }));
  }

  show(body) {
    const digits = (name) => (name === "real_time_factor" ? 2 : 1);
    const text = (name, value) => (value === null ? "–" : value.toFixed(digits(name)));
    body.replaceChildren(...Object.entries(this.summary()).map(([name, row]) => {
      const line = document.createElement("tr");
      const head = document.createElement("th");
      head.textContent = ROWS[name];
      line.append(head, ...[row.now, row.median, row.percentile_95].map((value) => {
        const cell = document.createElement("td");
        cell.textContent = text(name, value);
        return cell;
      }));
      return line;
    }));
  }
}
