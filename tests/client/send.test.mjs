import { afterEach, beforeEach, describe, test } from "node:test";
import assert from "node:assert/strict";
import { freeze, pass, settle, start, thaw } from "./fakes.mjs";

beforeEach(freeze);
afterEach(thaw);

const bytes = (...values) => Uint8Array.from(values);

describe("volatile frames", () => {
  test("go out at once with their stream id in front", async () => {
    const { relay, online } = start();
    const socket = await online();
    assert.equal(relay.frame(0x01, bytes(7, 8)), true);
    assert.equal(relay.frame(0x02, bytes(9).buffer), true);
    assert.equal(relay.frame(0x03, new DataView(bytes(0, 5, 6, 0).buffer, 1, 2)), true);
    assert.deepEqual(socket.frames, [[1, 7, 8], [2, 9], [3, 5, 6]]);
  });

  test("only the newest of each stream waits while the socket is backed up", async () => {
    const { relay, online } = start();
    const socket = await online();
    socket.bufferedAmount = 5_000;
    for (let i = 0; i < 100; i += 1) {
      relay.frame(0x01, bytes(i));
      relay.frame(0x02, bytes(100 + i));
    }
    await pass(50);
    assert.deepEqual(socket.frames, []);
    socket.bufferedAmount = 0;
    await pass(5);
    assert.deepEqual(socket.frames, [[1, 99], [2, 199]]);
    assert.equal(relay.dropped, 198);
  });

  test("a frame bigger than the room goes when nothing is before it", async () => {
    const { relay, online } = start();
    const socket = await online();
    relay.frame(0x01, new Uint8Array(60_000));
    assert.equal(socket.frames.length, 1);
  });

  test("are dropped without a connection, and none is sent stale after a break", async () => {
    const { relay, online } = start();
    assert.equal(relay.frame(0x01, bytes(1)), false);
    const first = await online();
    first.bufferedAmount = 5_000;
    relay.frame(0x01, bytes(2));
    first.end(1006);
    await pass(250);
    const second = await online();
    await pass(1_000);
    assert.deepEqual(second.frames, []);
  });

  test("get their turn while a long reliable queue is being sent", async () => {
    const { relay, online } = start();
    const socket = await online();
    relay.send("first");
    socket.bufferedAmount = 10_000;
    relay.frame(0x01, bytes(1));
    for (let i = 0; i < 100; i += 1) relay.send(i);
    await pass(50);
    assert.equal(socket.said("send").length, 1, "a reliable message would take the frame's room");
    socket.bufferedAmount = 500;
    await pass(5);
    assert.deepEqual(socket.frames, [[1, 1]]);
    assert.equal(socket.said("send").length, 101);
  });

  test("spaced by the rate, they do not starve the reliable queue", async () => {
    const { relay, online } = start();
    const socket = await online({ limits: { message_bytes: 65_536, messages_per_second: 20, queue_bytes: 1_048_576 } });
    for (let i = 0; i < 40; i += 1) relay.send(i);
    for (let ms = 0; ms < 1_000; ms += 10) {
      relay.frame(0x01, bytes(ms / 10));
      await pass(10);
    }
    const [sent, frames] = [socket.said("send").length, socket.frames.length];
    assert.ok(sent >= 25 && frames >= 8, `${sent} messages and ${frames} frames`);
    assert.ok(sent + frames <= 20 + 20, `${sent + frames} in a second`);
    assert.equal(relay.dropped, 100 - frames - 1);
  });

  test("a page that calls every millisecond stays under the relay's limit, and the rest is counted", async () => {
    const { relay, online } = start();
    const socket = await online();
    socket.lively = true;
    const times = [];
    for (let ms = 0; ms < 15_000; ms += 1) {
      const before = socket.frames.length;
      relay.frame(0x01, bytes(ms % 256));
      await pass(1);
      if (socket.sent.length > before) times.push(ms);
    }
    const all = socket.sent.length;
    assert.ok(all > 15 * 200 && all < 240 + 15 * 240, `${all} messages in 15 s`);
    assert.equal(relay.dropped, 15_000 - socket.frames.length - 1);
  });
});

describe("reliable messages", () => {
  test("keep their order, frames and JSON together", async () => {
    const { relay, online } = start();
    relay.send({ a: 1 }, { id: "x" });
    relay.frame(0x80, bytes(1));
    const socket = await online();
    relay.send(null);
    assert.deepEqual(socket.sent.slice(1).map((m) => (typeof m === "string" ? JSON.parse(m) : [...m])), [
      { type: "send", data: { a: 1 }, id: "x" }, [0x80, 1], { type: "send", data: null },
    ]);
  });

  test("leave at the speed of the network: what waits for room waits for a pong, and never for a timer", async () => {
    const { relay, online } = start();
    const socket = await online();
    socket.bufferedAmount = 1_000_000; // a hidden page's timers would look at it once a minute
    socket.lively = true;
    for (let i = 0; i < 200; i += 1) relay.send("x".repeat(2_000));
    await settle();
    assert.equal(socket.said("send").length, 200);
  });

  test("drained() waits for room, and rejects when it stops", async () => {
    const { relay, online } = start({ queueBytes: 1_000 });
    await relay.drained();
    relay.frame(0x80, new Uint8Array(900));
    let room = false;
    relay.drained().then(() => (room = true));
    await settle();
    assert.equal(room, false);
    assert.equal(relay.queued, 901);
    const socket = await online();
    await settle();
    assert.equal(room, true);
    socket.end(1006);
    relay.frame(0x80, new Uint8Array(900));
    const waiting = relay.drained();
    relay.close();
    await assert.rejects(waiting, { code: "not_connected" });
  });

  test("wait for a connection, also over a break", async () => {
    const { relay, online } = start();
    relay.send("before");
    const first = await online();
    assert.deepEqual(first.said("send").map(({ data }) => data), ["before"]);
    first.end(1006);
    relay.send("between");
    await pass(250);
    assert.deepEqual((await online()).said("send").map(({ data }) => data), ["between"]);
  });

  test("past the bound the caller gets an error", async () => {
    const { relay } = start({ queueBytes: 100 });
    await settle();
    relay.frame(0x80, new Uint8Array(60));
    assert.throws(() => relay.frame(0x80, new Uint8Array(60)), { name: "SendError", code: "queue_full" });
    const many = start();
    for (let i = 0; i < 1_000; i += 1) many.relay.send(i);
    assert.throws(() => many.relay.send(1_000), { code: "queue_full" });
  });

  test("a message over the relay's limit never reaches the socket", async () => {
    const { relay, online, tell } = start();
    relay.send("x".repeat(2_000));
    relay.send("small");
    const socket = await online({ limits: { message_bytes: 1_000 } });
    assert.deepEqual(socket.said("send").map(({ data }) => data), ["small"]);
    assert.equal(tell("error")[0][0].code, "too_big");
    relay.frame(0x01, new Uint8Array(999));
    assert.throws(() => relay.frame(0x01, new Uint8Array(1_000)), { code: "too_big" });
    assert.throws(() => relay.send("ä".repeat(500)), { code: "too_big" });
  });

  test("what stays unsent when it stops is reported", async () => {
    const { relay, online, tell } = start();
    const socket = await online({ features: ["pressure"] });
    socket.say({ type: "pressure", state: "high", connection: "p" });
    relay.send(1);
    socket.end(4002);
    assert.equal(tell("error")[0][0].code, "unsent");
    assert.throws(() => relay.send(2), { code: "not_connected" });
  });

  test("undefined is no value and a stream id is a byte", async () => {
    const { relay } = start();
    assert.throws(() => relay.send(undefined), TypeError);
    for (const id of [-1, 256, 1.5, "1"]) assert.throws(() => relay.frame(id, bytes(1)), RangeError);
  });
});

describe("receiving", () => {
  test("reports frames, messages, errors, backplane and peer", async () => {
    const { relay, online, tell } = start();
    const socket = await online();
    socket.frame(0x05, 1, 2);
    socket.say({ type: "message", from: "mobile", data: { x: 1 }, id: "m" });
    socket.say({ type: "error", code: "peer_absent", detail: "" });
    socket.say({ type: "backplane", state: "down" });
    socket.say({ type: "peer", device: "mobile", state: "connected", connection: "p1", generation: 1 });
    socket.say({ type: "peer", device: "mobile", state: "connected", connection: "p2", generation: 2 });
    socket.say({ type: "peer", device: "mobile", state: "disconnected", connection: "p1", generation: 1 });
    assert.equal(relay.peer.connection, "p2");
    socket.say({ type: "peer", device: "mobile", state: "disconnected", connection: "p2", generation: 2 });
    assert.deepEqual(tell("frame").map(([id, data]) => [id, ...data]), [[5, 1, 2]]);
    assert.deepEqual(tell("message")[0][0].data, { x: 1 });
    assert.equal(tell("error")[0][0].code, "peer_absent");
    assert.equal(relay.backplane, "down");
    assert.deepEqual(tell("peer").map(([peer]) => peer?.connection ?? null), ["p1", "p2", null]);
  });

  test("what it does not know does not disturb it", async () => {
    const { relay, online } = start();
    const socket = await online();
    socket.say({ type: "news" });
    socket.onmessage({ data: "{" });
    assert.equal(relay.state, "online");
  });

  test("a listener's mistake does not disturb it, and its off function works", async (t) => {
    const { relay, online, tell } = start();
    const logged = t.mock.method(console, "error", () => {});
    const off = relay.on("frame", () => { throw new Error("mistake"); });
    const socket = await online();
    socket.frame(1, 1);
    off();
    socket.frame(1, 2);
    assert.equal(logged.mock.callCount(), 1);
    assert.equal(tell("frame").length, 2);
  });
});
