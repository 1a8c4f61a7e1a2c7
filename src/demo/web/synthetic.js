// What a face does when nobody moves it: breathes, looks around, blinks; or sleeps.
import { calm } from "./pose.js";

/** A motion of its own kind per seed, so that two faces never move in step. */
export class IdleMotion {
  #phase;
  #calmness;
  #blinkAt = 0;
  #glanceAt = 0;
  #glance = { x: 0, y: 0 };
  #smileAt = 4_000;

  /** `reduced`: for people who asked for less motion: it blinks and hardly moves. */
  constructor(seed, { reduced = false } = {}) {
    this.#phase = seed * 97;
    this.#calmness = reduced ? 0.15 : 1;
  }

  /** `now` in milliseconds, growing. */
  awake(now) {
    const pose = calm();
    const t = now / 1000 + this.#phase;
    const wave = (seconds, phase = 0) => Math.sin((t / seconds) * 2 * Math.PI + phase);
    const amount = this.#calmness;
    if (now > this.#glanceAt) {
      // Eyes jump, heads follow slowly.
      this.#glanceAt = now + 900 + Math.random() * 2600;
      this.#glance = Math.random() < 0.45 ? { x: 0, y: 0 } : { x: Math.random() * 1.2 - 0.6, y: Math.random() * 0.7 - 0.3 };
    }
    pose.yaw = amount * (0.22 * wave(7.3) + 0.1 * wave(3.1, 1));
    pose.pitch = amount * (0.1 * wave(5.9, 2) + 0.04 * wave(2.3));
    pose.roll = amount * 0.16 * wave(8.7, 0.5);
    pose.gazeX = amount * this.#glance.x;
    pose.gazeY = amount * this.#glance.y;
    pose.browL = pose.browR = amount * 0.12 * wave(6.1, 3);
    if (now > this.#smileAt + 3_500) this.#smileAt = now + 3_000 + Math.random() * 5_000;
    const smiling = now > this.#smileAt ? Math.sin(((now - this.#smileAt) / 3_500) * Math.PI) : 0;
    pose.smile = 0.22 + 0.5 * smiling;
    pose.blush = 0.3 * smiling;
    const lids = this.#blink(now);
    pose.eyeL = pose.eyeR = lids;
    return pose;
  }

  asleep(now) {
    const pose = calm();
    const breath = Math.sin((now / 1000 + this.#phase) * 1.5) * this.#calmness;
    pose.pitch = -0.5 + 0.07 * breath;
    pose.roll = 0.28 + 0.03 * breath;
    pose.eyeL = pose.eyeR = -1;
    pose.smile = 0.3;
    pose.mouth = 0.1 + 0.08 * breath;
    pose.blush = 0.45;
    return pose;
  }

  #blink(now) {
    if (now > this.#blinkAt + 180) this.#blinkAt = now + 1_600 + Math.random() * 3_600;
    return now > this.#blinkAt ? -1 : 0;
  }
}
