// How a person moves their face: pointer, touch, keys, buttons, and the motion of the phone.
import { calm, clamp, mix } from "./pose.js";

/** What can be done to a face: the name on its button, its key, and how it looks at full strength. */
export const EXPRESSIONS = {
  smile: { label: "Smile", key: "s", pose: { smile: 1, blush: 0.9, mouth: 0.3, browL: 0.25, browR: 0.25 } },
  wink: { label: "Wink", key: "w", pose: { eyeR: -1, smile: 0.8, blush: 0.5, browL: 0.5, roll: 0.25 } },
  surprise: { label: "Wow", key: "o", pose: { eyeL: 1, eyeR: 1, browL: 1, browR: 1, mouth: 0.85, smile: -0.1, pitch: 0.2 } },
  frown: { label: "Grump", key: "f", pose: { browL: -1, browR: -1, smile: -0.9, eyeL: -0.3, eyeR: -0.3, pitch: -0.3 } },
  blink: { label: "Blink", key: "b", pose: { eyeL: -1, eyeR: -1 } },
};

/** The head's buttons: what each is called, and the key that does the same. */
export const HEAD = {
  ArrowLeft: { label: "Turn left", path: "M19 12H6m5-6-6 6 6 6" },
  ArrowRight: { label: "Turn right", path: "M5 12h13m-5-6 6 6-6 6" },
  ArrowUp: { label: "Nod up", path: "M12 19V6m-6 5 6-6 6 6" },
  ArrowDown: { label: "Nod down", path: "M12 5v13m-6-5 6 6 6-6" },
  q: { label: "Tilt left", path: "M5 9a8 8 0 1 1 1 8M5 4v5h5" },
  e: { label: "Tilt right", path: "M19 9a8 8 0 1 0-1 8M19 4v5h-5" },
};

const ARROWS = { ArrowLeft: ["yaw", -1], ArrowRight: ["yaw", 1], ArrowUp: ["pitch", 1], ArrowDown: ["pitch", -1], q: ["roll", -1], e: ["roll", 1] };

/** Even a short tap is a whole blink. */
const SHORTEST_MS = 170;
/** A click, a spoken command, a switch: nothing that could be held, so the face stays this long. */
const CLICK_MS = 1_200;
/** What was held longer than a click needs no more time. */
const HELD_MS = 500;
/** How far one click turns the head. */
const NUDGE = 0.4;

/** A person who does nothing hands the face back to its idle motion after a while, and slowly. */
const REST_MS = 2_500;
const FADE_MS = 1_400;

export class Input {
  #look = calm();
  #lookedAt = -Infinity;
  #arrows = new Set();
  #drag = null;
  #held = new Map(); // expression -> { since, until }
  #strength = new Map(); // expression -> 0..1, eased
  #level = null; // how the phone was held at first
  #onExpression;
  #lettersOn = true;

  /** Whether the mouse turns the head wherever it goes; not while a camera does. */
  mouseTurns = true;

  /** `onExpression(name, active)` follows what is held down, whichever way. */
  constructor(stage, onExpression) {
    this.#onExpression = onExpression;
    window.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse" && this.mouseTurns) this.#follow(event);
    });
    stage.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse" && this.mouseTurns) return;
      this.#drag = { id: event.pointerId, x: event.clientX, y: event.clientY, size: Math.min(stage.clientWidth, stage.clientHeight) / 2.6 };
    });
    window.addEventListener("pointermove", (event) => {
      const drag = this.#drag;
      if (drag?.id === event.pointerId) this.#turn((event.clientX - drag.x) / drag.size, (drag.y - event.clientY) / drag.size);
    });
    for (const type of ["pointerup", "pointercancel"]) {
      window.addEventListener(type, (event) => {
        if (this.#drag?.id === event.pointerId) this.#drag = null;
      });
    }
    window.addEventListener("keydown", (event) => this.#onKey(event, true));
    window.addEventListener("keyup", (event) => this.#onKey(event, false));
    window.addEventListener("blur", () => {
      this.#arrows.clear();
      for (const name of this.#held.keys()) this.release(name);
    });
  }

  /** Letters and digits as shortcuts can be switched off: who dictates text would set them off (WCAG 2.1.4). */
  set letters(on) {
    this.#lettersOn = on;
    if (on) return;
    this.#arrows.delete("q");
    this.#arrows.delete("e");
    for (const name of this.#held.keys()) this.release(name);
  }

  /** A button of an expression: held with a finger, the mouse, Space or Enter, or clicked by whatever can click. */
  bindButton(button, name) {
    whileHeld(button, () => this.hold(name), () => this.release(name), () => this.flash(name));
  }

  /** A button of the head: turns it while it is held, and a little by a click. */
  bindHead(button, arrow) {
    const [field, sign] = ARROWS[arrow];
    const nudge = () => {
      this.#look[field] = clamp(this.#look[field] + sign * NUDGE);
      this.#lookedAt = performance.now();
    };
    whileHeld(button, () => this.#arrows.add(arrow), () => this.#arrows.delete(arrow), nudge);
  }

  /** Shows an expression for a moment. */
  flash(name) {
    const now = performance.now();
    this.#held.set(name, { since: now, until: now + (name === "blink" ? SHORTEST_MS : CLICK_MS) });
    this.#onExpression(name, true);
    setTimeout(() => this.#held.get(name)?.until === Infinity || this.#onExpression(name, this.#held.has(name)), CLICK_MS + 50);
  }

  hold(name) {
    const held = this.#held.get(name);
    if (held?.until === Infinity) return;
    this.#held.set(name, { since: performance.now(), until: Infinity });
    this.#onExpression(name, true);
  }

  release(name) {
    const held = this.#held.get(name);
    if (!held || held.until !== Infinity) return;
    held.until = Math.max(performance.now(), held.since + SHORTEST_MS);
    this.#onExpression(name, false);
  }

  /** Browsers report a device's turn only to https and localhost pages; iOS only after a tap and a question. */
  static get canUseMotion() {
    return window.isSecureContext && "DeviceOrientationEvent" in window && matchMedia("(pointer: coarse)").matches;
  }

  /** False when the person or the device said no; touch works as before. */
  async useMotion() {
    const ask = DeviceOrientationEvent.requestPermission;
    if (ask && (await ask.call(DeviceOrientationEvent).catch(() => "denied")) !== "granted") return false;
    window.addEventListener("deviceorientation", (event) => this.#tilt(event));
    return true;
  }

  /** `idle` with what the person does, and whether they do anything. */
  pose(idle, now, elapsed) {
    if (this.#drag || this.#arrows.size > 0) this.#lookedAt = now;
    for (const arrow of this.#arrows) {
      const [field, sign] = ARROWS[arrow];
      this.#look[field] = clamp(this.#look[field] + (sign * elapsed) / 320);
      if (field === "yaw") this.#look.gazeX = this.#look.yaw * 0.8;
      if (field === "pitch") this.#look.gazeY = this.#look.pitch * 0.8;
    }
    const attention = clamp(1 - (now - this.#lookedAt - REST_MS) / FADE_MS, 0, 1);
    if (attention === 0) this.#look = calm();
    // The face goes on breathing and blinking under the person's hand.
    const looking = { ...idle };
    for (const field of ["yaw", "pitch", "roll", "gazeX", "gazeY"]) looking[field] = this.#look[field] + 0.12 * idle[field];
    let pose = mix(idle, looking, attention * attention * (3 - 2 * attention));
    let expressing = false;
    for (const [name, { pose: full }] of Object.entries(EXPRESSIONS)) {
      const held = this.#held.get(name);
      if (held && held.until < now) this.#held.delete(name);
      const strength = this.#ease(name, this.#held.has(name) ? 1 : 0, elapsed);
      if (strength > 0.01) pose = mix(pose, { ...pose, ...full }, strength);
      expressing ||= strength > 0.1;
    }
    return { pose, live: attention > 0 || expressing };
  }

  #ease(name, target, elapsed) {
    const strength = this.#strength.get(name) ?? 0;
    const next = strength + (target - strength) * (1 - Math.exp(-elapsed / (name === "blink" ? 28 : 75)));
    this.#strength.set(name, next);
    return next;
  }

  #follow({ clientX, clientY }) {
    this.#turn((clientX / innerWidth) * 2 - 1, 1 - (clientY / innerHeight) * 2);
  }

  #turn(x, y) {
    Object.assign(this.#look, { yaw: clamp(x), pitch: clamp(y), roll: clamp(x * -y * 0.35), gazeX: clamp(x * 1.1), gazeY: clamp(y * 1.1) });
    this.#lookedAt = performance.now();
  }

  #tilt({ beta, gamma }) {
    if (beta === null || gamma === null || this.#drag) return;
    this.#level ??= { beta, gamma };
    const x = (gamma - this.#level.gamma) / 32;
    const y = (beta - this.#level.beta) / 28;
    // People change how they hold a phone: what lasts becomes level.
    this.#level.beta += (beta - this.#level.beta) * 0.002;
    this.#level.gamma += (gamma - this.#level.gamma) * 0.002;
    if (Math.abs(x) + Math.abs(y) > 0.08) this.#lookedAt = performance.now();
    Object.assign(this.#look, { yaw: clamp(x), roll: clamp(x * 0.7), pitch: clamp(y), gazeX: clamp(x * 0.5), gazeY: clamp(y * 0.5) });
  }

  #onKey(event, down) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const name = Object.keys(EXPRESSIONS).find((expression) => EXPRESSIONS[expression].key === key);
    if (key.length === 1 && !this.#lettersOn) return;
    if (name) down ? this.hold(name) : this.release(name);
    // Arrows belong to a focused group of radio buttons first, and up and down to a page that scrolls.
    else if (key in ARROWS && !event.target.closest?.("input, [role=radiogroup]")) {
      const scrolls = ARROWS[key][0] === "pitch" && document.documentElement.scrollHeight > innerHeight;
      if (!scrolls) event.preventDefault();
      if (down) this.#arrows.add(key);
      else this.#arrows.delete(key);
    }
  }
}

/** Calls `hold` and `release` around a press, and `click` for one that was too short to be seen, or no press at all. */
function whileHeld(button, hold, release, click) {
  let since = null;
  let last = { lasted: 0, at: -Infinity };
  const press = () => {
    since = performance.now();
    hold();
  };
  const end = () => {
    if (since === null) return;
    last = { lasted: performance.now() - since, at: performance.now() };
    since = null;
    release();
  };
  button.addEventListener("pointerdown", press);
  for (const type of ["pointerup", "pointercancel", "pointerleave", "keyup", "blur"]) button.addEventListener(type, end);
  button.addEventListener("keydown", ({ key, repeat }) => (key === " " || key === "Enter") && !repeat && press());
  button.addEventListener("click", () => {
    // The click that ends a long press has nothing to add.
    const endsLongPress = last.lasted >= HELD_MS && performance.now() - last.at < 100;
    if (!endsLongPress) click();
  });
  button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long press on a phone
}
