// The face tracker, in a worker of its own: pixels come in, the 68 points of a face go out, and nothing else leaves.
//
// The relay serves this one file with a content security policy of its own. Its `connect-src` names the place of the library
// and its models, and nothing in here can reach any other address. The page itself can reach only the relay.
//
// Messages in:  { type: "load", base, files }            where the files of faces.json are
//               { type: "picture", pixels, width, height } RGBA bytes of one picture
// Messages out: { type: "ready" }, { type: "face", face, ms }, { type: "failed", detail }
// `face` is null or { points: [[x, y] ×68], eyes: { left, right }, score, expressions }; points in pixels.

import { eyeOpening } from "./facemap.js";

/** The detector looks at a square of this many pixels; a face must be about an eighth of it. */
const DETECTOR_SIZE = 160;
const LEAST_SCORE = 0.35;

/** A mood lasts longer than a picture: expressions, a third of the work, are looked at in every third one. */
const MOOD_EVERY = 3;

let faceapi;
let detector;
let pictures = 0;
let mood = {};

/** Each file is fetched with its hash: the browser gives no byte of one that differs (W3C Subresource Integrity). */
async function take(base, { package: name, version, path, integrity }) {
  const response = await fetch(`${base}${name}@${version}/${path}`, { integrity, credentials: "omit", referrerPolicy: "no-referrer" });
  if (!response.ok) throw new Error(`${path}: HTTP status ${response.status}`);
  return response;
}

const address = async (base, file, type) => URL.createObjectURL(new Blob([await (await take(base, file)).arrayBuffer()], { type }));

async function load({ base, files }) {
  const [library, wasm, ...weights] = await Promise.all([
    address(base, files.library, "text/javascript"),
    address(base, files.wasm, "application/wasm"),
    ...["detector", "landmarks", "expressions"].map(async (name) => {
      const [manifest, data] = await Promise.all([take(base, files[`${name}Manifest`]), take(base, files[name])]);
      return [await manifest.json(), await data.arrayBuffer()];
    }),
  ]);
  faceapi = await import(library);
  URL.revokeObjectURL(library);
  // The library looks for a page's classes, which a worker has not; it is given tensors and needs none of them.
  const none = class {};
  faceapi.env.setEnv({
    Canvas: none, CanvasRenderingContext2D: none, Image: none, ImageData: none, Video: none,
    createCanvasElement: () => new none(), createImageElement: () => new none(), createVideoElement: () => new none(),
    fetch, readFile: () => Promise.reject(new Error("no files here")),
  });
  const { tf, nets } = faceapi;
  tf.setWasmPaths({ "tfjs-backend-wasm-simd.wasm": wasm, "tfjs-backend-wasm.wasm": wasm, "tfjs-backend-wasm-threaded-simd.wasm": wasm });
  // The plain JavaScript backend takes two seconds for a face: without WebAssembly there is no tracking.
  if (!(await tf.setBackend("wasm"))) throw new Error("this browser has no WebAssembly with SIMD");
  await tf.ready();
  [nets.tinyFaceDetector, nets.faceLandmark68TinyNet, nets.faceExpressionNet].forEach((net, i) => {
    const [manifest, data] = weights[i];
    net.loadFromWeightMap(tf.io.decodeWeights(data, manifest.flatMap((group) => group.weights)));
  });
  detector = new faceapi.TinyFaceDetectorOptions({ inputSize: DETECTOR_SIZE, scoreThreshold: LEAST_SCORE });
}

async function track({ pixels, width, height }) {
  const { tf } = faceapi;
  const rgba = new Uint8Array(pixels);
  const rgb = new Int32Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  const picture = tf.tensor3d(rgb, [height, width, 3], "int32");
  try {
    const looking = faceapi.detectSingleFace(picture, detector).withFaceLandmarks(true);
    const found = pictures++ % MOOD_EVERY === 0 ? await looking.withFaceExpressions() : await looking;
    if (!found) return null;
    mood = { ...(found.expressions ?? mood) };
    const points = found.landmarks.positions.map((point) => [point.x, point.y]);
    const image = { rgba, width, height };
    return {
      points,
      eyes: { left: eyeOpening(image, points[36], points[39]), right: eyeOpening(image, points[42], points[45]) },
      score: found.detection.score,
      expressions: mood,
    };
  } finally {
    picture.dispose();
  }
}

self.onmessage = async ({ data }) => {
  try {
    if (data.type === "load") {
      await load(data);
      self.postMessage({ type: "ready" });
    } else {
      const began = performance.now();
      const face = await track(data);
      self.postMessage({ type: "face", face, ms: performance.now() - began });
    }
  } catch (error) {
    self.postMessage({ type: "failed", detail: String(error?.message ?? error) });
  }
};
