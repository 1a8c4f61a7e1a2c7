// The client in Chromium and Firefox against real relays.
import { after, before, describe, test } from "node:test";
import assert from "node:assert/strict";
import { endAll, eventually, startBlockingProxy, startBrowser, startPages, startPath, startRedis, startRelay } from "./world.mjs";

after(endAll);

/** A hidden page paints nothing, so waiting must not be tied to that. */
const WAIT = { timeout: 40_000, polling: 50 };

const sequence = (count) => Array.from({ length: count }, (_, index) => index);

for (const name of ["chromium", "firefox"]) {
  describe(name, { timeout: 180_000 }, () => {
    let browser;
    let relay;
    let pages;
    before(async () => {
      [browser, relay] = await Promise.all([startBrowser(name), startRelay()]);
      pages = await startPages(() => relay);
    });

    test("two pages stream to each other, and acks come back", async () => {
      const user = `${name}-connect`;
      const desktop = await browser.client(pages, { user, url: relay.ws });
      const mobile = await browser.client(pages, { user, url: relay.ws, device: "mobile" });
      await desktop.waitForFunction("relay.peer !== null", WAIT);
      await desktop.evaluate(() => relay.frame(1, Uint8Array.of(1, 2, 3)));
      await mobile.waitForFunction("told.frame.length === 1", WAIT);
      assert.deepEqual(await mobile.evaluate(() => told.frame.map(([stream, bytes]) => [stream, bytes])), [[1, [1, 2, 3]]]);
      const acked = await mobile.evaluate(() => relay.send({ hello: "desktop" }, { ack: true }).then(() => "delivered"));
      assert.equal(acked, "delivered");
      assert.deepEqual(await desktop.evaluate(() => told.message[0][0].data), { hello: "desktop" });
      await desktop.evaluate(() => relay.close());
      await mobile.waitForFunction("relay.peer === null", WAIT);
      assert.equal(await mobile.evaluate(() => relay.send(1, { ack: true }).catch(({ code }) => code)), "peer_absent");
      await Promise.all([desktop.close(), mobile.close()]);
    });

    test("a hidden page sends at the speed of the network", async () => {
      const user = `${name}-hidden`;
      const hidden = await browser.client(pages, { user, url: relay.ws });
      const shown = await browser.client(pages, { user, url: relay.ws, device: "mobile" });
      await shown.bringToFront();
      await eventually("the page to be hidden", 10_000, async () => {
        assert.equal(await hidden.evaluate(() => document.visibilityState), "hidden");
      });
      const took = await hidden.evaluate(async () => {
        const start = performance.now();
        const sent = Array.from({ length: 200 }, (_, i) => relay.send(String(i).padEnd(2_000), { ack: i === 199 }));
        await sent[199];
        return performance.now() - start;
      });
      assert.equal(await shown.evaluate(() => told.message.length), 200);
      // 0.1 to 0.3 s on a quiet machine; 20 s where a timer of a hidden page stands in the way.
      assert.ok(took < 8_000, `${took} ms`);
      console.log(`${name}: 200 reliable messages of 2 KB from a hidden page took ${Math.round(took)} ms`);
      await Promise.all([hidden.close(), shown.close()]);
    });

    test("a page whose own policy lacks the relay learns of it", async () => {
      const policy = `connect-src 'self'; script-src 'self' 'unsafe-inline'`;
      const strict = await startPages(() => relay, { headers: { "content-security-policy": policy } });
      const page = await browser.open(strict);
      await page.evaluate((given) => window.open_(given), { user: "policy", url: relay.ws });
      await page.waitForFunction("relay.state === 'refused'", WAIT);
      const [{ code, final }] = await page.evaluate(() => told.refused[0]);
      assert.deepEqual([code, final], ["not_allowed", true]);
      await page.close();
    });
  });

  describe(`${name}, a rolling restart of two instances`, { timeout: 180_000 }, () => {
    test("no reliable message is lost, doubled or reordered, each is acknowledged, and no frame goes back in time", async () => {
      const redis = await startRedis();
      const settings = ["--redis-url", redis, "--drain-delay-seconds", "0", "--drain-seconds", "3", "--handshakes-per-second-per-ip", "0"];
      const relays = await Promise.all([startRelay(settings), startRelay(settings)]);
      // A balancer that asks for readiness, as every balancer does.
      let turn = 0;
      const path = await startPath(async () => {
        for (let tried = 0; tried < 2; tried += 1) {
          const { port, http } = relays[turn++ % 2];
          if ((await fetch(`${http}/healthz/ready`).catch(() => ({}))).status === 200) return port;
        }
        return relays[0].port;
      });
      const browser = await startBrowser(name);
      const pages = await startPages(() => relays[0]);
      const user = `${name}-rolling`;
      const desktop = await browser.client(pages, { user, url: path.ws });
      const mobile = await browser.client(pages, { user, url: path.ws, device: "mobile" });
      await desktop.waitForFunction("relay.peer !== null", WAIT);
      await mobile.evaluate(() => {
        Object.assign(window, { count: 0, acked: 0, unacked: [] });
        window.sending = setInterval(() => {
          relay.send(count, { ack: true }).then(() => (window.acked += 1), ({ code }) => unacked.push(code));
          relay.frame(1, Uint8Array.of(count >> 8, count & 255));
          window.count += 1;
        }, 20);
      });
      for (const index of [0, 1]) {
        const { port } = relays[index];
        await relays[index].stop("SIGTERM");
        relays[index] = await startRelay(settings, port);
      }
      await mobile.evaluate(() => clearInterval(sending));
      const sent = await mobile.evaluate(() => count);
      await eventually("all messages to arrive", 15_000, async () => {
        assert.equal(await desktop.evaluate(() => told.message.length), sent);
      });
      assert.deepEqual(await desktop.evaluate(() => told.message.map(([{ data }]) => data)), sequence(sent));
      await mobile.waitForFunction("acked + unacked.length === count", WAIT);
      assert.deepEqual(await mobile.evaluate(() => unacked), []);
      const frames = await desktop.evaluate(() => told.frame.map(([, [high, low]]) => high * 256 + low));
      assert.ok(frames.every((frame, index) => index === 0 || frame > frames[index - 1]), `${frames}`);
      const closes = [await desktop.evaluate(() => told.close), await mobile.evaluate(() => told.close)];
      assert.deepEqual(closes, [[], []], "both moved without a break");
      console.log(`${name}: a rolling restart, ${sent} reliable messages and ${frames.length} of as many frames arrived`);
    });
  });
}

describe("chromium, a proxy that lets no WebSocket through", { timeout: 120_000 }, () => {
  test("is reported the second time, whatever it answers, and the client goes on", async () => {
    const relay = await startRelay();
    const browser = await startBrowser("chromium");
    const pages = await startPages(() => relay);
    const answers = [
      "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\n\n",
      "HTTP/1.1 200 OK\nContent-Type: text/html\nContent-Length: 5\n\n<html",
      "HTTP/1.1 301 Moved Permanently\nLocation: https://elsewhere.test/\nContent-Length: 0\n\n",
      "HTTP/1.1 403 Forbidden\nContent-Length: 2\n\nno",
      "HTTP/1.1 431 Request Header Fields Too Large\nContent-Length: 0\n\n",
      "",
    ];
    await Promise.all(answers.map(async (answer, index) => {
      const page = await browser.open(pages);
      await page.evaluate((given) => window.open_(given), { user: `blocked-${index}`, url: await startBlockingProxy(relay, answer) });
      await page.waitForFunction("told.refused.length > 0", WAIT);
      const [{ code, final }] = await page.evaluate(() => told.refused[0]);
      assert.deepEqual([code, final], ["upgrade_blocked", false], answer);
      assert.ok(["waiting", "connecting"].includes(await page.evaluate(() => relay.state)));
    }));
  });
});

describe("chromium, a path that dies", { timeout: 120_000 }, () => {
  for (const [what, sender] of [["sends", "desktop"], ["receives", "mobile"]]) {
    test(`is noticed within 5 s by a page that ${what} frames, and left within 8`, async () => {
      const relay = await startRelay();
      const path = await startPath(() => relay.port);
      const browser = await startBrowser("chromium");
      const pages = await startPages(() => relay);
      const user = `dead-${what}`;
      const desktop = await browser.client(pages, { user, url: path.ws });
      const mobile = await browser.client(pages, { user, url: relay.ws, device: "mobile" });
      await mobile.waitForFunction("relay.peer !== null", WAIT);
      const frames = () => void (window.sending = setInterval(() => relay.frame(1, new Uint8Array(300)), 33));
      await desktop.bringToFront();
      // How late this page's timers are: what a busy machine adds is none of the client's doing.
      await desktop.evaluate(() => {
        window.late = 0;
        let last = performance.now();
        setInterval(() => {
          const now = performance.now();
          window.late = Math.max(window.late, now - last - 50);
          last = now;
        }, 50);
      });
      await (sender === "desktop" ? desktop : mobile).evaluate(frames);
      await (sender === "desktop" ? mobile : desktop).waitForFunction("told.frame.length >= 3", WAIT);
      const died = Date.now();
      path.swallow();
      // By the page's own events: a new connection may be a moment away.
      await desktop.waitForFunction("told.state.length >= 4", WAIT);
      const states = await desktop.evaluate(() => told.state);
      assert.deepEqual(states.slice(-3).map(([state]) => state), ["waiting", "connecting", "online"]);
      const [noticed, back] = [states.at(-3), states.at(-1)].map(([, , at]) => at - died);
      const late = await desktop.evaluate(() => window.late);
      // A timer that is 500 ms late was frozen, and what arrived meanwhile gets a second to be read.
      const slack = late < 500 ? late : 2 * late + 1_000;
      console.log(`chromium: a dead path was noticed after ${noticed} ms by a page that ${what}, and left after ${back} ms`);
      assert.ok(noticed <= 5_000 + slack, `noticed after ${noticed} ms, timers ${late} ms late`);
      assert.ok(back <= 8_000 + 2 * slack, `back after ${back} ms, timers ${late} ms late`);
    });
  }
});
