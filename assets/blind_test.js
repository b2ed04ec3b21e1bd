// The blind test's page: plays a pair of films side by side, frame by frame, and sends what was taken for real.
// The server, blind_server.py, says what to show and never which is which.

const FULL = 4001, IDLE = 4003; // why the server closed
const RETRY_MS = 1500;

const at = (id) => document.getElementById(id);
const canvases = [at("first"), at("second")];
const choices = [...document.querySelectorAll("[data-choice]")];

let socket = null;
let pair = null; // the server's letter on the pair that is shown
let frames = []; // ImageBitmap each: both pictures of a moment, as they lie in the file
let plays = 0; // how often the pair was played to its end
let animation = 0;

function connect() {
  const address = new URL("blind_test/rate", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.searchParams.set("token", new URLSearchParams(location.search).get("token") ?? "");
  address.searchParams.set("rater", localStorage.getItem("rater") ?? "");
  const opened = new WebSocket(address);
  opened.binaryType = "arraybuffer";
  opened.onopen = () => { socket = opened; say(""); };
  opened.onmessage = ({ data }) => (typeof data === "string" ? receive(JSON.parse(data)) : show(new Uint8Array(data)));
  opened.onclose = ({ code }) => {
    socket = null;
    if (document.body.dataset.state === "end") return;
    enable(false);
    if (code === IDLE) return say("You were away for a while. Reload the page to go on.");
    say(code === FULL ? "Many people are at it. You get the next free place." : "The connection is lost. Trying again…");
    setTimeout(connect, code === FULL ? 4 * RETRY_MS : RETRY_MS);
  };
}

function receive(message) {
  if (message.type === "rater") {
    localStorage.setItem("rater", message.rater);
    at("rater").textContent = `rater ${message.rater}`;
  } else if (message.type === "pair") pair = message;
  else if (message.type === "results") end(message);
  else if (message.type === "problem") say(message.text);
}

// Motion JPEG: a picture begins where FF D8 follows the FF D9 that ends the one before it.
function split(bytes) {
  const starts = [];
  for (let i = 0; i + 1 < bytes.length; i++) {
    const begins = bytes[i] === 0xff && bytes[i + 1] === 0xd8;
    if (begins && (i === 0 || (bytes[i - 2] === 0xff && bytes[i - 1] === 0xd9))) starts.push(i);
  }
  return starts.map((start, number) => new Blob([bytes.subarray(start, starts[number + 1])], { type: "image/jpeg" }));
}

async function show(bytes) {
  const shown = pair;
  cancelAnimationFrame(animation);
  const decoded = await Promise.all(split(bytes).map((blob) => createImageBitmap(blob)));
  if (shown !== pair) return decoded.forEach((bitmap) => bitmap.close());
  frames.forEach((bitmap) => bitmap.close());
  frames = decoded;
  plays = 0;
  for (const canvas of canvases) {
    canvas.width = pair.width;
    canvas.height = pair.height;
  }
  at("progress").textContent = `${pair.number} of ${pair.total}`;
  at("bar").max = pair.total;
  at("bar").value = pair.number - 1;
  document.activeElement?.blur();
  Object.assign(document.body.dataset, { pair: pair.pair, number: pair.number });
  play();
}

function play() {
  if (frames.length === 0) return;
  cancelAnimationFrame(animation);
  enable(false);
  document.body.dataset.state = "playing";
  const beganMs = performance.now();
  const tick = () => {
    const due = Math.floor(((performance.now() - beganMs) * pair.frames_per_second) / 1000);
    draw(Math.min(due, frames.length - 1));
    if (due < frames.length) animation = requestAnimationFrame(tick);
    else {
      plays += 1;
      document.body.dataset.state = "asking";
      enable(socket !== null);
    }
  };
  tick();
}

function draw(number) {
  canvases.forEach((canvas, place) => {
    const isRightHalf = (place === 1) !== pair.is_swapped;
    const { width, height } = pair;
    canvas.getContext("2d", { alpha: false }).drawImage(frames[number], isRightHalf ? width : 0, 0, width, height, 0, 0, width, height);
  });
  document.body.dataset.frame = number;
}

function enable(on) {
  for (const button of [...choices, at("replay")]) button.disabled = !on;
}

function answer(choice) {
  if (document.body.dataset.state !== "asking" || socket === null) return;
  document.body.dataset.state = "sent";
  enable(false);
  say("");
  socket.send(JSON.stringify({ type: "answer", pair: pair.pair, choice, plays }));
}

function end({ own, everybody }) {
  document.body.dataset.state = "end";
  at("test").hidden = at("replay").hidden = true;
  at("end").hidden = false;
  at("bar").value = at("bar").max;
  at("progress").textContent = "";
  for (const [id, lines] of Object.entries({ own, everybody })) {
    at(id).replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
  }
  socket?.close();
}

function say(text) {
  at("notice").textContent = text;
}

for (const button of choices) button.addEventListener("click", () => answer(button.dataset.choice));
at("replay").addEventListener("click", () => document.body.dataset.state === "asking" && play());
window.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^(Space|Enter)$/.test(event.code) && event.target.matches("button")) return; // presses that button
  if (/^(ArrowLeft|Digit1|KeyA)$/.test(event.code)) answer("first");
  else if (/^(ArrowRight|Digit2|KeyB)$/.test(event.code)) answer("second");
  else if (/^(Space|KeyR)$/.test(event.code)) at("replay").click();
  else return;
  event.preventDefault();
});

connect();
