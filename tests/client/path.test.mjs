// The direct path with fakes of WebRTC: when a client takes it, how soon it leaves it, and what an app hears of that. What
// real browsers do with it is in tests/direct.
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, test } from "node:test";
import { freeze, pass, settle, start, thaw } from "./fakes.mjs";

beforeEach(freeze);
afterEach(thaw);

const PEER = { connection: "theirs", generation: 2 };
const KNOWS = { features: ["signal", "received"], peer: PEER };

class FakePeerConnection {
  static made = [];
  connectionState = "new";
  isClosed = false;

  constructor(configuration) {
    this.configuration = configuration;
    FakePeerConnection.made.push(this);
  }

  createDataChannel(name, options) {
    const connection = this;
    this.channel = {
      options,
      readyState: "connecting",
      bufferedAmount: 0,
      sent: [],
      send(message) {
        this.sent.push(message);
        const said = typeof message === "string" && JSON.parse(message);
        // The other library answers at once, unless a test has silenced it.
        if (said && said.t === "ping" && connection.lively) queueMicrotask(() => this.hear({ t: "pong", at: said.at, down: 5 }));
      },
      hear(message) {
        this.onmessage?.({ data: JSON.stringify(message) });
      },
      hearFrame(streamId, number, ...payload) {
        this.onmessage?.({ data: Uint8Array.from([streamId, 0, 0, number >> 8, number & 255, ...payload]).buffer });
      },
      said(type) {
        return this.sent.filter((message) => typeof message === "string").map((text) => JSON.parse(text)).filter(({ t }) => t === type);
      },
      get frames() {
        return this.sent.filter((message) => typeof message !== "string");
      },
    };
    return this.channel;
  }

  lively = true;
  async createOffer() { return { type: "offer", sdp: "offer" }; }
  async createAnswer() { return { type: "answer", sdp: "answer" }; }
  async setLocalDescription(description) { this.localDescription = description; }
  async setRemoteDescription(description) { this.remoteDescription = description; }
  async addIceCandidate() {}
  close() { this.isClosed = true; }
}

/** A desktop that has just got the other device's answer, and whose channel opened. */
async function direct(options = {}) {
  FakePeerConnection.made = [];
  const paths = [];
  const client = start({ direct: true, RTCPeerConnection: FakePeerConnection, ...options });
  client.relay.on("path", (...words) => paths.push(words));
  const socket = await client.online({ ...KNOWS, ...options.welcome });
  socket.lively = true;
  await loaded();
  const signals = () => socket.said("signal").map(({ data }) => data);
  const arrange = async () => {
    const connection = FakePeerConnection.made.at(-1);
    const session = signals().findLast(({ kind }) => kind === "offer").direct;
    socket.say({ type: "signal", from: PEER.connection, data: { direct: session, kind: "answer", sdp: "answer" } });
    await settle();
    connection.channel.readyState = "open";
    connection.channel.onopen();
    await settle();
    return connection;
  };
  const connection = await arrange();
  assert.equal(client.relay.path, "direct");
  return { ...client, socket, paths, signals, arrange, connection, channel: connection.channel };
}

/** The file with the direct path is read while the client connects: real time passes, and the fakes' does not. */
async function loaded() {
  const limit = process.uptime() + 20;
  while (FakePeerConnection.made.length === 0) {
    assert.ok(process.uptime() < limit, "no direct path was begun");
    await settle();
  }
  await settle();
}

/** A stream of 30 frames a second for so long; after how many ms its path was the relay's, or null. */
async function stream(client, ms, report) {
  for (let time = 0; time < ms; time += 33) {
    client.relay.frame(1, Uint8Array.of(time & 255));
    report?.();
    if (client.relay.path === "relay") return time;
    await pass(33);
  }
  return null;
}

/** The other library has read everything. */
const read = ({ channel }) => channel.hear({ t: "read", n: channel.frames.length, at: performance.now() });

describe("the direct path", () => {
  test("carries volatile frames, each on one path, and no reliable message", async () => {
    const client = await direct();
    const before = client.socket.frames.length;
    assert.equal(await stream(client, 1_000, () => read(client)), null);
    client.relay.frame(0x80, Uint8Array.of(1));
    client.relay.send("reliable");
    await settle();
    assert.equal(client.channel.frames.length, 31);
    assert.deepEqual(client.socket.frames.slice(before), [[0x80, 1]]);
    assert.equal(client.socket.said("send").length, 1);
  });

  test("asks the operator's STUN servers, and none by default", async () => {
    const client = await direct();
    assert.deepEqual(client.connection.configuration, { iceServers: [] });
    client.relay.close();
    const other = await direct({ welcome: { stun: ["stun:stun.example.com"] } });
    assert.deepEqual(other.connection.configuration, { iceServers: [{ urls: ["stun:stun.example.com"] }] });
  });

  test("is unordered, without retransmits, and made by both ends", async () => {
    const { channel } = await direct();
    assert.deepEqual(channel.options, { negotiated: true, id: 0, ordered: false, maxRetransmits: 0 });
  });

  test("is left within 300 ms when no report comes", async () => {
    const client = await direct();
    await stream(client, 500, () => read(client));
    const after = await stream(client, 1_000);
    assert.ok(after !== null && after <= 300, `${after} ms`);
    assert.deepEqual(client.paths.at(-1), ["relay", "silent"]);
  });

  test("is left within 300 ms when its buffer does not empty", async () => {
    const client = await direct();
    await stream(client, 500, () => read(client));
    client.channel.bufferedAmount = 8_000;
    const after = await stream(client, 1_000, () => read(client));
    assert.ok(after !== null && after <= 300, `${after} ms`);
    assert.deepEqual(client.paths.at(-1), ["relay", "full"]);
  });

  test("a frame waits for a buffer that has just filled, where a newer one replaces it", async () => {
    const client = await direct();
    client.channel.bufferedAmount = 5_000;
    const [before, dropped] = [client.channel.frames.length, client.relay.dropped];
    for (const byte of [1, 2, 3]) {
      client.relay.frame(1, Uint8Array.of(byte));
      await pass(20);
    }
    assert.equal(client.channel.frames.length, before);
    client.channel.bufferedAmount = 0;
    await pass(10);
    assert.deepEqual(client.channel.frames.slice(before).map((frame) => frame.at(-1)), [3]);
    assert.equal(client.relay.dropped - dropped, 2);
    assert.equal(client.relay.path, "direct");
  });

  test("frames wait for what the other end reports to have read, as they do for the relay", async () => {
    const client = await direct();
    // A path that carries 10 frames a second, with a queue before it; reports come all the while.
    let carried = 0;
    let sum = 0;
    for (let time = 0; time < 6_000; time += 10) {
      if (time % 30 === 0) client.relay.frame(1, new Uint8Array(300));
      if (time % 100 === 0 && carried < client.channel.frames.length) carried += 1;
      if (time % 50 === 0 && carried > 0) client.channel.hear({ t: "read", n: carried, at: performance.now() });
      await pass(10);
      if (time >= 3_000) sum = Math.max(sum, client.channel.frames.length - carried);
    }
    assert.equal(client.relay.path, "direct");
    assert.ok(sum <= 6, `${sum} frames under way, of the 120 that a sender without a window has there by then`);
    assert.ok(client.relay.dropped > 80, `${client.relay.dropped} replaced`);
  });

  test("is left at once when the page is hidden, and taken again once it is shown", async () => {
    const client = await direct();
    client.page.document.visibilityState = "hidden";
    client.page.dispatchEvent(new Event("visibilitychange"));
    // Not a turn later: a hidden page's timers may be a minute late.
    assert.equal(client.relay.path, "relay");
    assert.equal(client.signals().at(-1).kind, "bye");
    assert.ok(client.connection.isClosed);
    await pass(5);
    client.relay.frame(1, Uint8Array.of(9));
    assert.deepEqual(client.socket.frames.at(-1), [1, 9]);
    client.page.document.visibilityState = "visible";
    client.page.dispatchEvent(new Event("visibilitychange"));
    await settle();
    await client.arrange();
    assert.equal(client.relay.path, "direct");
  });

  test("is left at once when the network changes, and arranged anew", async () => {
    const client = await direct();
    client.page.dispatchEvent(new Event("online"));
    assert.equal(client.relay.path, "relay");
    assert.deepEqual([client.signals().at(-1).kind, client.signals().at(-1).because], ["bye", "network"]);
    await pass(2_000);
    await client.arrange();
    assert.equal(client.relay.path, "direct");
  });

  test("is left at once when its channel closes", async () => {
    const client = await direct();
    client.channel.onclose();
    assert.equal(client.relay.path, "relay");
  });

  test("ends at once with the peer, with an overwrite, and with close()", async () => {
    const ends = [
      ({ socket }) => socket.say({ type: "peer", device: "mobile", state: "disconnected", ...PEER }),
      ({ socket }) => socket.say({ type: "peer", device: "mobile", state: "connected", connection: "another", generation: 3 }),
      ({ socket }) => socket.say({ type: "overwritten", by: { connection: "x", generation: 9, same_client: false } }),
      ({ socket }) => socket.say({ type: "error", code: "wrong_user", detail: "another user has signed in" }),
      ({ socket }) => socket.end(1006),
      ({ relay }) => relay.close(),
      ({ relay }) => relay.signedOut(),
    ];
    for (const end of ends) {
      const client = await direct();
      end(client);
      assert.equal(client.relay.path, "relay", String(end));
      assert.ok(client.connection.isClosed, String(end));
      const frames = client.tell("frame").length;
      client.channel.hearFrame(1, 900, 1);
      assert.equal(client.tell("frame").length, frames, `${end}: a frame came by a path that had ended`);
      thaw();
      freeze();
    }
  });

  test("reports what it reads at least each 100 ms while frames come", async () => {
    const client = await direct();
    const at = [];
    const { send } = client.channel;
    client.channel.send = function (message) {
      if (typeof message === "string" && JSON.parse(message).t === "read") at.push(performance.now());
      return send.call(this, message);
    };
    const begin = performance.now();
    for (let number = 1; number <= 100; number += 1) {
      client.channel.hearFrame(1, number, 1);
      await pass(10);
    }
    const gaps = at.map((time, index) => time - (at[index - 1] ?? begin));
    assert.ok(at.length >= 10 && Math.max(...gaps) <= 100, gaps.join());
    assert.ok(at.length <= 21, "and not with every frame");
  });

  test("frames come once and never older after newer, whatever the channel does with them", async () => {
    const client = await direct();
    for (const number of [1, 2, 2, 5, 3, 4, 6, 6]) client.channel.hearFrame(1, number, number);
    client.socket.frame(1, 99); // by the relay: sent before the first direct one
    assert.deepEqual(client.tell("frame").map(([, [byte]]) => byte), [1, 2, 5, 6]);
  });
});

describe("signals", () => {
  test("that nobody heard are no error of the app's", async () => {
    const client = await direct();
    const { id } = client.socket.said("signal").at(-1);
    client.socket.say({ type: "error", code: "peer_absent", detail: "nobody is there", id });
    client.socket.say({ type: "error", code: "peer_absent", detail: "nobody is there", id: "the app's" });
    assert.deepEqual(client.tell("error").map(([error]) => error.id), ["the app's"]);
    assert.ok(client.socket.said("signal").every((signal) => signal.id === id), "each one can be told apart");
  });

  test("of another connection, or another session, change nothing", async () => {
    const client = await direct();
    const session = client.signals()[0].direct;
    client.socket.say({ type: "signal", from: "an earlier one", data: { direct: session, kind: "bye" } });
    client.socket.say({ type: "signal", from: PEER.connection, data: { direct: "an earlier one", kind: "bye" } });
    for (const data of [null, 7, "bye", { direct: session }, { direct: session, kind: "?" }]) {
      client.socket.say({ type: "signal", from: PEER.connection, data });
    }
    assert.equal(client.relay.path, "direct");
    client.socket.say({ type: "signal", from: PEER.connection, data: { direct: session, kind: "bye", because: "hidden" } });
    assert.equal(client.relay.path, "relay");
  });

  test("a peer that answers none within 3 s has no direct path, and gets no second offer", async () => {
    FakePeerConnection.made = [];
    const client = start({ direct: true, RTCPeerConnection: FakePeerConnection });
    const socket = await client.online(KNOWS);
    socket.lively = true;
    await loaded();
    await pass(2_900);
    assert.equal(FakePeerConnection.made[0].isClosed, false);
    await pass(200);
    assert.equal(FakePeerConnection.made[0].isClosed, true);
    await pass(60_000);
    assert.equal(socket.said("signal").filter(({ data }) => data.kind === "offer").length, 1);
    assert.equal(client.relay.path, "relay");
  });

  test("go to no relay that does not know them", async () => {
    FakePeerConnection.made = [];
    const client = start({ direct: true, RTCPeerConnection: FakePeerConnection });
    const socket = await client.online({ ...KNOWS, features: ["received"] });
    await pass(5_000);
    assert.deepEqual([socket.said("signal"), FakePeerConnection.made], [[], []]);
  });
});
