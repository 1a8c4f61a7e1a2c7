// From points and pixels of a face to a pose: tables, without a browser.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { LEAST_RATE, Pace, reasonOf, RUNNING, SENTENCES } from '../../src/demo/web/camera.js'
import { eyeOpening, FaceMap, Glide, measureFace, mirror } from '../../src/demo/web/facemap.js'
import { Share } from '../../src/demo/web/measure.js'
import { calm, FIELDS } from '../../src/demo/web/pose.js'

/** 68 points of a drawn face; lengths in distances between the eyes, before it is tilted, scaled and moved. */
function face({ turn = 0, nose = 0.58, open = 0.03, width = 0.8, lift = 0, brow = 0.355, roll = 0, scale = 50, x = 160, y = 120 } = {}) {
  const points = []
  const line = (count, at) => Array.from({ length: count }, (_, i) => points.push(at(count === 1 ? 0 : i / (count - 1))))
  line(17, (t) => [2 * t - 1, 0.1 + 1.9 * Math.sin(Math.PI * t)])
  line(5, (t) => [-0.85 + 0.6 * t, -brow])
  line(5, (t) => [0.25 + 0.6 * t, -brow])
  line(4, (t) => [turn * t, nose * t])
  line(5, (t) => [turn + 0.3 * (t - 0.5), nose + 0.1])
  for (const side of [-0.5, 0.5]) {
    for (const [dx, dy] of [[-0.15, 0], [-0.05, -0.05], [0.05, -0.05], [0.15, 0], [0.05, 0.05], [-0.05, 0.05]]) points.push([side + dx, dy])
  }
  const corner = 1.17 - lift
  for (let i = 0; i < 12; i += 1) {
    const angle = Math.PI + (i * Math.PI) / 6
    const isCorner = i % 6 === 0
    points.push([(width / 2) * Math.cos(angle), isCorner ? corner : 1.17 + 0.15 * Math.sin(angle)])
  }
  const inner = [[-0.3, 0], [-0.1, -0.5], [0, -0.5], [0.1, -0.5], [0.3, 0], [0.1, 0.5], [0, 0.5], [-0.1, 0.5]]
  for (const [dx, half] of inner) points.push([dx, 1.17 + half * open])
  assert.equal(points.length, 68)
  const [cos, sin] = [Math.cos(roll), Math.sin(roll)]
  return points.map(([px, py]) => [x + scale * (px * cos - py * sin), y + scale * (px * sin + py * cos)])
}

const neutral = { neutral: 1 }
const poseOf = (points, expressions = neutral, eyes = {}) => new FaceMap().pose({ points, expressions, eyes }, 0)

test('a calm face is a calm pose, wherever and however large it is', () => {
  for (const at of [{}, { scale: 20 }, { x: 20, y: 300 }]) {
    const pose = poseOf(face(at))
    for (const field of FIELDS) assert.ok(Math.abs(pose[field]) < 0.02, `${field}: ${pose[field]}`)
  }
})

test('each movement moves its field, to its side', () => {
  for (const [what, field, sign] of [
    [{ turn: 0.3 }, 'yaw', 1],
    [{ turn: -0.3 }, 'yaw', -1],
    [{ nose: 0.45 }, 'pitch', 1],
    [{ nose: 0.75 }, 'pitch', -1],
    [{ roll: 0.25 }, 'roll', 1],
    [{ roll: -0.25 }, 'roll', -1],
    [{ open: 0.3 }, 'mouth', 1],
    [{ brow: 0.42 }, 'browL', 1],
    [{ brow: 0.3 }, 'browR', -1],
  ]) {
    const pose = poseOf(face(what))
    assert.ok(pose[field] * sign > 0.4, `${JSON.stringify(what)}: ${field} ${pose[field]}`)
    for (const other of ['yaw', 'pitch', 'roll', 'mouth'].filter((name) => name !== field)) {
      assert.ok(Math.abs(pose[other]) < 0.05, `${JSON.stringify(what)}: ${other} ${pose[other]}`)
    }
  }
})

test('a smile needs a happy face, and grows with the mouth', () => {
  const smile = (width, lift, expressions) => poseOf(face({ width, lift }), expressions).smile
  assert.ok(Math.abs(smile(0.8, 0, neutral)) < 0.01)
  assert.ok(Math.abs(smile(1, 0.1, neutral)) < 0.01)
  const small = smile(0.84, 0.01, { happy: 1 })
  const large = smile(1, 0.15, { happy: 1 })
  assert.ok(small > 0.25 && large > 0.9 && large > small, `${small}, ${large}`)
  assert.ok(smile(0.8, 0, { sad: 1 }) < -0.5)
  assert.ok(poseOf(face(), { angry: 1 }).browL < -0.5)
  assert.ok(poseOf(face(), { surprised: 1 }).browL > 0.4)
})

test('what a face is like when it does nothing is learned, within limits', () => {
  const faces = new FaceMap()
  const high = face({ brow: 0.4, nose: 0.62 })
  const first = faces.pose({ points: high, expressions: neutral }, 0)
  assert.ok(first.browL > 0.5 && first.pitch < -0.1)
  let pose
  for (let i = 0; i < 100; i += 1) pose = faces.pose({ points: high, expressions: neutral }, 50)
  assert.ok(Math.abs(pose.browL) < 0.2 && Math.abs(pose.pitch) < 0.1, JSON.stringify(pose))
  for (let i = 0; i < 2_000; i += 1) pose = faces.pose({ points: face({ nose: 0.85 }), expressions: neutral }, 50)
  assert.ok(pose.pitch < -0.5, `a head that is held down stays down: ${pose.pitch}`)
})

test('eyes shut, wink, and are learned only while they are open', () => {
  const eyes = (left, right) => ({ left, right })
  const shut = poseOf(face(), neutral, eyes(0.1, 0.1))
  assert.ok(shut.eyeL < -0.9 && shut.eyeL === shut.eyeR)
  const wink = poseOf(face(), neutral, eyes(0.55, 0.05))
  assert.ok(Math.abs(wink.eyeL) < 0.05 && wink.eyeR < -0.9, JSON.stringify(wink))
  const faces = new FaceMap()
  let pose
  for (let i = 0; i < 60; i += 1) pose = faces.pose({ points: face(), expressions: neutral, eyes: eyes(0.1, 0.1) }, 50)
  assert.ok(pose.eyeL < -0.8, `three seconds of shut eyes: ${pose.eyeL}`)
})

test('an open eye is dark over its height, a shut one is a line that lies low', () => {
  const [width, height] = [100, 60]
  const picture = (draw) => {
    const rgba = new Uint8ClampedArray(4 * width * height).fill(150)
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) if (draw(x, y)) rgba.fill(40, 4 * (y * width + x), 4 * (y * width + x) + 3)
    }
    return { rgba, width, height }
  }
  const opening = (draw) => eyeOpening(picture(draw), [30, 30], [70, 30])
  const open = opening((x, y) => Math.abs(x - 50) < 10 && Math.abs(y - 28) < 9)
  const shut = opening((x, y) => Math.abs(x - 50) < 20 && y >= 34 && y < 37)
  assert.ok(open > 0.4 && shut < 0.15, `${open}, ${shut}`)
  // Darker skin, the same eye: what counts is the difference.
  const dark = picture((x, y) => Math.abs(x - 50) < 10 && Math.abs(y - 28) < 9)
  dark.rgba.forEach((value, i) => (dark.rgba[i] = value * 0.5))
  assert.ok(Math.abs(eyeOpening(dark, [30, 30], [70, 30]) - open) < 0.05)
  // Corners beyond the edge of the picture.
  assert.ok(Number.isFinite(eyeOpening(dark, [-20, -20], [5, 200])))
})

test('what is measured is bounded, also on nonsense', () => {
  const same = Array.from({ length: 68 }, () => [3, 3])
  for (const points of [same, face({ scale: 0.001 })]) {
    const pose = poseOf(points, { happy: 1 }, { left: 9, right: -9 })
    for (const field of FIELDS) assert.ok(Math.abs(pose[field]) <= 1, `${field}: ${pose[field]}`)
    for (const value of Object.values(measureFace(points))) assert.ok(Number.isFinite(value))
  }
})

test('a mirror swaps sides, and twice is nothing', () => {
  const pose = Object.fromEntries(FIELDS.map((field, i) => [field, (i + 1) / 20]))
  const mirrored = mirror(pose)
  assert.deepEqual([mirrored.yaw, mirrored.roll, mirrored.pitch], [-pose.yaw, -pose.roll, pose.pitch])
  assert.deepEqual([mirrored.eyeL, mirrored.browR], [pose.eyeR, pose.browL])
  assert.deepEqual(mirror(mirrored), pose)
})

test('poses glide: between two faces there is a path, and at the end the face', () => {
  const glide = new Glide()
  assert.equal(glide.at(0), null)
  const at = (yaw) => ({ ...calm(), yaw })
  glide.add(at(0), 0)
  for (let now = 80; now <= 800; now += 80) glide.add(at(0), now)
  glide.add(at(1), 880)
  const path = [880, 900, 920, 940, 960, 2_000].map((now) => glide.at(now).yaw)
  assert.equal(path[0], 0)
  for (let i = 1; i < path.length; i += 1) assert.ok(path[i] >= path[i - 1], path.join(' '))
  assert.ok(path[2] > 0.3 && path[2] < 0.7, path.join(' '))
  assert.equal(path.at(-1), 1)
  // Trembling is followed by a third.
  glide.add(at(0.97), 2_000)
  assert.ok(glide.at(3_000).yaw > 0.985)
  glide.clear()
  assert.equal(glide.at(3_000), null)
})

test('fewer than ten faces a second are too few, once that has lasted', () => {
  const firstRefusal = (pause, patient) => {
    const pace = new Pace(patient)
    for (let now = 0; now < 60_000; now += pause) if (!pace.add(now)) return { now, rate: pace.rate() }
    return null
  }
  assert.equal(firstRefusal(1000 / (LEAST_RATE + 1), false), null)
  const slow = firstRefusal(150, false)
  assert.ok(slow.now > 8_000 && slow.now < 10_000, `${slow.now}`)
  assert.ok(Math.abs(slow.rate - 1000 / 150) < 0.3, `${slow.rate}`)
  assert.equal(firstRefusal(150, true), null)
  assert.equal(new Pace(false).rate(), 0)
})

test('every state has a sentence, and every end says how it goes on', () => {
  const facts = { source: 'cdn.example', detail: 'why', rate: 6, secureUrl: null }
  for (const [state, sentence] of Object.entries(SENTENCES)) {
    const text = sentence(facts)
    assert.match(text, /^[A-Z].*[.]$/, state)
    if (!RUNNING.has(state) && state !== 'off') assert.match(text, /[Mm]ouse, finger and keys/, state)
  }
  assert.match(SENTENCES.off(facts), /stays on this device.*cdn\.example/)
  assert.match(SENTENCES.slow(facts), /only 6 faces a second/)
  assert.match(SENTENCES.insecure(facts), /--tls/)
  assert.match(SENTENCES.insecure({ ...facts, secureUrl: 'https://x' }), /https address/)
})

test('a refusal of the browser has its reason', () => {
  for (const [name, reason] of [
    ['NotAllowedError', 'denied'],
    ['SecurityError', 'denied'],
    ['NotFoundError', 'missing'],
    ['OverconstrainedError', 'missing'],
    ['NotReadableError', 'busy'],
    ['AbortError', 'busy'],
    [undefined, 'busy'],
  ]) {
    assert.equal(reasonOf({ name }), reason)
  }
})

test('a slow network is one that few frames get through for seconds', () => {
  const run = (through, lost, seconds) => {
    const share = new Share()
    let judged = null
    for (let now = 0; now <= seconds * 1_000; now += 500) judged = share.add((through * now) / 1_000, (lost * now) / 1_000, now)
    return judged
  }
  assert.deepEqual(run(5, 25, 4), { done: 5, all: 30 })
  assert.equal(run(5, 25, 2), null, 'not after two seconds')
  assert.equal(run(55, 5, 10), null)
  assert.equal(run(1, 2, 10), null, 'three frames a second are no stream')
  const share = new Share()
  for (let now = 0; now <= 10_000; now += 500) share.add(now / 100, now < 5_000 ? now / 50 : 100, now)
  assert.equal(share.add(105, 100, 10_500), null, 'it is over')
  share.clear()
  assert.equal(share.add(0, 0, 11_000), null)
})
