// The demo page: this device's face goes out, the other device's face comes in.
//
// What the page does can be read from <html>'s data attributes (for tests and for the style sheet):
//
//   data-device           desktop | mobile: the slot that this page takes
//   data-state            connecting | online | overwritten | refused | offline
//   data-peer             connected | absent: the other device
//   data-frames-received  how many pose frames came in since the page was loaded
//   data-pose             the newest pose that came in, as JSON: {"yaw":0.12, …}, the fields of pose.js
//   data-message          the newest reaction that came in: its name (reactions.js)
//   data-camera           the camera's state: a key of SENTENCES in camera.js
//   data-faces            how many times the camera saw a face since the page was loaded
//   data-face-rate        faces a second, while the camera runs
//   data-own-pose         the pose that this page sends, as data-pose
//   data-paused           true | false
//
// Files: pose.js (the frame on the wire), face.js (the character), input.js (the person), camera.js,
// tracker.js and facemap.js (the person's own face), synthetic.js (nobody), session.js (user, token, device), measure.js, reactions.js, panel.js (the words and numbers around).

import { duorelay } from "/duorelay.js";
import { Camera, RUNNING, SENTENCES } from "./camera.js";
import { Face } from "./face.js";
import { mirror } from "./facemap.js";
import { EXPRESSIONS, HEAD, Input } from "./input.js";
import { Delay, Rate, Share, Sparkline } from "./measure.js";
import * as panel from "./panel.js";
import { calm, decodePose, ease, encodePose, POSE_STREAM, ticks } from "./pose.js";
import { fly, picture, REACTIONS } from "./reactions.js";
import { deviceHere, invitation, otherDevice, rememberDevice, Tokens, userName } from "./session.js";
import { IdleMotion } from "./synthetic.js";

const $ = (id) => document.getElementById(id);
const page = document.documentElement.dataset;
const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;

/** 60 frames a second also where the screen shows 120; the slack lets a 60 Hz screen send at each picture. */
const FRAME_MS = 1000 / 60 - 3;
/** A face without frames for this long belongs to a hidden tab or a phone in a pocket. */
const FRESH_MS = 1_200;

const user = userName();
const tokens = new Tokens(user);
const input = new Input($("stage"), showExpression);
const ownIdle = new IdleMotion(1, { reduced });
const peerIdle = new IdleMotion(2, { reduced });
const delay = new Delay();
const spark = new Sparkline($("spark"));
const framesIn = new Rate();
const framesOut = new Rate();
const leaving = new Share();
const arriving = new Share();

let device = deviceHere();
let relay;
let retryAt = null;
let refreshing = false;
/** The connection broke and is not back: each try in between is no news. */
let isLost = false;
/** An operator ended the connection: the page was not refused. */
let isEnded = false;
/** What the demo says about itself: { lan_url, tls_url, faces }. */
let config = { lan_url: null, tls_url: null, faces: null };
let paused = false;

let own = calm();
let shown = { ...calm(), eyeL: -1, eyeR: -1 };
let ownFace;
let peerFace;
let sequence = 0;
let sentAt = 0;
let sentCount = 0;

/** The newest pose frame of the other device, with our clock's time of its arrival. */
let received = null;
let receivedCount = 0;
let skipped = 0;

// ---- The relay ------------------------------------------------------------------------------------------------------

const STATES = { connecting: "connecting", online: "online", waiting: "offline", closed: "offline", overwritten: "overwritten", refused: "refused", signed_out: "refused" };

function play(as) {
  relay?.close();
  device = as;
  page.device = device;
  ownFace = new Face($("own-face"), device);
  peerFace = new Face($("peer-face"), otherDevice(device));
  document.querySelector(`input[name=device][value=${device}]`).checked = true;
  invite();
  onPeer(null);
  relay = connect();
  showState("connecting");
}

function connect() {
  const mine = duorelay({ url: "/ws", device, direct: true, getToken: tokens.get });
  // A relay that was left for the other device has nothing to say any more.
  const on = (type, listener) => mine.on(type, (...details) => mine === relay && listener(...details));
  on("state", showState);
  on("welcome", showSession);
  on("peer", onPeer);
  on("frame", onFrame);
  on("message", onMessage);
  on("expiring", () => { refreshing = true; showSession(); });
  on("authenticated", () => { refreshing = false; showSession(); });
  on("backplane", showSession);
  on("error", ({ code }) => {
    if (code === "peer_absent") panel.toast("Nobody is there to see it yet");
  });
  return mine;
}

function showState(state, info = {}) {
  page.state = STATES[state];
  isEnded = state === "refused" && info.code === "disconnected";
  isLost = page.state === "offline" || (isLost && page.state === "connecting");
  retryAt = state === "waiting" && info.retryInMs ? performance.now() + info.retryInMs : null;
  refreshing &&= state === "online";
  if (state === "overwritten") panel.showNotice(panel.takenOver(device));
  else if (state === "refused") panel.showNotice(panel.refused(info));
  else panel.showNotice(null);
  showEmpty();
  showStatus();
  showPeer();
  showSession();
}

const shownState = () => (isLost ? "offline" : isEnded ? "ended" : page.state);

function showEmpty() {
  panel.showEmpty({ state: shownState(), device, reachable: isReachable() });
}

function showStatus() {
  panel.showStatus({ state: shownState(), trying: isLost && page.state === "connecting", peer: relay.peer, device, retryAt });
}

function showPeer() {
  panel.showPeer({ state: shownState(), peer: relay.peer, device, live: received?.live ?? false, fresh: isFresh(), paused });
}

function showSession() {
  panel.showSession({ user, expiresAt: relay.expiresAt, refreshing, welcome: relay.welcome, backplane: relay.backplane });
  panel.showPath(relay.path ?? null);
}

function onPeer(peer) {
  page.peer = peer ? "connected" : "absent";
  // Another connection counts its frames from its own beginning, on its own clock.
  received = null;
  delay.clear();
  leaving.clear();
  arriving.clear();
  if (!relay) return;
  $("pair").open = !peer;
  showStatus();
  showPeer();
}

function onFrame(streamId, bytes) {
  if (streamId !== POSE_STREAM) return;
  const frame = decodePose(bytes);
  if (!frame) return;
  const now = ticks();
  if (received) skipped += Math.max(0, ((frame.sequence - received.sequence) & 0xffff) - 1);
  if (frame.echo) delay.add(((now - frame.echo.time - frame.echo.held) | 0) / 10);
  received = { ...frame, receivedAt: now, arrived: performance.now() };
  framesIn.tick();
  page.framesReceived = String(++receivedCount);
  page.pose = written(frame.pose);
}

const written = (pose) => JSON.stringify(pose, (_, value) => (typeof value === "number" ? Math.round(value * 1000) / 1000 : value));

// ---- Reactions: reliable messages -------------------------------------------------------------------------------------

/** Reactions on their way: id -> { name, at }. Bounded by forgetting the oldest. */
const onTheirWay = new Map();
let reactionCount = 0;

function react(name) {
  const id = String(++reactionCount);
  try {
    relay.send({ type: "reaction", name, id });
  } catch {
    panel.toast("Not connected");
    return;
  }
  onTheirWay.set(id, { name, at: performance.now() });
  if (onTheirWay.size > 50) onTheirWay.delete(onTheirWay.keys().next().value);
  fly($("own-effects"), name, { size: 26, count: 5 });
}

function onMessage({ data }) {
  if (data?.type === "reaction" && data.name in REACTIONS) {
    page.message = data.name;
    fly($("effects"), data.name);
    try {
      relay.send({ type: "seen", id: data.id });
    } catch {
      // Gone again: the other side just gets no receipt.
    }
  }
  if (data?.type === "seen") {
    const reaction = onTheirWay.get(data.id);
    onTheirWay.delete(data.id);
    if (reaction) panel.toast(`${REACTIONS[reaction.name].label} arrived, receipt after ${Math.round(performance.now() - reaction.at)} ms`);
  }
}

// ---- Each picture -----------------------------------------------------------------------------------------------------

let drawnAt = performance.now();

function draw(now) {
  requestAnimationFrame(draw);
  const elapsed = Math.min(100, Math.max(0, now - drawnAt));
  drawnAt = now;

  const seen = camera.pose(now);
  const { pose, live } = input.pose(seen ?? (paused ? calm() : ownIdle.awake(now)), now, elapsed);
  own = ease(own, pose, elapsed, 45);
  // A person expects a mirror of themselves; the other device sees what the camera sees.
  ownFace.draw(seen ? mirror(own) : own, paused ? 0 : now);
  if (relay.peer && now - sentAt >= FRAME_MS) {
    sentAt = now;
    const time = ticks();
    if (relay.frame(POSE_STREAM, encodePose(own, { live: live || seen !== null, sequence: sequence++, time, echo: received }))) {
      framesOut.tick();
      sentCount += 1;
    }
  }

  if (paused) return;
  const fresh = isFresh();
  const target = fresh ? received.pose : relay.peer ? peerIdle.awake(now) : peerIdle.asleep(now);
  shown = ease(shown, target, elapsed, fresh ? 30 : 260);
  peerFace.draw(shown, now + 700);
}

function isFresh() {
  return received !== null && relay.peer !== null && performance.now() - received.arrived < FRESH_MS;
}

let oneWay = null;

function measure() {
  const roundTrip = delay.take();
  oneWay = roundTrip === null ? null : Math.max(0, roundTrip / 2);
  if (!paused) {
    spark.add(oneWay);
    panel.showNumbers({ delay: oneWay, framesIn: framesIn.perSecond(), framesOut: framesOut.perSecond(), skipped, rtt: relay.rtt, ways: relay.delay });
    // What the library took may be replaced by a newer frame before it leaves: it counts those.
    const now = performance.now();
    const up = leaving.add(sentCount - relay.dropped, relay.dropped, now);
    const down = arriving.add(receivedCount, skipped, now);
    panel.showNetwork({ up: relay.peer && up, down: relay.peer && down, device });
    panel.showFaceRate(RUNNING.has(camera.state) && camera.rate > 0 ? Math.round(camera.rate) : null);
  }
  page.faces = String(camera.faces);
  page.faceRate = camera.rate.toFixed(1);
  page.ownPose = written(own);
  showPeer();
  showStatus();
  showSession();
}

// ---- The page -----------------------------------------------------------------------------------------------------------

/** A page that was opened by a real name or address is reachable by it. */
const isLocal = /^(localhost|127\.|\[::1\])/.test(location.hostname);

/** Where the other device finds this page. A phone gets the https address if there is one: it has camera and motion there. */
const baseForOther = () => (device === "desktop" && isLocal ? (config.tls_url ?? config.lan_url ?? location.origin) : location.origin);

const isReachable = () => !isLocal || baseForOther() !== location.origin;

function invite() {
  const link = invitation(baseForOther(), user, device);
  panel.showInvitation({ device, link, reachable: isReachable() });
  showEmpty();
  $("copy").onclick = async () => {
    try {
      await navigator.clipboard.writeText(link);
      panel.toast("Link copied");
    } catch {
      window.prompt("The link of this room:", link); // plain http pages have no clipboard
    }
  };
}

function showExpression(name, active) {
  document.querySelector(`[data-expression=${name}]`).dataset.active = String(active);
}

// ---- The camera -------------------------------------------------------------------------------------------------------

const camera = new Camera($("camera-video"), showCamera);

function showCamera(state, { rate = 0, detail = "" } = {}) {
  const source = config.faces?.here ? "this relay" : "cdn.jsdelivr.net";
  const secureUrl = config.tls_url && `${config.tls_url}/${location.search}`;
  page.camera = state;
  // While the camera has the face, the mouse only turns it by dragging.
  input.mouseTurns = state !== "tracking";
  panel.showCamera({ state, text: SENTENCES[state]({ rate, detail, source, secureUrl }), running: RUNNING.has(state), secureUrl });
}

async function toggleCamera() {
  if (RUNNING.has(camera.state)) return camera.stop();
  try {
    config.faces ??= await loadConfiguration().then(() => config.faces);
  } catch {
    return panel.toast("The relay does not answer");
  }
  await camera.start(config.faces);
}

function key(parent, { label, key: letter, icon = "" }, data) {
  const button = document.createElement("button");
  button.className = "key";
  Object.assign(button.dataset, data);
  button.innerHTML = `${icon}<span></span><kbd aria-hidden="true"></kbd>`;
  button.querySelector("span").textContent = label;
  button.querySelector("kbd").textContent = letter.toUpperCase();
  button.dataset.key = letter;
  parent.append(button);
  return button;
}

for (const [name, expression] of Object.entries(EXPRESSIONS)) {
  input.bindButton(key($("expressions"), expression, { expression: name }), name);
}
for (const [arrow, { label, path }] of Object.entries(HEAD)) {
  const icon = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${path}"/></svg>`;
  input.bindHead(key($("head"), { label, key: arrow, icon }, { head: arrow }), arrow);
}
for (const [name, reaction] of Object.entries(REACTIONS)) {
  key($("reactions"), { ...reaction, icon: picture(name) }, { reaction: name }).addEventListener("click", () => react(name));
}
window.addEventListener("keydown", (event) => {
  const name = Object.keys(REACTIONS).find((reaction) => REACTIONS[reaction].key === event.key);
  if (name && $("letters").checked && !event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey && !document.querySelector("dialog[open]")) react(name);
});

for (const [keys, meaning] of [
  ...Object.values(EXPRESSIONS).map(({ key: letter, label }) => [letter.toUpperCase(), label]),
  ["← → ↑ ↓", "Turn the head"],
  ["Q E", "Tilt the head"],
  ...Object.values(REACTIONS).map(({ key: letter, label }) => [letter, `Send: ${label}`]),
]) {
  const row = document.createElement("div");
  row.innerHTML = "<dt><kbd></kbd></dt><dd></dd>";
  row.querySelector("kbd").textContent = keys;
  row.querySelector("dd").textContent = meaning;
  $("help-keys").append(row);
}

for (const radio of document.querySelectorAll("input[name=device]")) {
  radio.addEventListener("change", () => {
    rememberDevice(radio.value);
    play(radio.value);
  });
}
$("retry").addEventListener("click", () => relay.connect());
$("notice-action").addEventListener("click", () => relay.connect());
// The state and its button stay in the page.
$("notice-close").addEventListener("click", () => $("notice").close());
$("help-open").addEventListener("click", () => $("help").showModal());
$("pause").addEventListener("click", () => {
  paused = !paused;
  page.paused = String(paused);
  $("pause").setAttribute("aria-pressed", page.paused);
  measure();
});
$("camera").addEventListener("click", toggleCamera);

const LETTERS_KEY = "duorelay.demo.letters";

function useLetters(on) {
  $("letters").checked = input.letters = on;
  for (const button of document.querySelectorAll(".key")) {
    const { key: shortcut } = button.dataset;
    if (on || shortcut.length > 1) button.setAttribute("aria-keyshortcuts", shortcut);
    else button.removeAttribute("aria-keyshortcuts");
    button.querySelector("kbd").hidden = !on;
  }
}

$("letters").addEventListener("change", () => {
  useLetters($("letters").checked);
  try {
    localStorage.setItem(LETTERS_KEY, String($("letters").checked));
  } catch {
    // Site data is blocked: the choice lasts as long as the page.
  }
});
$("motion").hidden = !Input.canUseMotion;
$("motion").addEventListener("click", async () => {
  const moving = await input.useMotion();
  $("motion").hidden = true;
  panel.toast(moving ? "Now turn your phone" : "No motion then: drag on the face");
});

function lettersWanted() {
  try {
    return localStorage.getItem(LETTERS_KEY) !== "false";
  } catch {
    return true;
  }
}

async function loadConfiguration() {
  const response = await fetch("/demo/config.json");
  if (!response.ok) throw new Error(`the demo answered ${response.status}`);
  config = await response.json();
  invite();
  if (camera.state === "off") showCamera("off");
}

page.framesReceived = "0";
page.faces = "0";
page.paused = "false";
useLetters(lettersWanted());
play(device);
showCamera("off");
requestAnimationFrame(draw);
setInterval(measure, 500);
loadConfiguration().catch(() => {}); // the link to this very address stays, and the camera asks again
