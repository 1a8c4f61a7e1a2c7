// The direct path's rules without WebRTC: which path a frame takes, and that no order is lost when it changes.
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Arrivals, Departures, printOf } from "../../src/client/js/src/direct/order.js";
import { choosePath, retryAfter, silentAt } from "../../src/client/js/src/direct/path.js";
import { TIMING } from "../../src/client/js/src/direct/timing.js";

const NOW = 100_000;
const GOOD = { isOpen: true, isHidden: false, unheardSince: null, fullSince: null, trip: 4, heardAt: NOW - 10, notBefore: -Infinity };

describe("which path the next volatile frame takes", () => {
  const table = [
    ["an open, measured path", {}, "direct", null],
    ["no open channel", { isOpen: false }, "relay", "closed"],
    ["a page in the background", { isHidden: true }, "relay", "hidden"],
    ["a report that may still come", { unheardSince: NOW - 153 }, "direct", null],
    ["a report that is overdue by the round trip", { unheardSince: NOW - 154 }, "relay", "silent"],
    ["a long round trip gives half the silence more, and no more", { trip: 1_000, unheardSince: NOW - 225 }, "relay", "silent"],
    ["a buffer that has just filled", { fullSince: NOW - 149 }, "direct", null],
    ["a buffer that does not empty", { fullSince: NOW - 150 }, "relay", "full"],
    ["a failure a moment ago", { notBefore: NOW + 1 }, "relay", "failed"],
    ["the end of the pause", { notBefore: NOW }, "direct", null],
    ["no round trip yet", { trip: null }, "relay", "unmeasured"],
  ];
  for (const [name, change, path, because] of table) {
    test(name, () => assert.deepEqual(choosePath(NOW, "relay", { ...GOOD, ...change }, 50, TIMING), { path, because }));
  }

  test("nothing goes back to a channel that does not answer, and nothing leaves one for that alone", () => {
    const quiet = { ...GOOD, heardAt: NOW - 2_001 };
    assert.equal(choosePath(NOW, "relay", quiet, 50, TIMING).because, "unheard");
    assert.equal(choosePath(NOW, "direct", quiet, 50, TIMING).path, "direct");
  });

  test("a slower path is taken up to 10 ms and kept up to 40 ms beyond the relay's", () => {
    const slower = (ms) => ({ ...GOOD, trip: 2 * (20 + ms) });
    assert.equal(choosePath(NOW, "relay", slower(10), 20, TIMING).path, "direct");
    assert.equal(choosePath(NOW, "relay", slower(11), 20, TIMING).because, "slower");
    assert.equal(choosePath(NOW, "direct", slower(40), 20, TIMING).path, "direct");
    assert.equal(choosePath(NOW, "direct", slower(41), 20, TIMING).because, "slower");
    assert.equal(choosePath(NOW, "relay", slower(500), null, TIMING).path, "direct", "nothing to compare with");
  });

  test("the pause after a failure doubles up to a minute", () => {
    assert.deepEqual([0, 1, 4, 5, 50].map((failures) => retryAfter(failures, TIMING)), [2_000, 4_000, 32_000, 60_000, 60_000]);
  });

  test("nothing is overdue while nothing was sent", () => assert.equal(silentAt(GOOD, TIMING), Infinity));
});

describe("the order of a stream that changes its path", () => {
  const bytes = (...values) => Uint8Array.from(values);

  test("a frame by the relay is stale once a direct one has come", () => {
    const arrivals = new Arrivals();
    assert.ok(arrivals.fromRelay(0, 1, bytes(1)));
    assert.ok(arrivals.fromDirect(1, 1, 1));
    assert.ok(!arrivals.fromRelay(2, 1, bytes(0)));
    assert.ok(arrivals.fromRelay(2, 2, bytes(9)), "another stream has its own order");
  });

  test("direct frames are delivered once and never backwards", () => {
    const arrivals = new Arrivals();
    assert.deepEqual([3, 2, 3, 5, 4].map((number) => arrivals.fromDirect(0, 1, number)), [true, false, false, true, false]);
  });

  test("`back` opens the relay's path, and delivers the frame that came before it", () => {
    const arrivals = new Arrivals();
    arrivals.fromDirect(0, 1, 7);
    assert.ok(!arrivals.fromRelay(1, 1, bytes(8)));
    assert.deepEqual(arrivals.back(1, 7, printOf(bytes(8))), bytes(8));
    assert.ok(arrivals.fromRelay(2, 1, bytes(9)));
    assert.ok(!arrivals.fromDirect(3, 1, 7), "late direct frames are stale");
  });

  test("what was kept from before the direct path is not delivered", () => {
    const arrivals = new Arrivals();
    arrivals.fromDirect(0, 1, 7);
    arrivals.fromRelay(1, 1, bytes(5)); // older than frame 7
    assert.equal(arrivals.back(1, 7, printOf(bytes(8))), null);
  });

  test("a `back` that comes after the next direct frame changes nothing", () => {
    const arrivals = new Arrivals();
    arrivals.fromDirect(0, 1, 7);
    arrivals.fromDirect(1, 1, 8);
    assert.equal(arrivals.back(1, 7, 0), null);
    assert.ok(!arrivals.fromRelay(2, 1, bytes(1)));
  });

  test("a `back` that was lost silences a stream for a second only", () => {
    const arrivals = new Arrivals();
    arrivals.fromDirect(0, 1, 7);
    assert.ok(!arrivals.fromRelay(999, 1, bytes(8)));
    assert.ok(arrivals.fromRelay(1_000, 1, bytes(9)));
  });

  test("a stream owes one `back` for each way back, behind the pong", () => {
    const departures = new Departures();
    assert.ok(!departures.owesBack(1));
    departures.sentDirect(0, 1, 3);
    assert.ok(departures.owesBack(1));
    departures.sentByRelay(1, bytes(4), 10);
    assert.ok(!departures.owesBack(1));
    assert.deepEqual(departures.onPong(9), []);
    assert.deepEqual(departures.onPong(10), [[1, 3, printOf(bytes(4))]]);
    assert.ok(!departures.owesBack(1));
  });

  test("frames wait for the relay until the receiver knows of the direct path, or never will", () => {
    const departures = new Departures();
    assert.equal(departures.settledAt(100), -Infinity);
    departures.sentDirect(1_000, 1, 3);
    departures.sentDirect(1_020, 1, 4);
    assert.equal(departures.settledAt(100), 1_120);
    departures.onRead(2);
    assert.equal(departures.settledAt(100), 1_120);
    departures.onRead(3);
    assert.equal(departures.settledAt(100), -Infinity);
  });

  // Two paths have delays of their own. The relay keeps the newest waiting frame of a stream, and may stand still. The direct
  // path loses and reorders. The sender changes between them at random.
  for (let seed = 1; seed <= 200; seed += 1) {
    test(`seed ${seed}: nothing twice, and nothing older after something newer`, () => simulate(seed));
  }
});

function simulate(seed) {
  const random = mulberry32(seed);
  const events = [];
  let order = 0;
  const at = (time, work) => events.push({ time, order: ++order, work });
  const arrivals = new Arrivals();
  const departures = new Departures();
  const delivered = [];
  let path = "relay";
  let frame = 0;
  let number = 0;
  let ping = 0;
  let now = 0;

  // The relay on its way to the receiver: control before what waits, one frame waiting, and times when it stands still.
  const waiting = { frame: null, reliable: [] };
  let relayFreeAt = 0;
  let stalledUntil = 0;
  const relayLatency = 5 + random() * 60;
  const drain = () => {
    if (now < stalledUntil) return at(stalledUntil, drain);
    if (now < relayFreeAt) return at(relayFreeAt, drain);
    // Reliable and volatile take turns; either may be first.
    const reliableFirst = random() < 0.5;
    const next = reliableFirst && waiting.reliable.length ? waiting.reliable.shift() : (waiting.frame ?? waiting.reliable.shift());
    if (!next) return;
    if (next === waiting.frame) waiting.frame = null;
    relayFreeAt = now + random() * 20;
    at(Math.max(now + relayLatency, relayFreeAt + relayLatency), next);
    at(relayFreeAt, drain);
  };
  const direct = 1 + random() * 60; // at most 90 ms: less than what counts as late
  let waits = null;

  const deliver = (bytes) => delivered.push(bytes[0] * 256 + bytes[1]);
  const make = () => {
    frame += 1;
    waits = Uint8Array.of(frame >> 8, frame & 255);
    send();
  };
  const send = () => {
    if (!waits) return;
    const settled = departures.settledAt(100);
    if (path === "relay" && settled > now) return at(settled, send);
    const bytes = waits;
    waits = null;
    if (path === "direct") {
      const mine = ++number;
      departures.sentDirect(now, 1, mine);
      if (random() < 0.9) {
        at(now + direct * (0.5 + random()), () => {
          if (arrivals.fromDirect(now, 1, mine)) deliver(bytes);
          if (random() < 0.5) at(now + direct * (0.5 + random()), () => departures.onRead(mine));
        });
      }
      return;
    }
    at(now + 3, () => {
      waiting.frame = () => arrivals.fromRelay(now, 1, bytes) && deliver(bytes);
      drain();
    });
    if (departures.owesBack(1)) {
      const asked = ++ping;
      departures.sentByRelay(1, bytes, asked);
      at(now + 6, () => {
        for (const back of departures.onPong(asked)) {
          at(now + 3, () => {
            waiting.reliable.push(() => {
              const kept = arrivals.back(...back);
              if (kept) deliver(kept);
            });
            drain();
          });
        }
      });
    }
  };
  for (let time = 0; time < 6_000; time += 20 + Math.floor(random() * 30)) at(time, make);
  for (let time = 200; time < 6_000; time += 100 + random() * 700) at(time, () => (path = path === "direct" ? "relay" : "direct"));
  for (let time = 500; time < 6_000; time += 500 + random() * 1_500) at(time, () => (stalledUntil = now + random() * 400));
  while (events.length > 0) {
    events.sort((a, b) => a.time - b.time || a.order - b.order);
    const event = events.shift();
    now = event.time;
    event.work();
  }
  for (let index = 1; index < delivered.length; index += 1) {
    assert.ok(delivered[index] > delivered[index - 1], `${delivered[index]} after ${delivered[index - 1]}`);
  }
  assert.ok(delivered.length > frame / 4, `only ${delivered.length} of ${frame} frames arrived`);
}

/** A small generator with a seed. */
function mulberry32(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let value = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
  };
}
