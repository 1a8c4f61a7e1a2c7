import { afterEach, beforeEach, describe, test } from "node:test";
import assert from "node:assert/strict";
import { answer, freeze, pass, settle, start, thaw } from "./fakes.mjs";

beforeEach(freeze);
afterEach(thaw);

const bytes = (...values) => Uint8Array.from(values);
const data = (socket) => socket.said("send").map((message) => message.data);
const OURS = { connection: "c1", generation: 2, same_client: true };
const THEIRS = { connection: "x", generation: 3, same_client: false };

/** An online client that was asked to reconnect and is at the barrier before its second socket. */
async function leaving() {
  const given = start();
  const old = await given.online({ peer: { connection: "p", generation: 1 } });
  old.say({ type: "reconnect", reason: "draining", in_ms: 300, deadline_ms: 5_000 });
  await pass(299);
  assert.equal(given.sockets(), 1);
  await pass(1);
  assert.equal(given.sockets(), 1);
  return { ...given, old };
}

/** The same with its second socket just opened. */
async function moving() {
  const given = await leaving();
  given.old.pong();
  await settle();
  assert.equal(given.sockets(), 2);
  return { ...given, next: given.socket() };
}

describe("make before break", () => {
  test("opens the next socket at the named time, with the same client and a token", async () => {
    const { next, relay } = await moving();
    assert.equal(next.url.searchParams.get("client"), "tab");
    assert.equal(next.token, "token2");
    assert.equal(relay.state, "online");
  });

  test("opens the next socket when the relay has handed on what the old one carried", async () => {
    const given = start();
    const old = await given.online({ peer: { connection: "p", generation: 1 } });
    given.relay.send("before");
    old.say({ type: "reconnect", reason: "lifetime", in_ms: 0, deadline_ms: 5_000 });
    await pass(0);
    given.relay.send("held");
    given.relay.frame(0x01, bytes(1));
    await pass(900);
    assert.deepEqual(old.sent.map((sent) => (typeof sent === "string" ? JSON.parse(sent).data ?? JSON.parse(sent).id : "frame")),
      ["1", "before", "2", "frame"]);
    old.say({ type: "pong", id: "1", time: 0 });
    await settle();
    assert.equal(given.sockets(), 1, "that was another ping");
    old.pong();
    await settle();
    assert.equal(given.sockets(), 2);
    given.socket().welcome();
    assert.deepEqual(data(given.socket()), ["held"]);
    assert.deepEqual(data(old), ["before"]);
  });

  test("a hidden page, whose timers are late, is on time by what arrives", async () => {
    const late = (work, ms) => setTimeout(work, ms + 60_000);
    const { online, sockets } = start({ environment: { setTimeout: late } });
    const old = await online();
    old.lively = true;
    old.say({ type: "reconnect", reason: "draining", in_ms: 300, deadline_ms: 5_000 });
    await pass(250);
    old.frame(1, 1);
    await settle();
    assert.equal(sockets(), 1);
    await pass(50);
    old.frame(1, 2);
    await settle();
    assert.equal(sockets(), 2);
  });

  test("does not wait longer than a second for that", async () => {
    const { sockets } = await leaving();
    await pass(999);
    assert.equal(sockets(), 1);
    await pass(1);
    assert.equal(sockets(), 2);
  });

  test("an old socket that ends at the barrier is replaced at once", async () => {
    const { old, relay, sockets, socket } = await leaving();
    relay.send("held");
    old.end(1012);
    await settle();
    assert.equal(sockets(), 2);
    socket().welcome();
    assert.deepEqual(data(socket()), ["held"]);
  });

  test("closed at the barrier, it opens no socket", async () => {
    const { relay, sockets } = await leaving();
    relay.close();
    await pass(5_000);
    assert.equal(sockets(), 1);
  });

  test("overwritten by another tab at the barrier, it opens no socket", async () => {
    const { old, relay, sockets } = await leaving();
    old.say({ type: "overwritten", by: THEIRS });
    await pass(5_000);
    assert.equal(relay.state, "overwritten");
    assert.equal(sockets(), 1);
  });

  test("holds reliable messages from opening the new socket until its welcome; volatile ones go on", async () => {
    const { relay, old, next } = await moving();
    relay.send("held");
    relay.frame(0x80, bytes(1));
    relay.frame(0x01, bytes(2));
    await pass(100);
    assert.deepEqual(data(old), []);
    assert.deepEqual(old.frames, [[1, 2]]);
    next.welcome();
    relay.frame(0x01, bytes(3));
    assert.deepEqual(data(next), ["held"]);
    assert.deepEqual(next.frames, [[0x80, 1], [1, 3]]);
    assert.deepEqual(data(old), []);
  });

  test("keeps receiving from the old socket until it closes, and reports its end to nobody", async () => {
    const { old, next, tell, relay } = await moving();
    next.welcome({ peer: { connection: "p", generation: 1 } });
    old.frame(0x02, 7);
    assert.deepEqual(tell("frame").map(([id, b]) => [id, ...b]), [[2, 7]]);
    old.say({ type: "overwritten", by: OURS });
    old.end(4001);
    assert.equal(relay.state, "online");
    assert.deepEqual(tell("close"), []);
    assert.deepEqual(tell("peer").length, 1, "the peer never left");
    assert.equal(tell("welcome").length, 2);
  });

  test("delivers reliable messages in order: the old socket's rest first", async () => {
    const { old, next, tell } = await moving();
    next.welcome();
    next.say({ type: "message", from: "mobile", data: 2 });
    next.frame(0x80, 3);
    old.say({ type: "message", from: "mobile", data: 1 });
    assert.deepEqual(tell("message").map(([m]) => m.data), [1]);
    old.end(4001);
    assert.deepEqual(tell("message").map(([m]) => m.data), [1, 2]);
    assert.deepEqual(tell("frame").map(([id]) => id), [0x80]);
  });

  test("never goes back in time within a volatile stream", async () => {
    const { old, next, tell } = await moving();
    next.welcome();
    next.frame(0x01, 20);
    old.frame(0x01, 10);
    old.frame(0x02, 10);
    assert.deepEqual(tell("frame").map(([id, b]) => [id, ...b]), [[1, 20], [2, 10]]);
  });

  test("does not wait for ever for an old socket that stays", async () => {
    const { old, next, tell } = await moving();
    next.welcome();
    next.say({ type: "message", from: "mobile", data: 1 });
    await pass(3_000);
    assert.equal(old.closedWith, 1000);
    assert.equal(tell("message").length, 1);
  });

  test("an overwritten that is faster than the new welcome is our own hand-over", async () => {
    const { old, next, relay, tell } = await moving();
    relay.send("held");
    old.say({ type: "overwritten", by: OURS });
    old.end(4001);
    assert.equal(relay.state, "online");
    assert.deepEqual(tell("overwritten"), []);
    next.welcome({ peer: { connection: "p", generation: 1 } });
    assert.deepEqual(data(next), ["held"]);
    assert.deepEqual(tell("state").map(([state]) => state), ["online"]);
    assert.deepEqual(tell("peer").length, 1);
  });

  test("another tab that takes over meanwhile wins", async () => {
    const { old, next, relay, sockets } = await moving();
    old.say({ type: "overwritten", by: THEIRS });
    assert.equal(relay.state, "overwritten");
    assert.equal(next.closedWith, 1000);
    await pass(3_600_000);
    assert.equal(sockets(), 2);
  });

  test("a failed second attempt is retried while the old socket serves on", async () => {
    const { old, next, relay, setup, sockets, socket, tell } = await moving();
    relay.send("held");
    setup.answers.push(answer(403, "origin_not_allowed"));
    next.end(1006);
    await settle();
    assert.deepEqual(data(old), ["held"], "not held any longer");
    assert.equal(relay.state, "online");
    await pass(250);
    old.pong();
    await settle();
    assert.equal(sockets(), 3);
    socket().end(1006);
    await settle();
    await pass(500);
    old.pong();
    await settle();
    assert.equal(sockets(), 4);
    socket().welcome();
    old.end(4001);
    assert.equal(relay.state, "online");
    assert.deepEqual(tell("close"), []);
  });

  test("at the deadline the old socket's 1012 leads to a common reconnect", async () => {
    const { old, next, relay, sockets } = await moving();
    next.end(1006);
    await settle();
    old.end(1012);
    assert.equal(relay.state, "waiting");
    await pass(1_000);
    assert.equal(sockets(), 3);
  });

  test("an old socket that ends while the new one is on its way leaves the new one alone", async () => {
    const { old, next, relay, sockets, tell } = await moving();
    old.end(1012);
    assert.equal(relay.state, "connecting");
    assert.deepEqual(tell("close").map(([event]) => event.willReconnect), [true]);
    await pass(1_000);
    assert.equal(sockets(), 2);
    next.welcome();
    assert.equal(relay.state, "online");
  });

  test("an attempt that claimed the slot and was lost before its welcome is no eviction", async () => {
    const { old, next, relay, sockets } = await moving();
    next.open();
    next.end(1006);
    old.say({ type: "overwritten", by: OURS });
    assert.equal(relay.state, "waiting");
    await pass(500);
    assert.equal(sockets(), 3);
  });

  test("asked twice, it opens one socket, whether the first is opening or its token is on the way", async () => {
    const again = { type: "reconnect", reason: "draining", in_ms: 300, deadline_ms: 5_000 };
    const opening = await moving();
    opening.old.say(again);
    await pass(300);
    assert.equal(opening.sockets(), 2);
    opening.relay.close();

    let give;
    let calls = 0;
    const waiting = start({ getToken: () => (++calls === 2 ? new Promise((resolve) => { give = resolve; }) : "t") });
    const old = await waiting.online();
    const before = waiting.sockets();
    old.say(again);
    await pass(300);
    old.say(again);
    give("late");
    await pass(300);
    old.say(again);
    old.pong();
    await pass(300);
    assert.equal(waiting.sockets(), before + 1);
  });

  test("close() from a message that waited for the old socket leaves no socket behind", async () => {
    const { next, relay, socket } = await moving();
    relay.on("message", () => relay.close());
    next.welcome();
    next.say({ type: "message", from: "mobile", data: 1 });
    next.say({ type: "reconnect", reason: "lifetime", in_ms: 0, deadline_ms: 5_000 });
    await pass(0);
    next.pong();
    await settle();
    const third = socket();
    assert.notEqual(third, next);
    third.welcome();
    assert.equal(relay.state, "closed");
    assert.deepEqual([next, third].map(({ closedWith }) => closedWith), [1000, 1000]);
    assert.equal(relay.welcome, null);
  });

  test("an overwrite by this client, with no connection of its own, is answered once in ten minutes", async () => {
    const { relay, online, sockets, socket } = start();
    (await online()).say({ type: "overwritten", by: OURS });
    assert.equal(relay.state, "waiting");
    await pass(500);
    assert.equal(sockets(), 2);
    await online();
    socket().lively = true;
    socket().pong();
    await pass(590_000);
    socket().say({ type: "overwritten", by: OURS });
    assert.equal(relay.state, "overwritten");
    await pass(20_000);
    relay.connect();
    (await online()).say({ type: "overwritten", by: OURS });
    assert.equal(relay.state, "waiting");
  });
});
