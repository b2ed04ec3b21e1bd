// The play page: the picture, the past minutes on a slider, the panels.
// The messages are those of messages.py; play_connection.js brings them, hands are play_controls.js, figures
// play_statistics.js.

import { Connection } from "./play_connection.js";
import { Controls } from "./play_controls.js";
import { Beside, unpack } from "./play_real.js";
import { Statistics } from "./play_statistics.js";

const FRAME = 1, SAVE = 2;
const HEADER_BYTES = 24;
const FULL = 4001, REPLACED = 4002, IDLE = 4003; // why the server closed
const RETRY_MS = 1000;
const SLOW = 0.9; // a real-time factor below it is told

const at = (id) => document.getElementById(id);
const stage = at("stage"), slider = at("slider"), bar = at("bar");
const canvas = document.querySelector("#dream canvas");
const picture = canvas.getContext("2d", { alpha: false });
const statistics = new Statistics();
const connection = new Connection({ address, received, opened: () => { isAway = false; }, closed });
const send = (message) => connection.send(message);
const controls = new Controls(stage, at("touch"), sendInput);
const beside = new Beside(send);

let model = null; // the server's greeting
let session = sessionStorage.getItem("session") ?? "";
let game = -1, timeline = -1; // which game, and how many jumps within the session
let kept = []; // {frame, blob} of the past minutes, oldest first
let reviewed = null; // the kept frame that is looked at while the game stands still
let isPaused = false, isAway = false; // isAway: a key is needed to come back
let isBack = false; // on a new connection: another window may have jumped meanwhile
let inputNumber = 0, buttonsDown = 0;
let settings = {}; // steps, guidance, noise: as the server has them, or was just asked to
let asked = {}; // settings last sent: what says yes to older ones comes too late to be shown
const isLastAsked = (reply) => Object.entries(asked).every(([name, value]) => reply[name] === value);
let newest = null; // decoded, not painted yet
let saves = []; // {name, contents}

// ---------------------------------------------------------------------------------------------- connection

function address() {
  const found = new URL("play", location.href);
  found.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  found.searchParams.set("token", new URLSearchParams(location.search).get("token") ?? "");
  found.searchParams.set("session", session);
  return found;
}

function closed(code) {
  controls.releaseAll();
  statistics.interrupt();
  document.body.classList.add("is-waiting");
  isAway = code === REPLACED || code === IDLE;
  if (code === REPLACED) say("This game goes on in another window. Press any key to take it back.");
  else if (code === IDLE) say("You were away for a while. Press any key to play.");
  else if (code === FULL) say(`All ${model?.seats ?? ""} seats are taken. You get the next one that is free.`);
  else explainLoss();
  return isAway ? null : code === FULL ? 3 * RETRY_MS : RETRY_MS;
}

async function explainLoss() {
  say("The connection is lost. Trying again…");
  const answer = await fetch(location.href).catch(() => null);
  if (answer?.status === 403 && !connection.isOpen) {
    say("The server was started anew and asks for another token. Open the address that it printed.");
  }
}

function received(message) {
  if (message instanceof ArrayBuffer) receiveBytes(message);
  else if (message.type === "welcome") welcome(message);
  else if (message.type === "full") model = { seats: message.seats };
  else if (message.type === "jumped") jumped(message);
  else if (message.type === "beside") beside.told(message);
  else if (message.type === "settings" && (!message.is_accepted || isLastAsked(message))) showSettings(message, message.is_refused);
  else if (message.type === "problem") say(message.text, true);
  else if (message.type === "recording") showRecording(message);
}

function welcome(message) {
  model = message;
  if (message.session !== session) game = -1;
  session = message.session;
  sessionStorage.setItem("session", session);
  inputNumber = 0;
  isPaused = false;
  isBack = true;
  leaveReview();
  statistics.clear();
  canvas.width = message.width;
  canvas.height = message.height;
  controls.use(message.buttons);
  beside.use(message);
  at("steps").max = message.possible_steps.length - 1; // a place in that list
  at("guidance").max = message.most_guidance;
  at("noise").max = message.noise_levels - 1;
  showSettings(message.settings);
  showKeys();
  showRecording({ on: false });
  showPause();
  document.body.classList.remove("is-waiting");
  say("");
}

function jumped(message) {
  const isKnown = message.game === game && (!isBack || message.timeline === timeline);
  kept = isKnown ? kept.filter(({ frame }) => frame < message.frame) : [];
  game = message.game;
  timeline = message.timeline;
  isBack = false;
  leaveReview();
  statistics.interrupt();
  beside.interrupt();
}

// ---------------------------------------------------------------------------------------------- pictures

async function receiveBytes(buffer) {
  const view = new DataView(buffer);
  if (view.getUint8(0) === SAVE) return keepSave(buffer.slice(1));
  if (view.getUint8(0) !== FRAME) return;
  const frame = {
    action: view.getUint16(2, true), timeline: view.getUint32(4, true), frame: view.getUint32(8, true),
    input: view.getUint32(12, true), engineMs: view.getFloat32(16, true), realTimeFactor: view.getFloat32(20, true),
    ...unpack(view, HEADER_BYTES, view.getUint8(1) === 1),
  };
  [frame.bitmap, frame.realBitmap] = await Promise.all([frame.blob, frame.real?.blob].map((blob) => blob && createImageBitmap(blob)));
  send({ type: "seen", timeline: frame.timeline, frame: frame.frame });
  if (frame.timeline !== timeline || (newest !== null && newest.timeline === timeline && newest.frame > frame.frame)) return discard(frame);
  kept.push({ frame: frame.frame, blob: frame.blob, real: frame.real });
  const most = Math.round(model.history_s * model.frames_per_second);
  if (kept.length > most) kept.splice(0, kept.length - most);
  if (reviewed !== null) return discard(frame);
  if (newest === null) requestAnimationFrame(paint);
  else discard(newest);
  newest = frame;
}

function discard({ bitmap, realBitmap }) {
  bitmap.close();
  realBitmap?.close();
}

function paint() {
  const frame = newest;
  newest = null;
  if (reviewed !== null) return discard(frame);
  draw(frame.bitmap);
  beside.paint(frame.real, frame.realBitmap);
  document.body.dataset.frame = frame.frame;
  document.body.dataset.action = model.actions[frame.action] ?? "";
  document.body.dataset.rate = frame.realTimeFactor;
  showClock();
  const channel = new MessageChannel(); // its message comes after the painting
  channel.port1.onmessage = () => {
    statistics.paintedAt(performance.now(), frame, model.frames_per_second);
    channel.port1.close();
  };
  channel.port2.postMessage(0);
}

function draw(bitmap) {
  picture.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
}

// ---------------------------------------------------------------------------------------------- playing

function sendInput(buttons, timeStamp) {
  if (buttons.length > 0 && !comeBack()) return;
  inputNumber += 1;
  if (buttons.length > 0 && buttons.length >= buttonsDown) statistics.pressed(inputNumber, timeStamp);
  buttonsDown = buttons.length;
  send({ type: "input", number: inputNumber, buttons });
}

// Plays on, whatever it was that held the game up; returns whether there is a connection.
function comeBack() {
  if (isAway) {
    isAway = false;
    say("");
    connection.open();
  }
  if (!connection.isOpen) return false;
  if (reviewed !== null && reviewed !== kept.at(-1)) send({ type: "rewind", timeline, frame: reviewed.frame });
  leaveReview();
  if (isPaused) setPaused(false);
  return true;
}

function leaveReview() {
  reviewed = null;
  if (document.activeElement === slider) stage.focus(); // arrows and Space are the game's again
}

function setPaused(on) {
  isPaused = on;
  statistics.interrupt();
  send({ type: "pause", on });
  showPause();
}

function showPause() {
  at("pause").textContent = isPaused ? "▶" : "❚❚";
  at("pause").setAttribute("aria-label", isPaused ? "Play" : "Pause");
  if (connection.isOpen) say(isPaused && reviewed === null ? "Paused. Any key of the game plays on." : "");
}

function showClock() {
  const last = kept.at(-1)?.frame ?? 0;
  slider.min = kept[0]?.frame ?? 0;
  slider.max = last;
  if (reviewed === null) slider.value = last;
  const back = reviewed === null ? 0 : (last - reviewed.frame) / model.frames_per_second;
  const rate = Number(document.body.dataset.rate);
  at("clock").textContent = back > 0 ? `−${back.toFixed(1)} s` : rate < SLOW ? `live ${rate.toFixed(2)}×` : "live";
}

async function review() {
  if (kept.length === 0) return;
  if (!isPaused) setPaused(true);
  const wanted = Number(slider.value);
  reviewed = kept.findLast(({ frame }) => frame <= wanted) ?? kept[0];
  const looked = reviewed;
  showClock();
  say("Any key of the game plays on from here.", true, true);
  const bitmap = await createImageBitmap(looked.blob);
  const realBitmap = looked.real && (await createImageBitmap(looked.real.blob));
  if (reviewed !== looked) return discard({ bitmap, realBitmap });
  draw(bitmap);
  if (realBitmap) beside.review(looked.real, realBitmap);
}

slider.addEventListener("input", review);
slider.addEventListener("pointerup", () => stage.focus());
at("pause").addEventListener("click", () => (isPaused ? comeBack() : setPaused(true)));
stage.addEventListener("click", (event) => {
  if ((isPaused || isAway) && !event.target.closest(".panel")) comeBack();
});
at("new_game").addEventListener("click", () => {
  send({ type: "restart", start: Math.floor(Math.random() * Math.max(1, model?.starts ?? 1)) });
  leaveReview();
  if (isPaused) setPaused(false);
});
bar.addEventListener("mousedown", (event) => event.target.closest("button") && event.preventDefault()); // keeps the focus

window.addEventListener("keydown", (event) => {
  const target = event.target;
  if (event.code === "Escape") {
    for (const panel of document.querySelectorAll(".panel")) open(panel, false);
    return stage.focus();
  }
  if (event.metaKey || event.altKey || target.matches("input:not([type=range]):not([type=checkbox])")) return;
  const isControl = target.matches("button, input, summary");
  if (isControl && /^(Arrow|Page|Home|End|Space|Enter|Tab)/.test(event.code) && !(target === slider && event.code === "Enter")) return;
  if (event.code === "Enter" && (reviewed !== null || isPaused)) comeBack();
  if (isAway) comeBack();
  if (controls.press(event)) return event.preventDefault();
  const button = event.ctrlKey || event.repeat ? null : document.querySelector(`[data-key="${event.code}"]`);
  if (button !== null) {
    event.preventDefault();
    button.click();
  }
});
function showTouch() {
  document.body.classList.add("has-touch");
  at("touch").hidden = false;
}
window.addEventListener("touchstart", showTouch, { once: true, passive: true });
if (matchMedia("(pointer: coarse)").matches) showTouch();
document.addEventListener("visibilitychange", () => {
  if (document.hidden && connection.isOpen && !isPaused) setPaused(true);
});

// ---------------------------------------------------------------------------------------------- panels

function say(text, isPassing = false, isLasting = false) {
  const notice = at("notice");
  notice.textContent = text;
  notice.hidden = text === "";
  notice.classList.toggle("is-passing", isPassing);
  clearTimeout(say.timer);
  if (isPassing && !isLasting) say.timer = setTimeout(() => { notice.hidden = true; }, 4000);
}

function open(panel, isOpen) {
  if (isOpen) for (const other of document.querySelectorAll(".panel")) open(other, false);
  panel.hidden = !isOpen;
  document.querySelector(`[aria-controls="${panel.id}"]`).setAttribute("aria-expanded", isOpen);
}

for (const button of document.querySelectorAll("[aria-controls]")) {
  const panel = at(button.getAttribute("aria-controls"));
  button.addEventListener("click", () => open(panel, panel.hidden));
  open(panel, false);
}

// A slider that somebody is at stays where it is, unless what it says was refused.
function showSettings({ steps, guidance, noise }, isRefused = false) {
  settings = { steps, guidance, noise };
  for (const [name, value] of Object.entries(settings)) {
    const slider = at(name);
    if (isRefused || document.activeElement !== slider) slider.value = name === "steps" ? model.possible_steps.indexOf(value) : value;
    slider.setAttribute("aria-valuetext", value);
    slider.parentElement.querySelector("output").textContent = value;
  }
}

for (const name of ["steps", "guidance", "noise"]) {
  at(name).addEventListener("input", () => {
    const value = Number(at(name).value);
    showSettings({ ...settings, [name]: name === "steps" ? model.possible_steps[value] : value });
    asked = settings;
    send({ type: "settings", ...settings });
  });
}

function showKeys() {
  const plain = (code) => code.replace(/^Key|^Digit|Left$|Right$/g, (part) => (/^(Left|Right)$/.test(part) && !code.startsWith("Arrow") ? "" : /^(Left|Right)$/.test(part) ? part : "")).replace("Arrow", "").replace("Control", "Ctrl");
  const rows = model.buttons.filter(({ keys }) => keys.length > 0).map(({ name, keys }) => [name.replaceAll("_", " ").toLowerCase(), keys.map(plain)]);
  const page = [...document.querySelectorAll("[data-key]")].map((button) => [button.getAttribute("aria-label") ?? button.textContent, [plain(button.dataset.key)]]);
  const names = new Set(model.buttons.map(({ name }) => name));
  if (names.has("ATTACK")) rows.push(["attack", ["click"]]);
  if (names.has("TURN_LEFT")) rows.push(["turn", ["mouse"]]);
  at("help").querySelector("dl").replaceChildren(...[...rows, ...page, ["back to the game", ["Esc"]]].flatMap(([what, keys]) => {
    const term = document.createElement("dt"), list = document.createElement("dd");
    term.textContent = what;
    for (const key of new Set(keys)) {
      const cap = document.createElement("kbd");
      cap.textContent = key;
      list.append(cap, " ");
    }
    return [term, list];
  }));
}

setInterval(() => {
  if (!at("statistics").hidden) statistics.show(at("statistics").querySelector("tbody"));
}, 300);

function download(name, contents, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([contents], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// What the page has measured, with what it was measured on.
export function report() {
  const { model: name, preset, device, frames_per_second } = model;
  return {
    model: name, preset, device, nominal_frames_per_second: frames_per_second, settings, ...statistics.summary(),
    beside: beside.summary(), browser: navigator.userAgent, measured_at: new Date().toISOString(),
  };
}
window.report = report;
window.forgetStatistics = () => statistics.clear();

at("save_statistics").addEventListener("click", () => {
  download("play_statistics.json", `${JSON.stringify(report(), null, 2)}\n`, "application/json");
});

// ---------------------------------------------------------------------------------------------- saves, recording

at("save_form").addEventListener("submit", (event) => {
  event.preventDefault();
  send({ type: "save", name: at("save_name").value.trim() || `save ${saves.length + 1}` });
  at("save_name").value = "";
  stage.focus();
});

// The name that a save file tells in its header; saves.py has the format.
function nameOf(contents) {
  const headerBytes = new DataView(contents).getUint32(0, true); // of a 64-bit number the lower half
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(contents, 8, headerBytes)));
  return JSON.parse(header.__metadata__.neural_game_engine).name;
}

function keepSave(contents) {
  const save = { name: nameOf(contents), contents };
  saves = [save, ...saves];
  const line = document.createElement("li"), name = document.createElement("span");
  name.textContent = save.name;
  const act = (label, action) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", action);
    return button;
  };
  const buttons = document.createElement("span");
  buttons.append(act("Load", () => load(save.contents)), " ", act("Download", () => download(`${save.name}.save`, save.contents, "application/octet-stream")));
  line.append(name, buttons);
  at("saves").querySelector("ul").prepend(line);
  say(`Saved “${save.name}”.`, true);
}

function load(contents) {
  if (!connection.isOpen) return;
  const message = new Uint8Array(contents.byteLength + 1);
  message[0] = SAVE;
  message.set(new Uint8Array(contents), 1);
  send(message);
  leaveReview();
  if (isPaused) setPaused(false);
  stage.focus();
}

at("open_save").addEventListener("click", () => at("save_file").click());
at("save_file").addEventListener("change", async () => {
  const file = at("save_file").files[0];
  at("save_file").value = "";
  if (file) load(await file.arrayBuffer());
});

at("record").addEventListener("click", () => {
  send({ type: "record", on: at("record").getAttribute("aria-pressed") !== "true", episode: at("episode").checked });
});

function showRecording({ on, text }) {
  at("record").setAttribute("aria-pressed", on);
  if (text) say(text, true);
}

connection.open();
stage.focus();
