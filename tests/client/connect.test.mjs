// How a client connects, stays and comes back. Longer than most files: every close code and refusal has its case here.
import { afterEach, beforeEach, describe, test } from "node:test";
import assert from "node:assert/strict";
import { answer, closeAll, freeze, pass, random, settle, start, thaw } from "./fakes.mjs";

beforeEach(freeze);
afterEach(thaw);

describe("handshake", () => {
  test("offers the protocol and the token, and names device and client", async () => {
    const { socket } = start();
    await settle();
    assert.deepEqual(socket().protocols, ["duorelay.v1", "token1"]);
    assert.equal(socket().url.href, "wss://relay.test/ws?device=desktop&client=tab&attempt=1800000000000");
  });

  test("is online from the welcome on, not from the open socket", async () => {
    const { relay, socket, tell } = start();
    await settle();
    socket().open();
    assert.equal(relay.state, "connecting");
    socket().say({ type: "welcome", connection: "c", limits: {}, peer: { connection: "p", generation: 3 }, device: "desktop", expires_at: 9 });
    assert.equal(relay.state, "online");
    assert.equal(relay.expiresAt, 9);
    assert.deepEqual(tell("peer"), [[{ device: "mobile", connection: "p", generation: 3 }]]);
  });

  test("an attempt without a welcome is given up after its time limit", async () => {
    const { socket, sockets, relay } = start();
    await settle();
    await pass(9_999);
    assert.equal(socket().closedWith, null);
    await pass(1);
    assert.equal(socket().closedWith, 1000);
    await pass(500);
    assert.equal(sockets(), 2);
    assert.equal(relay.state, "connecting");
  });

  test("a server that does not speak v1 is refused for good", async () => {
    const { relay, socket, tell } = start();
    await settle();
    socket().open("token1");
    assert.equal(relay.state, "refused");
    assert.equal(tell("refused")[0][0].code, "unsupported_protocol");
  });

  test("a getToken that hangs or fails is tried again", async () => {
    let calls = 0;
    const { sockets, tell } = start({ getToken: () => (++calls <= 2 ? new Promise(() => {}) : calls === 3 ? Promise.reject(new Error("offline")) : "t") });
    await pass(15_000);
    await pass(500);
    await pass(1_000);
    assert.equal(sockets(), 1);
    assert.deepEqual(tell("error").map(([{ code }]) => code), ["token_unavailable", "token_unavailable"]);
  });

  test("no token, or one that no browser would send, is fetched afresh once and then refused", async () => {
    for (const [bad, code] of [["", "missing_token"], ["white space", "malformed_token"]]) {
      const forced = [];
      const { relay, tell } = start({ getToken: ({ forceRefresh }) => (forced.push(forceRefresh), bad) });
      await settle();
      await pass(0);
      assert.deepEqual(forced, [false, true]);
      assert.equal(relay.state, "refused");
      assert.equal(tell("refused").at(-1)[0].code, code);
    }
  });

  test("mistakes of the caller are thrown at once", () => {
    assert.throws(() => start({ url: "not a url" }), TypeError);
    assert.throws(() => start({ device: "tablet" }), TypeError);
    assert.throws(() => start({ getToken: null }), TypeError);
  });
});

describe("close codes", () => {
  // [code, the state after it, the longest wait when random() is almost 1, is a fresh token asked for]
  const table = [
    [1000, "waiting", 500, false],
    [1001, "waiting", 500, false],
    [1002, "refused", null, false],
    [1005, "waiting", 500, false],
    [1006, "waiting", 500, false],
    [1007, "refused", null, false],
    [1008, "waiting", 60_000, false],
    [1009, "refused", null, false],
    [1011, "waiting", 500, false],
    [1012, "waiting", 1_000, false],
    [1013, "waiting", 500, false],
    [4001, "overwritten", null, false],
    [4002, "refused", null, false],
    [4003, "waiting", 1_000, true],
    [4008, "waiting", 500, false],
    [4009, "waiting", 500, false],
    [4999, "waiting", 500, false],
  ];
  for (const [code, state, wait, fresh] of table) {
    test(`${code}: ${state}${wait ? `, back within ${wait} ms` : ", never back by itself"}${fresh ? " with a fresh token" : ""}`, async () => {
      random.value = 0.999999;
      const { relay, online, sockets, tokens, tell } = start();
      (await online()).end(code);
      assert.equal(relay.state, state);
      assert.deepEqual(tell("close").map(([event]) => [event.code, event.willReconnect]), [[code, wait !== null]]);
      if (wait === null) {
        await pass(3_600_000);
        assert.equal(sockets(), 1);
        return;
      }
      await pass(wait - 10);
      assert.equal(sockets(), 1);
      await pass(10);
      assert.equal(sockets(), 2);
      assert.equal(tokens.at(-1), fresh);
    });
  }

  test("1008 waits at least half a minute, even when the page wakes up", async () => {
    random.value = 0;
    const { online, sockets, page } = start();
    (await online()).end(1008);
    page.dispatchEvent(new Event("online"));
    await pass(29_999);
    assert.equal(sockets(), 1);
    await pass(1);
    assert.equal(sockets(), 2);
  });

  test("a restart or an expiry that repeats at once is backed off from", async () => {
    for (const code of [1012, 4003]) {
      closeAll();
      random.value = 0.999999;
      const { online, sockets } = start();
      (await online()).end(code);
      await pass(1_000);
      (await online()).end(code);
      await pass(990);
      assert.equal(sockets(), 2, "failures 1: up to 1 s");
      await pass(10);
      (await online()).end(code);
      await pass(1_990);
      assert.equal(sockets(), 3, "failures 2: up to 2 s");
    }
  });

  test("connect() comes back after an overwrite", async () => {
    const { relay, online, sockets } = start();
    const first = await online();
    first.say({ type: "overwritten", by: { connection: "x", generation: 2, same_client: false } });
    assert.equal(relay.state, "overwritten");
    relay.connect();
    await settle();
    assert.equal(sockets(), 2);
    await online();
    assert.equal(relay.state, "online");
  });

  test("close() is final", async () => {
    const { relay, online, page, sockets } = start();
    const socket = await online();
    relay.close();
    assert.equal(socket.closedWith, 1000);
    socket.end(1000);
    page.dispatchEvent(new Event("online"));
    await pass(3_600_000);
    assert.equal(sockets(), 1);
    assert.equal(relay.state, "closed");
    assert.throws(() => relay.connect(), { code: "not_connected" });
    assert.throws(() => relay.send(1), { code: "not_connected" });
    assert.equal(relay.frame(1, new Uint8Array(1)), false);
  });

  test("close() from any listener is final too", async () => {
    for (const type of ["state", "welcome", "peer", "close", "error"]) {
      closeAll();
      const { relay, online, sockets } = start();
      const socket = await online({ peer: { connection: "p", generation: 1 } });
      relay.on(type, () => relay.close());
      socket.say({ type: "error", code: "bad_field", detail: "" });
      socket.end(1006);
      for (let i = 0; i < 5; i += 1) await pass(60_000);
      if (relay.state !== "closed") (await online()), await settle();
      assert.equal(relay.state, "closed", type);
      const before = sockets();
      for (let i = 0; i < 5; i += 1) await pass(60_000);
      assert.equal(sockets(), before, type);
    }
  });
});

test("close() while something is awaited is final too", async () => {
  let calls = 0;
  const failing = start({ getToken: async () => { calls += 1; throw new Error("offline"); } });
  failing.relay.on("error", () => failing.relay.close());
  for (let i = 0; i < 5; i += 1) await pass(60_000);
  assert.equal(calls, 1);

  let tell;
  const asking = start({ fetch: () => new Promise((resolve) => { tell = resolve; }) });
  await settle();
  asking.socket().end(1006);
  await settle();
  asking.relay.close();
  tell(answer(403, "origin_not_allowed"));
  await settle();
  assert.equal(asking.relay.state, "closed");
  assert.deepEqual(asking.tell("refused"), []);
});

describe("full jitter", () => {
  async function waits(value, count) {
    closeAll();
    random.value = value;
    const { tell, socket, relay } = start();
    for (let i = 0; i < count; i += 1) {
      await settle();
      socket().open();
      socket().end(1013);
      await pass(tell("state").at(-1)[1].retryInMs);
    }
    relay.close();
    return tell("state").filter(([state]) => state === "waiting").map(([, { retryInMs }]) => retryInMs);
  }

  test("is at least nothing", async () => {
    assert.deepEqual(await waits(0, 4), [0, 0, 0, 0]);
  });

  test("is at most a doubling time with a cap", async () => {
    assert.deepEqual(await waits(1, 9), [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]);
  });

  test("starts anew after a connection that lived", async () => {
    random.value = 1;
    const { tell, online } = start();
    (await online()).end(1006);
    await pass(500);
    (await online()).end(1006);
    await pass(1_000);
    const socket = await online();
    await pass(10_000);
    socket.end(1006);
    assert.deepEqual(tell("state").filter(([state]) => state === "waiting").map(([, info]) => info.retryInMs), [500, 1_000, 500]);
  });
});

describe("a refused handshake", () => {
  async function refuse(given, ...answers) {
    given.setup.answers.push(...answers);
    await settle();
    given.socket().end(1006);
    await settle();
  }

  test("asks the session endpoint why, with the same token", async () => {
    const given = start({ url: "wss://relay.test/prefix/ws" });
    await refuse(given, answer(200));
    assert.deepEqual(given.asked, [{ url: "https://relay.test/prefix/v1/session?device=desktop&client=tab&attempt=1800000000000", authorization: "Bearer token1" }]);
  });

  for (const code of ["token_expired", "token_not_yet_valid", "token_revoked", "bad_signature", "unknown_key", "malformed_token", "wrong_audience", "wrong_issuer"]) {
    test(`${code}: one fresh token, then it stops`, async () => {
      const given = start();
      await refuse(given, answer(403, code));
      assert.equal(given.relay.state, "waiting");
      await pass(0);
      assert.deepEqual(given.tokens, [false, true]);
      await refuse(given, answer(403, code));
      assert.equal(given.relay.state, "refused");
      assert.deepEqual(given.tell("refused").map(([{ status, final }]) => [status, final]), [[403, false], [403, true]]);
      await pass(3_600_000);
      assert.equal(given.sockets(), 2);
    });
  }

  for (const [status, code] of [[403, "origin_not_allowed"], [403, "user_disabled"], [400, "bad_request"], [400, "unsupported_protocol"], [400, "bad_device"]]) {
    test(`${code}: stops at once`, async () => {
      const given = start();
      await refuse(given, answer(status, code));
      assert.equal(given.relay.state, "refused");
      await pass(3_600_000);
      assert.equal(given.sockets(), 1);
    });
  }

  for (const [status, code] of [[429, "too_many_attempts"], [503, "draining"], [503, "full"], [503, "backplane_unavailable"], [503, "keys_unavailable"]]) {
    test(`${code}: waits as long as Retry-After says, and jitter`, async () => {
      const given = start();
      await refuse(given, answer(status, code, { "retry-after": "7" }));
      given.page.dispatchEvent(new Event("online"));
      await pass(7_249);
      assert.equal(given.sockets(), 1);
      await pass(1);
      assert.equal(given.sockets(), 2);
    });
  }

  test("a Retry-After of days is not believed", async () => {
    const given = start();
    await refuse(given, answer(503, "full", { "retry-after": "864000" }));
    await pass(300_250);
    assert.equal(given.sockets(), 2);
  });

  for (const [what, ...answers] of [["a network error"], ["a session in order", answer(200)], ["something else's answer", new Response("<html>", { status: 404 })]]) {
    test(`${what}: back-off`, async () => {
      const given = start();
      await refuse(given, ...answers);
      assert.equal(given.relay.state, "waiting");
      await pass(250);
      assert.equal(given.sockets(), 2);
    });
  }

  test("a session endpoint that hangs is not waited for", async () => {
    const given = start({ fetch: () => new Promise(() => {}) });
    await refuse(given);
    await pass(10_000);
    await pass(250);
    assert.equal(given.sockets(), 2);
  });

  test("a handshake that opened is not asked about", async () => {
    const given = start();
    await settle();
    given.socket().open();
    given.socket().end(1013);
    await settle();
    assert.deepEqual(given.asked, []);
  });
});

describe("a half-open link", () => {
  test("is left when a ping stays unanswered", async () => {
    const { relay, online, sockets } = start();
    const socket = await online();
    socket.say({ type: "pong", id: "1", time: 0 });
    await pass(10_000);
    assert.equal(socket.said("ping").length, 2);
    await pass(14_999);
    assert.equal(relay.state, "online");
    await pass(1);
    assert.equal(socket.closedWith, 1000);
    await pass(250);
    assert.equal(sockets(), 2);
  });

  test("any frame is a sign of life", async () => {
    const { relay, online } = start();
    const socket = await online();
    for (let i = 0; i < 30; i += 1) {
      await pass(2_000);
      socket.frame(1, 2);
    }
    assert.equal(relay.state, "online");
  });

  test("a page that wakes up asks at once and waits less", async () => {
    const { relay, online, page } = start();
    const socket = await online();
    socket.say({ type: "pong", id: "1", time: 0 });
    page.dispatchEvent(new Event("visibilitychange"));
    assert.equal(socket.said("ping").length, 2);
    await pass(2_450);
    assert.equal(relay.state, "online");
    await pass(50);
    assert.equal(relay.state, "waiting");
  });

  test("the round trip is measured", async () => {
    const { relay, online } = start();
    const socket = await online();
    await pass(40);
    socket.say({ type: "pong", id: "1", time: 0 });
    assert.equal(relay.rtt, 40);
    await pass(10);
    socket.say({ type: "pong", id: "of another", time: 0 });
    assert.equal(relay.rtt, 40);
  });
});

describe("the page", () => {
  test("that comes online or becomes visible tries at once, but not more than once a second", async () => {
    random.value = 0.999;
    const { online, page, sockets } = start();
    const socket = await online();
    await pass(5_000);
    socket.end(1006);
    page.dispatchEvent(new Event("online"));
    await pass(0);
    assert.equal(sockets(), 2);
    (await online()).end(1006);
    page.dispatchEvent(new Event("visibilitychange"));
    await pass(999);
    assert.equal(sockets(), 2);
    await pass(1);
    assert.equal(sockets(), 3);
  });

  test("that becomes hidden does not", async () => {
    random.value = 0.999;
    const { online, page, sockets } = start();
    const socket = await online();
    await pass(5_000);
    socket.end(1006);
    page.document.visibilityState = "hidden";
    page.dispatchEvent(new Event("visibilitychange"));
    await pass(100);
    assert.equal(sockets(), 1);
  });

  test("leaves when it goes into the back/forward cache and comes back with it", async () => {
    const { relay, online, page, sockets } = start();
    const socket = await online();
    page.dispatchEvent(new Event("pagehide"));
    assert.equal(socket.closedWith, 1000);
    await pass(60_000);
    assert.equal(sockets(), 1);
    page.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
    await online();
    assert.equal(sockets(), 2);
    assert.equal(relay.state, "online");
  });

  test("stays away after the cache when it had been overwritten", async () => {
    const { relay, online, page, sockets } = start();
    (await online()).end(4001);
    page.dispatchEvent(new Event("pagehide"));
    page.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
    await pass(60_000);
    assert.equal(sockets(), 1);
    assert.equal(relay.state, "overwritten");
  });
});

describe("token refresh", () => {
  test("happens in the band when the relay warns", async () => {
    const { relay, online, tokens } = start();
    const socket = await online();
    socket.say({ type: "expiring", expires_at: 2_000_000_000 });
    await pass(0);
    assert.deepEqual(tokens, [false, true]);
    assert.deepEqual(socket.said("auth"), [{ type: "auth", token: "token2" }]);
    socket.say({ type: "authenticated", expires_at: 2_000_003_600 });
    assert.equal(relay.expiresAt, 2_000_003_600);
  });

  test("does not run hot with tokens that live shorter than the warning", async () => {
    const { online, tokens } = start();
    const socket = await online();
    socket.lively = true;
    socket.pong();
    for (let i = 0; i < 10; i += 1) {
      socket.say({ type: "expiring", expires_at: Date.now() / 1000 + 60 });
      await pass(100);
    }
    assert.equal(tokens.length, 2);
    await pass(30_000);
    assert.equal(tokens.length, 3);
  });

  test("is tried again when getToken fails", async () => {
    let calls = 0;
    const { online, tell } = start({ getToken: async () => { if (++calls === 2) throw new Error("offline"); return `t${calls}`; } });
    const socket = await online();
    socket.say({ type: "expiring", expires_at: 2_000_000_000 });
    await pass(0);
    assert.equal(tell("error")[0][0].code, "token_unavailable");
    await pass(15_000);
    assert.deepEqual(socket.said("auth"), [{ type: "auth", token: "t3" }]);
  });
});
