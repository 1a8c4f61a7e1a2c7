// A page that has been hidden for minutes, in Chromium with its own throttling: once a minute for all timers. A flag shortens
// the five minutes after which it begins to some seconds.
import assert from "node:assert/strict";
import { after, test } from "node:test";
import { endAll, eventually, startBrowser, startPages, startRelay } from "./world.mjs";

after(endAll);

const THROTTLING = "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/3,grace_period_seconds_loaded/3";

test("a page that has been hidden for minutes stays online, receives, and sends at once", { timeout: 120_000 }, async () => {
  const relay = await startRelay();
  const browser = await startBrowser("chromium", [THROTTLING]);
  const pages = await startPages(() => relay);
  const hidden = await browser.client(pages, { user: "minutes", url: relay.ws });
  const shown = await browser.client(pages, { user: "minutes", url: relay.ws, device: "mobile" });
  await shown.bringToFront();
  await eventually("the page to be hidden", 10_000, async () => {
    assert.equal(await hidden.evaluate(() => document.visibilityState), "hidden");
  });
  // A chain of timers, as the client's own, until it stands still for longer than a second.
  await hidden.evaluate(() => {
    window.rings = [];
    const ring = () => {
      window.rings.push(performance.now());
      setTimeout(ring, 100);
    };
    ring();
  });
  await eventually("the timers to come once a minute", 60_000, async () => {
    const [count, quiet] = await hidden.evaluate(() => [window.rings.length, performance.now() - window.rings.at(-1)]);
    assert.ok(count > 5 && quiet > 3_000, `${count} rings, the last one ${Math.round(quiet)} ms ago`);
  });
  const begin = await hidden.evaluate(() => window.rings.length);

  await shown.evaluate(() => void (window.sending = setInterval(() => relay.frame(1, new Uint8Array(300)), 33)));
  await eventually("frames", 20_000, async () => assert.ok((await hidden.evaluate(() => told.frame.length)) > 60));
  const took = await hidden.evaluate(async () => {
    const start = performance.now();
    const sent = Array.from({ length: 200 }, (_, i) => relay.send(String(i).padEnd(2_000), { ack: i === 199 }));
    await sent[199];
    return performance.now() - start;
  });
  const [state, closes, rings] = await hidden.evaluate(() => [relay.state, told.close, window.rings.length]);
  console.log(`chromium: 200 reliable messages of 2 KB from a page hidden for minutes took ${Math.round(took)} ms; ${rings - begin} timers rang meanwhile`);
  assert.deepEqual([state, closes], ["online", []]);
  assert.ok(took < 8_000, `${took} ms`);

  await hidden.bringToFront();
  await hidden.waitForFunction("document.visibilityState === 'visible'", { timeout: 20_000, polling: 50 });
  assert.equal(await hidden.evaluate(() => relay.send("back", { ack: true }).then(() => relay.state)), "online");
});
