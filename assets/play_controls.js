// What a person's hands do, as the set of the game's buttons that are down, oldest first: keyboard, mouse, gamepad, touch.
// Knows nothing of connections and pictures. `changed(buttons, timeStamp)` is called whenever the set changes.

const TURN_MS = 90; // how long a mouse movement holds a turn button
const DEAD_ZONE = 0.35; // of a gamepad's sticks
const SYMBOLS = {
  MOVE_FORWARD: "▲", MOVE_BACKWARD: "▼", MOVE_LEFT: "◀", MOVE_RIGHT: "▶", TURN_LEFT: "⟲", TURN_RIGHT: "⟳", ATTACK: "FIRE",
};
const LEFT_PAD = [null, "MOVE_FORWARD", null, "MOVE_LEFT", "MOVE_BACKWARD", "MOVE_RIGHT"];
const RIGHT_PAD = ["ATTACK", "TURN_LEFT", "TURN_RIGHT"];

export class Controls {
  constructor(stage, touch, changed) {
    this.stage = stage;
    this.touch = touch;
    this.changed = changed;
    this.keys = new Map(); // KeyboardEvent.code -> button
    this.names = new Set();
    this.down = new Map(); // source ("key:KeyW", "touch:3", ...) -> button, in order of pressing
    this.pointers = new Map(); // pointerId -> element held
    stage.addEventListener("mousedown", (event) => this.mouse(event));
    window.addEventListener("mouseup", (event) => this.set("mouse", null, event.timeStamp));
    window.addEventListener("mousemove", (event) => this.turn(event));
    window.addEventListener("keyup", (event) => this.set(`key:${event.code}`, null, event.timeStamp));
    window.addEventListener("blur", () => this.releaseAll());
    document.addEventListener("visibilitychange", () => document.hidden && this.releaseAll());
    this.isPolling = false;
    window.addEventListener("gamepadconnected", () => {
      if (!this.isPolling) this.pollGamepads();
    });
    window.addEventListener("beforeunload", (event) => {
      // Ctrl fires in Doom, and with W it closes the tab: ask first.
      if (this.down.has("key:ControlLeft") || this.down.has("key:ControlRight")) event.preventDefault();
    });
  }

  use(buttons) {
    this.keys = new Map(buttons.flatMap(({ name, keys }) => keys.map((key) => [key, name])));
    this.names = new Set(buttons.map(({ name }) => name));
    this.releaseAll();
    this.buildTouch(buttons.map(({ name }) => name));
  }

  // Takes a keydown; returns whether it is a key of the game.
  press(event) {
    const button = this.keys.get(event.code);
    if (button === undefined) return false;
    if (!event.repeat) this.set(`key:${event.code}`, button, event.timeStamp);
    return true;
  }

  set(source, button, timeStamp) {
    const before = this.buttons().join();
    if (button === null) this.down.delete(source);
    else if (this.down.get(source) !== button) {
      this.down.delete(source);
      this.down.set(source, button);
    }
    const now = this.buttons();
    if (now.join() !== before) this.changed(now, timeStamp);
  }

  buttons() {
    return [...new Set([...this.down.values()].reverse())].reverse(); // a button counts from its newest press
  }

  releaseAll() {
    const hadSome = this.down.size > 0;
    this.down.clear();
    for (const element of this.touch.querySelectorAll(".is-down")) element.classList.remove("is-down");
    this.pointers.clear();
    if (hadSome) this.changed([], performance.now());
  }

  // ---- mouse: click fires, and while the picture holds the pointer its movement turns

  mouse(event) {
    if (event.button !== 0 || event.target.closest("button, input, .panel") || !this.names.has("ATTACK")) return;
    if (event.pointerType === "touch" || document.body.classList.contains("has-touch")) return;
    this.set("mouse", "ATTACK", event.timeStamp);
    if (this.names.has("TURN_LEFT") && !document.pointerLockElement) {
      Promise.resolve(this.stage.requestPointerLock?.()).catch(() => {});
    }
  }

  turn(event) {
    if (!document.pointerLockElement || Math.abs(event.movementX) < 2) return;
    this.set("turn", event.movementX < 0 ? "TURN_LEFT" : "TURN_RIGHT", event.timeStamp);
    clearTimeout(this.turning);
    this.turning = setTimeout(() => this.set("turn", null, performance.now()), TURN_MS);
  }

  // ---- gamepad: left stick and cross move, right stick turns, A or a trigger fires

  pollGamepads() {
    const pads = [...navigator.getGamepads()].filter((pad) => pad);
    if (pads.length === 0) {
      this.isPolling = false;
      for (const source of [...this.down.keys()].filter((each) => each.startsWith("pad:"))) this.set(source, null, performance.now());
      return;
    }
    this.isPolling = true;
    const held = (number) => pads.some((pad) => pad.buttons[number]?.pressed);
    const pushed = (axis, sign) => pads.some((pad) => (pad.axes[axis] ?? 0) * sign > DEAD_ZONE);
    const wanted = {
      MOVE_FORWARD: pushed(1, -1) || held(12), MOVE_BACKWARD: pushed(1, 1) || held(13),
      MOVE_LEFT: pushed(0, -1), MOVE_RIGHT: pushed(0, 1),
      TURN_LEFT: pushed(2, -1) || held(14) || held(4), TURN_RIGHT: pushed(2, 1) || held(15) || held(5),
      ATTACK: held(0) || held(6) || held(7), USE: held(2),
    };
    for (const [button, isDown] of Object.entries(wanted)) {
      if (this.names.has(button)) this.set(`pad:${button}`, isDown ? button : null, performance.now());
    }
    requestAnimationFrame(() => this.pollGamepads());
  }

  // ---- touch: buttons on the picture; a thumb may slide from one to the next

  buildTouch(names) {
    this.touch.replaceChildren();
    const pad = (kind, wanted) => {
      const box = document.createElement("div");
      box.className = `pad ${kind}`;
      for (const name of wanted) {
        const isThere = name !== null && names.includes(name);
        const element = document.createElement(isThere ? "button" : "span");
        if (isThere) {
          element.type = "button";
          element.tabIndex = -1;
          element.dataset.button = name;
          element.textContent = SYMBOLS[name] ?? name.replaceAll("_", " ").toLowerCase();
          element.setAttribute("aria-label", name.replaceAll("_", " ").toLowerCase());
          element.classList.toggle("wide", name === "ATTACK");
        }
        box.append(element);
      }
      if (box.querySelector("button")) this.touch.append(box);
    };
    pad("left", LEFT_PAD);
    pad("right", RIGHT_PAD);
    pad("more", names.filter((name) => !LEFT_PAD.includes(name) && !RIGHT_PAD.includes(name)));
    this.touch.onpointerdown = (event) => this.slide(event, true);
    this.touch.onpointermove = (event) => this.slide(event, false);
    this.touch.onpointerup = this.touch.onpointercancel = (event) => this.lift(event);
    this.touch.oncontextmenu = (event) => event.preventDefault();
  }

  slide(event, isNew) {
    if (!isNew && !this.pointers.has(event.pointerId)) return;
    if (isNew) event.target.releasePointerCapture?.(event.pointerId);
    const element = document.elementFromPoint(event.clientX, event.clientY)?.closest("[data-button]") ?? null;
    const before = this.pointers.get(event.pointerId);
    if (before === element) return;
    before?.classList.remove("is-down");
    element?.classList.add("is-down");
    this.pointers.set(event.pointerId, element);
    this.set(`touch:${event.pointerId}`, element?.dataset.button ?? null, event.timeStamp);
  }

  lift(event) {
    this.pointers.get(event.pointerId)?.classList.remove("is-down");
    this.pointers.delete(event.pointerId);
    this.set(`touch:${event.pointerId}`, null, event.timeStamp);
  }
}
