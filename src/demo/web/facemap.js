// From the 68 points of a face to the pose of the character: pure, so that tables can test it.
//
// The points are those of the iBUG 300-W scheme, which face-api's networks were trained on: 0-16 jaw, 17-26 brows,
// 27-35 nose, 36-47 eyes, 48-67 mouth, each counted from the left of the picture. The pose is what the camera sees:
// a head that turns to the right of the picture has a positive yaw. What a person sees of themselves is mirrored, as
// in every video call (mirror()).
import { calm, clamp, FIELDS, mix } from "./pose.js";

const mean = (points, ...indices) => {
  const sum = indices.reduce(([x, y], i) => [x + points[i][0], y + points[i][1]], [0, 0]);
  return [sum[0] / indices.length, sum[1] / indices.length];
};

/** What is measured on one face: lengths in distances between the eyes, once the tilt is taken out. Roll in radians. */
export function measureFace(points) {
  const left = mean(points, 36, 37, 38, 39, 40, 41);
  const right = mean(points, 42, 43, 44, 45, 46, 47);
  const distance = Math.hypot(right[0] - left[0], right[1] - left[1]) || 1;
  const roll = Math.atan2(right[1] - left[1], right[0] - left[0]);
  const [cos, sin] = [Math.cos(roll), Math.sin(roll)];
  const middle = [(left[0] + right[0]) / 2, (left[1] + right[1]) / 2];
  const level = points.map(([x, y]) => {
    const [dx, dy] = [x - middle[0], y - middle[1]];
    return [(dx * cos + dy * sin) / distance, (dy * cos - dx * sin) / distance];
  });
  const y = (...indices) => mean(level, ...indices)[1];
  const jaw = [level[0][0], level[16][0]];
  return {
    roll,
    // -1 and 1: the tip of the nose is above one end of the jaw.
    turn: (2 * (level[30][0] - jaw[0])) / (jaw[1] - jaw[0] || 1) - 1,
    nose: level[30][1],
    open: level[66][1] - level[62][1],
    width: level[54][0] - level[48][0],
    lift: y(51, 57) - y(48, 54),
    browL: y(36, 39) - y(17, 18, 19, 20, 21),
    browR: y(42, 45) - y(22, 23, 24, 25, 26),
  };
}

/** Rows of the patch around an eye, from above the lid to the cheek, in widths of the eye. */
const EYE_FROM = -0.6;
const EYE_STEP = 0.05;
const EYE_ROWS = 25;
const EYE_COLUMNS = 11;

/**
 * How open an eye is, from its pixels: the 68 points follow lids badly. An open eye is dark over a good part of its
 * height, and the middle of the dark is high. A shut one is a thin dark line of lashes, low.
 * `rgba` has `width` pixels a row; `from` and `to` are the corners of the eye. About 0 shut, 0.5 open.
 */
export function eyeOpening({ rgba, width, height }, from, to) {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const patch = [];
  for (let row = 0; row < EYE_ROWS; row += 1) {
    const v = EYE_FROM + row * EYE_STEP;
    const line = [];
    for (let column = 0; column < EYE_COLUMNS; column += 1) {
      const u = column / (EYE_COLUMNS - 1);
      const x = clamp(Math.round(from[0] + u * dx - v * dy), 0, width - 1);
      const y = clamp(Math.round(from[1] + u * dy + v * dx), 0, height - 1);
      const i = 4 * (y * width + x);
      line.push(0.3 * rgba[i] + 0.59 * rgba[i + 1] + 0.11 * rgba[i + 2]);
    }
    patch.push(line);
  }
  const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const inner = (row) => patch[row].slice(2, 9);
  const smooth = (row, column) => (patch[row - 1][column] + patch[row][column] + patch[row + 1][column]) / 3;
  const skin = average([20, 21, 22, 23].flatMap(inner));
  let dark = Infinity;
  for (let row = 2; row < 23; row += 1) for (let column = 2; column < 9; column += 1) dark = Math.min(dark, smooth(row, column));
  const limit = dark + 0.35 * (skin - dark);
  let thickness = 0;
  for (let row = 3; row < 22; row += 1) {
    if (Math.min(...[3, 4, 5, 6, 7].map((column) => smooth(row, column))) < limit) thickness += EYE_STEP;
  }
  let darkest = 6;
  const brightness = (row) => average([row - 1, row, row + 1].flatMap(inner));
  for (let row = 7; row <= 19; row += 1) if (brightness(row) < brightness(darkest)) darkest = row;
  return thickness - (EYE_FROM + darkest * EYE_STEP);
}

/** What these are on a calm face, before this face is known. */
const USUAL = { nose: 0.58, width: 0.8, browL: 0.355, browR: 0.355, eyeL: 0.55, eyeR: 0.6 };
/** Nobody's calm face is farther from everybody's: a head that is held down for long stays down. */
const FARTHEST = { nose: 0.13, width: 0.25, browL: 0.25, browR: 0.25, eyeL: 0.3, eyeR: 0.3 };
/** Two thirds of the way to what this face usually is takes this long, at first and later. */
const LEARN_FIRST_MS = 1_500;
const LEARN_MS = 20_000;

/** Faces in, poses out. What a face is like when it does nothing differs from person to person, and is learned. */
export class FaceMap {
  #usual = { ...USUAL };
  #known = 0; // milliseconds of faces seen

  /** `face` as tracker.js gives it; `elapsed` since the last one in milliseconds. */
  pose({ points, eyes = {}, expressions = {} }, elapsed) {
    const m = measureFace(points);
    const seen = { ...m, eyeL: eyes.left ?? this.#usual.eyeL, eyeR: eyes.right ?? this.#usual.eyeR };
    const { happy = 0, neutral = 0, sad = 0, angry = 0, surprised = 0 } = expressions;
    this.#learn(seen, elapsed, neutral);
    const usual = this.#usual;
    const pose = calm();
    pose.yaw = clamp(m.turn * 2.2);
    pose.roll = clamp(m.roll / 0.42);
    pose.pitch = clamp((usual.nose - m.nose) * 4.5);
    pose.mouth = clamp((m.open - 0.05) / 0.26, 0, 1);
    const grin = clamp(0.6 * ((m.width - usual.width) / 0.17) + 0.4 * (m.lift / 0.09), 0, 1);
    pose.smile = clamp(happy * (0.3 + 0.7 * grin) - 0.7 * sad - 0.35 * angry);
    pose.blush = 0.6 * Math.max(0, pose.smile);
    for (const side of ["L", "R"]) {
      pose[`brow${side}`] = clamp((m[`brow${side}`] - usual[`brow${side}`]) / 0.07 + 0.6 * surprised - 0.8 * angry);
      const lid = seen[`eye${side}`] / usual[`eye${side}`];
      pose[`eye${side}`] = lid < 1 ? -clamp((0.78 - lid) / 0.4, 0, 1) : clamp((lid - 1.25) * 0.8 + 0.5 * surprised, 0, 1);
    }
    // Lids mostly move together, and a wink is a whole one.
    if (Math.abs(pose.eyeL - pose.eyeR) < 0.6) pose.eyeL = pose.eyeR = (pose.eyeL + pose.eyeR) / 2;
    return pose;
  }

  #learn(seen, elapsed, neutral) {
    this.#known += elapsed;
    const constant = this.#known < 2 * LEARN_FIRST_MS ? LEARN_FIRST_MS : LEARN_MS;
    const amount = 1 - Math.exp(-elapsed / constant);
    for (const field of Object.keys(USUAL)) {
      // A mouth is usual while it does nothing; an eye, while it is open.
      const weight = field === "width" ? neutral : field.startsWith("eye") && seen[field] < this.#usual[field] ? 0.1 : 1;
      const learned = this.#usual[field] + (seen[field] - this.#usual[field]) * amount * weight;
      this.#usual[field] = clamp(learned, USUAL[field] * (1 - FARTHEST[field]), USUAL[field] * (1 + FARTHEST[field]));
    }
  }
}

/** As a mirror shows it. */
export function mirror(pose) {
  return { ...pose, yaw: -pose.yaw, roll: -pose.roll, gazeX: -pose.gazeX, eyeL: pose.eyeR, eyeR: pose.eyeL, browL: pose.browR, browR: pose.browL };
}

/** Faces come 10 to 30 times a second, pictures 60 times: the pose glides to each face while the next is on its way. */
const GLIDE_LONGEST_MS = 200;
/** Changes below this are mostly the tracker's own trembling, and are followed by a third. */
const TREMBLING = 0.12;

/** Poses at the tracker's pace in, a pose for any moment out. */
export class Glide {
  #from = null;
  #to = null;
  #since = 0;
  #interval = 80;

  /** A new pose, at `now` in milliseconds. */
  add(pose, now) {
    const shown = this.at(now);
    if (!shown) {
      [this.#from, this.#to, this.#since] = [pose, pose, now];
      return;
    }
    const pause = clamp(now - this.#since, 10, GLIDE_LONGEST_MS);
    this.#interval += (pause - this.#interval) * 0.3;
    const target = {};
    for (const field of FIELDS) {
      const change = pose[field] - this.#to[field];
      target[field] = this.#to[field] + change * clamp(Math.abs(change) / TREMBLING, 0.35, 1);
    }
    [this.#from, this.#to, this.#since] = [shown, target, now];
  }

  /** Null before the first pose. */
  at(now) {
    return this.#to && mix(this.#from, this.#to, clamp((now - this.#since) / this.#interval, 0, 1));
  }

  clear() {
    this.#from = this.#to = null;
  }
}
