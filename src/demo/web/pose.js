// A pose: what a face does at one moment, and its 38 bytes on the wire.
//
// Volatile stream 0x01, 60 frames a second, little endian; the stream id itself is byte 0 of the WebSocket message and
// not counted here:
//
//   offset  type    field
//   0       u8      version, 1
//   1       u8      flags: 1 = a person moves it (else idle motion), 2 = echo and held are valid
//   2       u16     sequence, wraps; a gap is what "latest wins" left out
//   4       u32     time of sending, tenths of a millisecond on the sender's own clock, wraps
//   8       u32     echo: `time` of the newest frame that the sender had received
//   12      u16     held: tenths of a millisecond between receiving that frame and sending this one
//   14      i16×12  FIELDS in order, -32767..32767 for -1..1
//
// The clocks of two devices do not agree, so a one-way delay cannot be measured; a round trip can, on one clock:
// now - echo - held (RTCP's LSR and DLSR, RFC 3550 section 6.4.1).

export const POSE_STREAM = 0x01;

/** Every field is between -1 and 1, and 0 is a calm face that looks at you. */
export const FIELDS = [
  "yaw", "pitch", "roll", //     head: to the right of the screen, up, clockwise
  "gazeX", "gazeY", //           eyes, beyond the head's turn: right, up
  "eyeL", "eyeR", //             -1 closed, 1 wide; L is on the left of the screen
  "browL", "browR", //           -1 frown, 1 raised
  "smile", "mouth", "blush", //  -1 sad; 0..1 open; 0..1
];

const VERSION = 1;
const LIVE = 1;
const ECHO = 2;
const HEADER = 14;
const BYTES = HEADER + 2 * FIELDS.length;

export const calm = () => Object.fromEntries(FIELDS.map((field) => [field, 0]));

/** Tenths of a millisecond, as a u32 that wraps. */
export const ticks = () => Math.floor(performance.now() * 10) >>> 0;

export function encodePose(pose, { live, sequence, time, echo }) {
  const bytes = new Uint8Array(BYTES);
  const view = new DataView(bytes.buffer);
  const held = echo ? (time - echo.receivedAt) >>> 0 : 0;
  const echoed = echo && held <= 0xffff;
  bytes[0] = VERSION;
  bytes[1] = (live ? LIVE : 0) | (echoed ? ECHO : 0);
  view.setUint16(2, sequence & 0xffff, true);
  view.setUint32(4, time, true);
  view.setUint32(8, echoed ? echo.time : 0, true);
  view.setUint16(12, echoed ? held : 0, true);
  FIELDS.forEach((field, i) => view.setInt16(HEADER + 2 * i, Math.round(clamp(pose[field]) * 32767), true));
  return bytes;
}

/** Null for anything else than a frame of this layout: the other side may be newer, or something else. */
export function decodePose(bytes) {
  if (bytes.length < BYTES || bytes[0] !== VERSION) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const pose = {};
  FIELDS.forEach((field, i) => {
    pose[field] = clamp(view.getInt16(HEADER + 2 * i, true) / 32767);
  });
  return {
    pose,
    live: (bytes[1] & LIVE) !== 0,
    sequence: view.getUint16(2, true),
    time: view.getUint32(4, true),
    echo: bytes[1] & ECHO ? { time: view.getUint32(8, true), held: view.getUint16(12, true) } : null,
  };
}

/** From `a` (at 0) to `b` (at 1). */
export function mix(a, b, amount) {
  const pose = {};
  for (const field of FIELDS) pose[field] = a[field] + (b[field] - a[field]) * amount;
  return pose;
}

/** Moves `pose` towards `target`, two thirds of the way in `constant` ms: the same at 60 and at 120 pictures a second. */
export function ease(pose, target, elapsed, constant) {
  return mix(pose, target, 1 - Math.exp(-elapsed / constant));
}

export const clamp = (value, low = -1, high = 1) => Math.min(high, Math.max(low, value));
