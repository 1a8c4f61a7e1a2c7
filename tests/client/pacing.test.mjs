// The freshness law against the vectors that bind the relay's copy and the clients'; tests/model/pacing_vectors.rs says
// what each step means.
import { describe, test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { Pacing, Reporter } from "../../src/client/js/src/pacing.js";

const VECTORS = JSON.parse(readFileSync(new URL("../vectors/pacing.json", import.meta.url), "utf8"));
const number = (value) => value ?? Infinity;

/** Languages round a division alike, but may order a sum in another way. */
function close(got, expected, step) {
  const wanted = number(expected);
  assert.ok(got === wanted || Math.abs(got - wanted) <= 1e-6 * (1 + Math.abs(wanted)), `${JSON.stringify(step)}: got ${got}`);
}

describe("the law", () => {
  for (const { name, new: given, steps } of VECTORS.pacing) {
    test(name, () => {
      const pacing = new Pacing(...given);
      for (const step of steps) {
        const [what, now, ...more] = step;
        if (what === "sent") {
          pacing.onSent(now, ...more);
        } else if (what === "may") {
          close(pacing.mayLeaveAt(now, more[0]), more[1], step);
        } else {
          assert.equal(what, "report");
          const [messages, readAt, taken, isLimited, pace, queue] = more;
          assert.equal(pacing.onReport(now, number(messages), number(readAt)), taken, JSON.stringify(step));
          if (!taken) continue;
          assert.equal(pacing.isLimited, isLimited, JSON.stringify(step));
          assert.equal(pacing.pace, pace, JSON.stringify(step));
          close(pacing.queue(now), queue, step);
        }
      }
    });
  }
});

describe("the reporter", () => {
  for (const { name, new: given, steps } of VECTORS.reporter) {
    test(name, () => {
      const reporter = new Reporter(...given);
      for (const step of steps) {
        const [what, ...more] = step;
        if (what === "pace") {
          reporter.setPace(more[0]);
        } else if (what === "read") {
          reporter.onRead(more[0], more[1]);
          close(reporter.dueAt, more[2], step);
        } else {
          assert.equal(what, "report");
          const { messages, time } = reporter.report(more[0]);
          assert.equal(messages, more[1], JSON.stringify(step));
          close(time, more[2], step);
        }
      }
    });
  }
});
