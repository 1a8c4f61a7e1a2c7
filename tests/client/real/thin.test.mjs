// Links that carry less than is sent: frames stay fresh on the way up, and a file arrives at the receiver's speed.
import { after, test } from "node:test";
import assert from "node:assert/strict";
import { WebSocket } from "ws";
import { duorelay } from "duorelay";
import { endAll, startBrowser, startPages, startRelay, startThinPath } from "./world.mjs";

after(endAll);

const FRAME = 300;
const HEAD = 14; // stream id, and the WebSocket frame around it
const PER_SECOND = 30;

const at = (values, share) => values.toSorted((a, b) => a - b)[Math.floor(values.length * share)];

test("frames from Chromium over a link of half their need are at most 0.6 s old, flat", { timeout: 90_000 }, async () => {
  const need = (FRAME + HEAD) * PER_SECOND;
  const relay = await startRelay();
  const thin = await startThinPath(relay.port, { up: need / 2 });
  const token = await relay.token("thin");
  const receiver = duorelay({ url: relay.ws, device: "mobile", WebSocket, getToken: () => token });
  after(() => receiver.close());
  const frames = [];
  receiver.on("frame", (_, bytes) => {
    const made = new DataView(bytes.buffer, bytes.byteOffset).getFloat64(0);
    frames.push({ at: Date.now(), age: Date.now() - made });
  });
  const browser = await startBrowser("chromium");
  const page = await browser.client(await startPages(() => relay), { user: "thin", url: thin.ws });
  // The other way is innocent: each frame has its number.
  let sent = 0;
  const sending = setInterval(() => receiver.frame(2, new Uint8Array([(sent += 1) >> 8, sent & 255])), 1000 / PER_SECOND);
  after(() => clearInterval(sending));
  await page.evaluate(
    (size, pause) => {
      window.sending = setInterval(() => {
        const bytes = new Uint8Array(size);
        new DataView(bytes.buffer).setFloat64(0, performance.timeOrigin + performance.now());
        relay.frame(1, bytes);
      }, pause);
    },
    FRAME, 1000 / PER_SECOND,
  );
  const SECONDS = 20;
  await new Promise((resolve) => setTimeout(resolve, (SECONDS * 1000) / 2));
  const [sentBefore, readBefore] = [sent, await page.evaluate(() => told.frame.length)];
  await new Promise((resolve) => setTimeout(resolve, (SECONDS * 1000) / 2));
  const [delay, dropped, read] = await page.evaluate(() => [relay.delay, relay.dropped, told.frame.length]);
  const innocent = (read - readBefore) / (sent - sentBefore);
  const now = Date.now();
  const half = (from, to) => frames.filter((frame) => frame.at > now - from && frame.at <= now - to).map(({ age }) => age);
  const [earlier, later] = [half(10_000, 5_000), half(5_000, 0)];
  const all = [...earlier, ...later];
  const share = all.length / ((PER_SECOND / 2) * 10);
  console.log(
    `a thin uplink: age p50 ${Math.round(at(all, 0.5))} ms, p99 ${Math.round(at(all, 0.99))} ms, ${Math.round(share * 100)} % of what ` +
      `the link carries, ${dropped} frames replaced, ${Math.round(innocent * 100)} % of the other way's frames; the client ` +
      `estimates ${Math.round(delay.up)} ms up and ${Math.round(delay.down)} down`,
  );
  assert.ok(at(all, 0.99) <= 600, `p99 ${at(all, 0.99)} ms`);
  assert.ok(at(later, 0.5) <= at(earlier, 0.5) + 150, "the age grows");
  assert.ok(share >= 0.85, `${share} of what the link carries`);
  assert.ok(innocent >= 0.95, `${innocent} of the other way's frames`);
});

// The long form: FILE_CHUNKS=320 QUEUE_BYTES=1048576, which is 5 MB with the relay's own queue.
test("a file to a slow receiver arrives whole, at its speed", { timeout: 120_000 }, async () => {
  const { FILE_CHUNKS = "64", QUEUE_BYTES = "131072" } = process.env;
  const relay = await startRelay(["--queue-bytes", QUEUE_BYTES]);
  const thin = await startThinPath(relay.port, { down: 100_000 });
  const token = await relay.token("file");
  const client = (device, url) => {
    const made = duorelay({ url, device, client: device, WebSocket, getToken: () => token });
    after(() => made.close());
    return made;
  };
  const sender = client("desktop", relay.ws);
  const receiver = client("mobile", thin.ws);
  const closes = [];
  for (const made of [sender, receiver]) made.on("close", (event) => closes.push(event));
  await new Promise((resolve) => sender.on("peer", (peer) => peer && resolve()));
  const CHUNK = 16 * 1024;
  const CHUNKS = Number(FILE_CHUNKS);
  const got = [];
  const whole = new Promise((resolve) => receiver.on("frame", (_, bytes) => got.push(bytes[0]) === CHUNKS && resolve()));
  const start = performance.now();
  for (let index = 0; index < CHUNKS; index += 1) {
    await sender.drained();
    sender.frame(0x80, new Uint8Array(CHUNK).fill(index % 256));
  }
  await whole;
  const seconds = (performance.now() - start) / 1000;
  const speed = (CHUNK * CHUNKS) / 1000 / seconds;
  const what = `a file of ${(CHUNKS * CHUNK) / 1024} KiB to a receiver at 100 KB/s, with a queue of ${QUEUE_BYTES / 1024} KiB`;
  console.log(`${what} took ${seconds.toFixed(1)} s: ${Math.round(speed)} KB/s`);
  assert.deepEqual(got, Array.from({ length: CHUNKS }, (_, index) => index % 256));
  assert.deepEqual(closes, []);
  // The link carries 100 KB/s; a busy machine less.
  assert.ok(speed > 30, `${speed} KB/s`);
});
