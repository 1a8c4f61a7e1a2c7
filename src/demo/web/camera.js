// The camera: its picture goes to the tracker, a worker on this device, and nowhere else.
import { FaceMap, Glide } from "./facemap.js";

/** The tracker needs no more pixels; a face takes a quarter of the time of 640. */
const WIDTH = 320;
/** A camera that gives no picture, a library that does not come: said after this. */
const START_LIMIT_MS = 20_000;
/** Fewer faces a second than this look like a slide show. */
export const LEAST_RATE = 10;
/** The first pictures compile the networks; then the rate is watched for this long before it is judged. */
const WARM_UP = 5;
const JUDGE_MS = 8_000;
/** Nobody in the picture: said after this, and the hands have the face again. */
const LOST_MS = 1_200;

/** Every state of the camera, and its sentence. `rate` is in faces a second, `secureUrl` an https address of this page or null. */
export const SENTENCES = {
  off: ({ source }) => `Its picture stays on this device: only the pose is sent. The tracker (2.4 MB) comes from ${source}.`,
  asking: () => "Allow the camera where your browser asks.",
  loading: () => "Loading the tracker.",
  tracking: () => "Your face moves the character. The picture stays on this device.",
  searching: () => "No face in sight. Mouse, finger and keys move the character meanwhile.",
  slow: ({ rate }) => `This device finds only ${rate} faces a second, too few to follow you. Mouse, finger and keys move the character.`,
  denied: () => "The browser does not allow the camera. Allow it beside the address, or go on by mouse, finger and keys.",
  missing: () => "This device has no camera. Mouse, finger and keys move the character.",
  busy: () => "The camera gives no picture; another program may have it. Mouse, finger and keys move the character.",
  insecure: ({ secureUrl }) =>
    `Browsers give the camera only to https pages and to localhost. ${secureUrl ? "This page has an https address, too." : "Start the demo with --tls for an https address."} Mouse, finger and keys move the character.`,
  unloadable: ({ source, detail }) => `The tracker could not be loaded from ${source} (${detail}). Mouse, finger and keys move the character.`,
};

/** The states in which the camera is on, or about to be. */
export const RUNNING = new Set(["asking", "loading", "tracking", "searching"]);

/** What the browser's refusal to give a camera means (getUserMedia, W3C Media Capture and Streams 10.3). */
export function reasonOf(error) {
  switch (error?.name) {
    case "NotAllowedError":
    case "SecurityError":
      return "denied";
    case "NotFoundError":
    case "OverconstrainedError":
      return "missing";
    default:
      return "busy";
  }
}

/** How many faces a second, and whether that is too few: pure, the time is an argument. */
export class Pace {
  #times = [];
  #seen = 0;
  #since = null;
  #patient;

  /** `patient`: the person wants it however slow it is. */
  constructor(patient) {
    this.#patient = patient;
  }

  /** One picture was looked at, at `now` in milliseconds; false when it is too slow. */
  add(now) {
    this.#seen += 1;
    if (this.#seen <= WARM_UP) return true;
    this.#since ??= now;
    this.#times.push(now);
    while (now - this.#times[0] > JUDGE_MS) this.#times.shift();
    return this.#patient || now - this.#since < JUDGE_MS || this.rate() >= LEAST_RATE;
  }

  /** Faces a second; 0 before two. */
  rate() {
    const span = this.#times.at(-1) - this.#times[0];
    return span > 0 ? (1000 * (this.#times.length - 1)) / span : 0;
  }
}

export class Camera {
  #video;
  #onState;
  #config = null;
  #state = "off";
  #patient = false;
  #run = null; // everything between a start and its end

  /** How many times a face was found. */
  faces = 0;

  /** `onState(state, { rate, detail })` follows every change. */
  constructor(video, onState) {
    this.#video = video;
    this.#onState = onState;
  }

  get state() {
    return this.#state;
  }

  /** Faces a second, of the last seconds. */
  get rate() {
    return this.#run?.pace.rate() ?? 0;
  }

  /** The pose that the camera sees now; null when the hands have the face. */
  pose(now) {
    return this.#state === "tracking" ? this.#run.glide.at(now) : null;
  }

  /** `config`: { base, files }, where the tracker's files come from. A second start after `slow` is a patient one. */
  async start(config) {
    if (RUNNING.has(this.#state)) return;
    this.#patient ||= this.#state === "slow";
    this.#config = config;
    if (!window.isSecureContext || !navigator.mediaDevices) return this.#set("insecure");
    const run = { stream: null, worker: null, map: new FaceMap(), glide: new Glide(), pace: new Pace(this.#patient), lastFace: null, timer: 0, isBusy: false, isFresh: false };
    this.#run = run;
    this.#set("asking");
    try {
      const video = { facingMode: "user", width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };
      run.stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    } catch (error) {
      if (this.#run === run) this.#end(reasonOf(error));
      return;
    }
    // Stopped while the browser asked: its answer is for nobody.
    if (this.#run !== run) return stopTracks(run.stream);
    run.stream.getVideoTracks()[0].addEventListener("ended", () => this.#run === run && this.#end("busy"));
    this.#video.srcObject = run.stream;
    this.#set("loading");
    run.timer = setTimeout(() => this.#end("unloadable", { detail: "no answer in time" }), START_LIMIT_MS);
    run.worker = new Worker("/demo/tracker.js", { type: "module" });
    run.worker.onerror = (event) => this.#run === run && this.#end("unloadable", { detail: event.message || "the worker did not start" });
    run.worker.onmessage = ({ data }) => this.#run === run && this.#heard(run, data);
    run.worker.postMessage({ type: "load", ...this.#config });
    this.#video.play().catch(() => this.#run === run && this.#end("busy"));
  }

  stop() {
    if (this.#run) this.#end("off");
    else this.#set("off");
  }

  #heard(run, message) {
    if (message.type === "failed") return this.#end("unloadable", { detail: message.detail });
    if (message.type === "ready") {
      clearTimeout(run.timer);
      run.timer = setTimeout(() => this.#end("busy"), START_LIMIT_MS);
      return this.#watch(run);
    }
    clearTimeout(run.timer);
    run.isBusy = false;
    const now = performance.now();
    if (!run.pace.add(now)) return this.#end("slow", { rate: Math.round(run.pace.rate()) });
    if (message.face) {
      run.glide.add(run.map.pose(message.face, run.lastFace === null ? 0 : Math.min(500, now - run.lastFace)), now);
      run.lastFace = now;
      this.faces += 1;
      this.#set("tracking");
    } else if (run.lastFace === null || now - run.lastFace > LOST_MS) {
      run.glide.clear();
      this.#set("searching");
    }
    this.#send(run);
  }

  /** Follows the camera's pictures, once the tracker waits for one. */
  #watch(run) {
    const next = () => {
      if (this.#run !== run) return;
      run.isFresh = true;
      this.#send(run);
      watch();
    };
    const watch = () =>
      this.#video.requestVideoFrameCallback ? this.#video.requestVideoFrameCallback(next) : requestAnimationFrame(next);
    watch();
  }

  /** The newest picture, where the tracker waits and has not seen it: none ever queues. */
  #send(run) {
    const { videoWidth, videoHeight } = this.#video;
    if (run.isBusy || !run.isFresh || videoWidth === 0) return;
    const height = Math.round((WIDTH * videoHeight) / videoWidth);
    if (!run.context) {
      const canvas = document.createElement("canvas");
      Object.assign(canvas, { width: WIDTH, height });
      run.context = canvas.getContext("2d", { willReadFrequently: true });
    }
    // A phone that is turned has another picture.
    if (run.context.canvas.height !== height) run.context.canvas.height = height;
    run.context.drawImage(this.#video, 0, 0, WIDTH, height);
    const { data } = run.context.getImageData(0, 0, WIDTH, height);
    Object.assign(run, { isBusy: true, isFresh: false });
    run.worker.postMessage({ type: "picture", pixels: data.buffer, width: WIDTH, height }, [data.buffer]);
  }

  #end(state, facts = {}) {
    const run = this.#run;
    this.#run = null;
    if (run) {
      clearTimeout(run.timer);
      run.worker?.terminate();
      if (run.stream) stopTracks(run.stream);
    }
    this.#video.srcObject = null;
    this.#set(state, facts);
  }

  #set(state, facts = {}) {
    if (state === this.#state && state !== "insecure") return;
    this.#state = state;
    this.#onState(state, facts);
  }
}

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}
