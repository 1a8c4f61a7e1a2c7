// Where the client may be: pages of all kinds, servers that render, React Native, and addresses that cannot work.
import { afterEach, beforeEach, describe, test } from "node:test";
import assert from "node:assert/strict";
import { duorelay } from "duorelay";
import { answer, closeAll, FakeWebSocket, freeze, pass, random, settle, start, thaw } from "./fakes.mjs";

beforeEach(freeze);
afterEach(thaw);

const event = (type, more = {}) => Object.assign(new Event(type), more);

describe("an address", () => {
  const at = (href) => ({ environment: { location: new URL(href) } });

  for (const url of [
    "wss://relay.test/ws#room", "ftp://relay.test/ws", "relay.test/ws", "localhost:3000/ws", "wss://", "wss:relay.test", "ws", "", "wss://relay.test/w s",
  ]) {
    test(`${JSON.stringify(url)} is the caller's mistake, thrown at once`, () => {
      assert.throws(() => start({ url, ...at("https://page.test/") }), { name: "TypeError" });
    });
  }

  for (const [url, href, expected] of [
    [undefined, "https://page.test/app?x=1#y", "wss://page.test/ws"],
    ["/relay/ws", "http://page.test:8080/app", "ws://page.test:8080/relay/ws"],
    ["./ws", "https://page.test/app/", "wss://page.test/app/ws"],
    ["http://relay.test", undefined, "ws://relay.test/"],
    ["HTTPS://Relay.Test:444/ws", undefined, "wss://Relay.Test:444/ws"],
    [new URL("wss://[::1]:3000/ws"), undefined, "wss://[::1]:3000/ws"],
    ["wss://relay.test/ws?device=mobile&zone=eu&client=x", undefined, "wss://relay.test/ws?zone=eu"],
  ]) {
    test(`${url} ${href ? `of ${href} ` : ""}is ${expected}`, async () => {
      start({ url, ...(href ? at(href) : {}) });
      await settle();
      const made = FakeWebSocket.made[0].url.href;
      const parameters = "device=desktop&client=tab&attempt=1800000000000";
      assert.equal(made, new URL(`${expected}${expected.includes("?") ? "&" : "?"}${parameters}`).href);
    });
  }

  test("without TLS, a page by https is not allowed to use it, and no token is refreshed for that", async () => {
    const { relay, tell, tokens, sockets } = start({ url: "ws://relay.test/ws", ...at("https://page.test/") });
    await settle();
    assert.equal(relay.state, "refused");
    assert.equal(tell("refused")[0][0].code, "not_allowed");
    assert.match(tell("refused")[0][0].detail, /wss:/);
    assert.deepEqual(tokens, [false]);
    assert.equal(sockets(), 0);
    closeAll();
    for (const local of ["ws://localhost:3000/ws", "ws://127.0.0.1/ws", "ws://[::1]:1/ws"]) start({ url: local, ...at("https://page.test/") });
    await settle();
    assert.equal(sockets(), 3);
  });

  test("the browser's veto is reported as what it is", async () => {
    class Forbidden {
      constructor() {
        throw Object.assign(new Error("insecure"), { name: "SecurityError" });
      }
    }
    const { tell, tokens } = start({ WebSocket: Forbidden });
    await settle();
    assert.deepEqual([tell("refused")[0][0].code, tell("refused")[0][0].final], ["not_allowed", true]);
    assert.deepEqual(tokens, [false]);
  });

  test("a page's own policy that lacks the relay is reported as that", async () => {
    const { relay, page, tell, socket, sockets } = start();
    await settle();
    page.dispatchEvent(event("securitypolicyviolation", { effectiveDirective: "img-src", blockedURI: "https://relay.test/x" }));
    page.dispatchEvent(event("securitypolicyviolation", { effectiveDirective: "connect-src", blockedURI: "https://other.test" }));
    assert.equal(relay.state, "connecting");
    page.dispatchEvent(event("securitypolicyviolation", { effectiveDirective: "connect-src", blockedURI: "wss://relay.test/ws" }));
    assert.equal(relay.state, "refused");
    assert.match(tell("refused")[0][0].detail, /Content-Security-Policy.*relay\.test/);
    socket().end(1006);
    await pass(60_000);
    assert.equal(sockets(), 1);
  });
});

describe("a server that renders a page", () => {
  test("may import the package, and hears what is wrong when it calls it", () => {
    assert.throws(() => duorelay({ getToken: () => "t" }), /no page here.*call duorelay\(\) in the browser/s);
    const WebSocket = globalThis.WebSocket;
    delete globalThis.WebSocket;
    try {
      assert.throws(() => duorelay({ getToken: () => "t", url: "wss://relay.test/ws" }), /no WebSocket here/);
    } finally {
      if (WebSocket) globalThis.WebSocket = WebSocket;
    }
  });
});

describe("React Native", () => {
  // Its global object is called `window` too and has no events; WebSocket does not count; URL cannot be changed; no crypto.
  const REMOVED = ["crypto", "TextEncoder", "atob", "location"];
  let kept;

  beforeEach(() => {
    kept = REMOVED.map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)]);
    for (const name of REMOVED) Object.defineProperty(globalThis, name, { value: undefined, configurable: true, writable: true });
    globalThis.window = globalThis;
  });
  afterEach(() => {
    for (const [name, descriptor] of kept) {
      delete globalThis[name];
      if (descriptor) Object.defineProperty(globalThis, name, descriptor);
    }
    delete globalThis.window;
  });

  test("connects, sends and receives, and runs no hot timer", async () => {
    class Native extends FakeWebSocket {
      constructor(...given) {
        super(...given);
        delete this.bufferedAmount;
      }
    }
    const { relay, socket, tell } = start({ page: undefined, client: undefined, WebSocket: Native });
    await settle();
    assert.match(socket().url.searchParams.get("client"), /^[0-9a-f]{32}$/);
    socket().welcome({ features: ["ack"] });
    socket().lively = true;
    relay.frame(1, Uint8Array.of(7));
    for (let i = 0; i < 100; i += 1) relay.send("ä".repeat(1_000));
    const answer = relay.send(1, { ack: true });
    await settle();
    assert.deepEqual(socket().frames, [[1, 7]]);
    assert.equal(socket().said("send").length, 101);
    socket().say({ type: "acked", id: socket().said("send").at(-1).id });
    await answer;
    const sent = socket().sent.length;
    await pass(1_000);
    assert.equal(socket().sent.length, sent);
    socket().frame(1, 1);
    assert.equal(tell("frame").length, 1);
  });

  test("an app that is in the foreground again says so by wake()", async () => {
    const { relay, online } = start({ page: undefined });
    const socket = await online();
    socket.pong();
    await pass(5_000);
    relay.wake();
    await pass(2_550);
    assert.equal(relay.state, "waiting");
  });
});

describe("a page that iOS hides and shows", () => {
  for (const [type, more] of [["visibilitychange"], ["focus"], ["online"], ["pageshow", { persisted: true }]]) {
    test(`comes back with ${type}, and nothing else`, async () => {
      const { relay, online, page, sockets } = start();
      const socket = await online();
      page.dispatchEvent(event("pagehide"));
      assert.equal(socket.closedWith, 1000);
      page.document.visibilityState = "hidden";
      page.dispatchEvent(event("visibilitychange"));
      await pass(60_000);
      assert.equal(sockets(), 1);
      assert.equal(relay.state, "waiting");
      relay.send("meanwhile");
      page.document.visibilityState = type === "online" ? "hidden" : "visible";
      page.dispatchEvent(event(type, more));
      await pass(0);
      assert.equal(sockets(), 2);
      assert.deepEqual((await online()).said("send").map(({ data }) => data), ["meanwhile"]);
    });
  }

  test("several events at once open one socket", async () => {
    const { online, page, sockets } = start();
    await online();
    page.dispatchEvent(event("pagehide"));
    for (const type of ["visibilitychange", "focus", "online"]) page.dispatchEvent(event(type));
    await pass(500);
    assert.equal(sockets(), 2);
  });
});

describe("an attempt that hangs when the network changes", () => {
  test("is given up for a new one with a higher number", async () => {
    const { online, page, socket, sockets } = start();
    await settle();
    await pass(2_000);
    page.dispatchEvent(event("online"));
    await settle();
    assert.equal(socket(0).closedWith, 1000);
    assert.equal(sockets(), 2);
    assert.ok(Number(socket(1).url.searchParams.get("attempt")) > Number(socket(0).url.searchParams.get("attempt")));
    await online();
  });
});

describe("attempts", () => {
  const numbers = () => FakeWebSocket.made.map((socket) => Number(socket.url.searchParams.get("attempt")));
  const storage = (items = new Map()) => ({ items, getItem: (key) => items.get(key) ?? null, setItem: (key, value) => items.set(key, value) });

  test("grow even when the clock falls, and are stored before the socket opens", async () => {
    const kept = storage();
    let clock = 5_000;
    const stored = [];
    class Watching extends FakeWebSocket {
      constructor(...given) {
        super(...given);
        stored.push(Number(kept.items.get("duorelay.attempt")));
      }
    }
    random.value = 0;
    const { socket } = start({ WebSocket: Watching, environment: { storage: kept, clock: () => clock } });
    for (const next of [4_000, 1, 9_000.7]) {
      await settle();
      clock = next;
      socket().open();
      socket().end(1006);
      await pass(1);
    }
    assert.deepEqual(numbers(), [5_000, 5_001, 5_002, 9_000]);
    assert.deepEqual(stored, numbers());
    closeAll();
    start({ environment: { storage: kept, clock: () => 1 } });
    await settle();
    assert.deepEqual(numbers(), [9_001]);
  });

  test("a storage that is full or forbidden is no reason to stop", async () => {
    start({ environment: { storage: { getItem: () => "no number", setItem() { throw new Error("full"); } }, clock: () => 7 } });
    await settle();
    assert.deepEqual(numbers(), [7]);
  });

  test("an older attempt's 409 does nothing", async () => {
    let tell;
    const { page, socket, sockets } = start({ fetch: () => new Promise((resolve) => { tell = resolve; }) });
    await settle();
    socket().end(1006);
    await pass(1_000);
    page.dispatchEvent(event("online"));
    await settle();
    assert.equal(sockets(), 2, "not waiting for an answer on the path that was left");
    tell(answer(409, "superseded"));
    await pass(5_000);
    assert.equal(sockets(), 2);
  });
});

describe("debug", () => {
  const SECRETS = /token\d|secret|7,7,7/;

  /** Each kind of thing that a client does, with payloads both ways; what was logged. */
  async function life(options) {
    const { relay, online } = start(options);
    const socket = await online({ peer: { connection: "p", generation: 1 } });
    relay.send({ text: "secret" });
    relay.frame(0x80, Uint8Array.of(7, 7, 7));
    socket.say({ type: "message", from: "mobile", data: "secret" });
    socket.frame(0x81, 7, 7, 7);
    socket.end(4003, "expired");
    await pass(1_000);
  }

  test("logs what it does, without tokens and payloads", async () => {
    const lines = [];
    await life({ debug: (...words) => lines.push(words.map((word) => JSON.stringify(word)).join(" ")) });
    const text = lines.join("\n");
    for (const word of ["connecting", "online", "closed", "4003"]) assert.match(text, new RegExp(word));
    assert.doesNotMatch(text, SECRETS);
  });

  test("true is for the console; without it nothing is logged", async (t) => {
    const logged = t.mock.method(console, "debug", () => {});
    await life({ debug: true });
    const calls = logged.mock.callCount();
    assert.ok(calls > 2, `${calls} lines`);
    assert.equal(logged.mock.calls[0].arguments[0], "duorelay:");
    await life({});
    assert.equal(logged.mock.callCount(), calls);
  });
});
