// A page that has been hidden for minutes: browsers run its timers once a minute then (Chromium: intensive throttling). What
// real Chromium does is in real/hidden.test.mjs.
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { freeze, pass, settle, start, thaw } from "./fakes.mjs";

beforeEach(freeze);
afterEach(thaw);

const MINUTE = 60_000;

/** A hidden page whose every timer rings at the next full minute, and not before its time. */
async function hidden(options = {}) {
  let isThrottled = false;
  const client = start({
    ...options,
    environment: {
      setTimeout(work, ms) {
        const due = performance.now() + ms;
        return setTimeout(work, isThrottled ? Math.ceil(due / MINUTE) * MINUTE - performance.now() : ms);
      },
    },
  });
  const socket = await client.online({ features: ["received", "pressure", "ack"], peer: { connection: "p", generation: 1 } });
  socket.lively = true;
  await settle();
  isThrottled = true;
  client.page.document.visibilityState = "hidden";
  client.page.dispatchEvent(new Event("visibilitychange"));
  const show = () => {
    isThrottled = false;
    client.page.document.visibilityState = "visible";
    client.page.dispatchEvent(new Event("visibilitychange"));
  };
  return { ...client, socket, show };
}

describe("a page that has been hidden for minutes", () => {
  test("stays online while nothing happens, and while frames come", async () => {
    const { relay, socket, sockets, tell } = await hidden();
    await pass(10 * MINUTE);
    for (let second = 0; second < 180; second += 1) {
      socket.frame(1, second);
      await pass(1_000);
    }
    assert.deepEqual([relay.state, sockets(), tell("close")], ["online", 1, []]);
    assert.equal(tell("frame").length, 180);
  });

  test("reports what it reads with what it reads, and not a minute later", async () => {
    const { socket } = await hidden();
    await pass(2 * MINUTE + 1_000);
    const before = socket.said("received").length;
    for (let frame = 0; frame < 100; frame += 1) {
      socket.frame(1, frame);
      await pass(33);
    }
    // 3.3 s of frames: one report each half second.
    const reports = socket.said("received").length - before;
    assert.ok(reports >= 6, `${reports} reports`);
  });

  test("sends reliable messages at the speed of the network: no timer is in the way", async () => {
    const { relay, socket } = await hidden();
    await pass(3 * MINUTE + 1_000);
    const begin = performance.now();
    // 400 KB, which is more than may be on its way without a pong, and fewer than the rate of a second.
    for (let index = 0; index < 200; index += 1) relay.send(String(index).padEnd(2_000));
    for (let turn = 0; turn < 50; turn += 1) await settle();
    assert.equal(socket.said("send").length, 200);
    assert.equal(performance.now() - begin, 0);
  });

  test("refreshes its token in the five minutes that the relay gives", async () => {
    const { socket } = await hidden();
    await pass(3 * MINUTE + 1_000);
    socket.say({ type: "expiring", expires_at: 1_800_000_000 + 8 * 60 });
    await pass(MINUTE);
    assert.equal(socket.said("auth").length, 1);
  });

  test("whose connection breaks is back with the next minute, or at once when it is shown", async () => {
    const first = await hidden();
    await pass(3 * MINUTE + 1_000);
    first.socket.end(1006);
    await pass(MINUTE);
    assert.equal(first.sockets(), 2);
    thaw();
    freeze();
    const second = await hidden();
    await pass(3 * MINUTE + 1_000);
    second.socket.end(1006);
    await pass(100);
    assert.equal(second.sockets(), 1);
    second.show();
    await pass(1_000);
    assert.equal(second.sockets(), 2);
  });

  test("whose path has died leaves it within three minutes, or within 3 s of being shown", async () => {
    const first = await hidden();
    await pass(3 * MINUTE + 1_000);
    first.socket.lively = false;
    await pass(3 * MINUTE);
    assert.equal(first.tell("close").length, 1);
    thaw();
    freeze();
    const second = await hidden();
    await pass(3 * MINUTE + 1_000);
    second.socket.lively = false;
    second.show();
    await pass(3_000);
    assert.equal(second.tell("close").length, 1);
  });
});
