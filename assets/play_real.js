// What stands beside the dream: the real game's picture, how near the dream is to it, and the buttons for both.
// Knows no connection; `send(message)` is given to it. The messages are those of messages.py.

const HEADER_BYTES = 12; // of what follows a picture's own header
const GRAPH_SAMPLES = 240;
const GRAPH_DB = [5, 40]; // bottom and top of the graph

// The pictures in a binary message behind its header: the dream's, and the real one where there is one.
export function unpack(view, offset, hasReal) {
  const jpeg = (start, end) => new Blob([new Uint8Array(view.buffer, start, end - start)], { type: "image/jpeg" });
  if (!hasReal) return { blob: jpeg(offset, view.byteLength), real: null };
  const start = offset + HEADER_BYTES, middle = start + view.getUint32(offset, true);
  const [psnr, still] = [view.getFloat32(offset + 4, true), view.getFloat32(offset + 8, true)];
  return { blob: jpeg(start, middle), real: { blob: jpeg(middle, view.byteLength), psnr, still } };
}

export class Beside {
  constructor(send) {
    this.send = send;
    this.at = (id) => document.getElementById(id);
    this.canvas = document.querySelector("#real canvas");
    this.what = "nothing";
    this.keys = "person"; // who has them: person, agent or recording
    this.samples = []; // of the PSNR since the last re-sync
    this.at("resync").addEventListener("click", () => this.what !== "nothing" && send({ type: "resync" }));
    this.at("game_button").addEventListener("click", () => this.choose(this.what === "game" ? "nothing" : "game"));
    this.at("alone").addEventListener("click", () => this.choose("nothing"));
    this.at("agent").addEventListener("click", () => send({ type: "agent", on: this.keys === "person" }));
  }

  choose(what, episode = 0) {
    this.send({ type: "beside", what, episode });
  }

  // The server's greeting: what there is, and why not.
  use({ width, height, game, agent, episodes }) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.names = { game: game.name, agent: agent.name, episodes };
    this.at("game_button").disabled = game.why_not !== null;
    this.at("game_button").textContent = game.name === null ? "Real game" : `Real game: ${game.name}`;
    this.at("game_why").textContent = game.why_not ?? "";
    this.at("agent").disabled = agent.why_not !== null;
    this.at("agent_why").textContent = agent.why_not ?? "";
    this.at("episode_title").hidden = episodes.length === 0;
    this.at("episode_list").replaceChildren(...episodes.map(({ name, seconds }, number) => {
      const line = document.createElement("li");
      const act = (label, what) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = label;
        button.addEventListener("click", () => this.choose(what, number));
        line.append(button);
      };
      act(`${name}, ${seconds.toFixed(0)} s`, "episode");
      if (game.why_not === null) act("in the real game", "keys");
      return line;
    }));
    this.told({ what: "nothing", state: "nothing", keys: "person", ceiling_db: null });
  }

  told({ what, state, keys, ceiling_db }) {
    if (what === "nothing" || state === "starting") this.samples = [];
    this.what = what;
    this.state = state;
    this.ceiling = ceiling_db;
    this.keys = keys;
    document.body.classList.toggle("is-beside", what !== "nothing");
    document.body.dataset.beside = state;
    this.at("real").hidden = what === "nothing";
    this.at("game_button").setAttribute("aria-pressed", what === "game");
    this.at("agent").setAttribute("aria-pressed", keys === "agent");
    this.at("keys_of").textContent = keys === "person" ? "" : `the ${keys} has the keys`;
    this.at("real_name").textContent = what === "episode" ? "Recorded" : "Real";
    this.showMeter(null);
  }

  // The real picture of the frame that is painted now, null where there is none.
  paint(real, bitmap) {
    if (real === null) return;
    if (Number.isFinite(real.psnr)) {
      this.samples.push(real);
      if (this.samples.length > GRAPH_SAMPLES) this.samples.shift();
    }
    this.review(real, bitmap);
  }

  // One of the past.
  review(real, bitmap) {
    this.canvas.getContext("2d", { alpha: false }).drawImage(bitmap, 0, 0, this.canvas.width, this.canvas.height);
    bitmap.close();
    this.showMeter(real);
  }

  // A jump: what is measured next belongs to another stretch.
  interrupt() {
    this.samples = [];
  }

  showMeter(real) {
    const text = (value) => (value !== null && Number.isFinite(value) ? value.toFixed(1) : "–");
    this.at("psnr").textContent = text(real?.psnr ?? null);
    document.body.dataset.psnr = text(real?.psnr ?? null);
    const states = {
      starting: "The real game is starting…", apart: "Not in step: the dream has jumped.",
      in_step: `still picture ${text(real?.still ?? null)} · autoencoder’s best ${text(this.ceiling)}`,
    };
    this.at("meter_text").textContent = states[this.state] ?? "";
    this.drawGraph();
  }

  drawGraph() {
    const graph = this.at("psnr_graph"), pen = graph.getContext("2d");
    const { width, height } = graph;
    const y = (db) => height - (height * (Math.min(GRAPH_DB[1], Math.max(GRAPH_DB[0], db)) - GRAPH_DB[0])) / (GRAPH_DB[1] - GRAPH_DB[0]);
    const line = (values, colour) => {
      pen.strokeStyle = colour;
      pen.beginPath();
      values.forEach((db, place) => pen.lineTo((place * width) / Math.max(59, values.length - 1), y(db)));
      pen.stroke();
    };
    pen.clearRect(0, 0, width, height);
    pen.lineWidth = 1.5;
    line(this.samples.map(({ still }) => still), "#5b616d");
    line(this.samples.map(({ psnr }) => psnr), "#e0a458");
  }

  // What is measured since the last re-sync, for the page's report; null where nothing is.
  summary() {
    if (this.samples.length === 0) return null;
    const mean = (name) => this.samples.reduce((sum, each) => sum + each[name], 0) / this.samples.length;
    return {
      what: this.what, frames: this.samples.length, mean_psnr_db: mean("psnr"), mean_still_psnr_db: mean("still"), ceiling_psnr_db: this.ceiling,
    };
  }
}
