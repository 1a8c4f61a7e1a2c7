// The table of what comes next, alone: every close code and refusal in every situation.
import { describe, test } from "node:test";
import assert from "node:assert/strict";
import { decide } from "../../src/client/js/src/decide.js";
import { TIMING } from "../../src/client/js/src/timing.js";

const CALM = { live: false, trying: false, failures: 0 };
const BY_OTHER = { connection: "x", generation: 9, same_client: false };
const BY_ITSELF = { connection: "y", generation: 9, same_client: true };
const closed = (code, more) => ({
  type: "closed", code, reason: "", by: null, opened: true, welcomed: true, succeeded: false, reclaimed: Infinity, ...more,
});
const refused = (code, more) => ({ type: "refused", status: 403, code, detail: "", tokenWasFresh: false, retryAfterMs: null, ...more });

/** [event, situation, what is decided, in the named fields] */
const TABLE = {
  closed: [
    [closed(1006), {}, { do: "retry", wait: [0, 500], failures: 1, code: "network" }],
    [closed(1006), { failures: 3 }, { do: "retry", wait: [0, 4_000], failures: 4 }],
    [closed(1006), { failures: 60 }, { do: "retry", wait: [0, 30_000] }],
    [closed(1006), { trying: true }, { do: "nothing" }],
    [closed(1006, { opened: false, welcomed: false }), {}, { do: "ask" }],
    [closed(1006, { opened: false, welcomed: false }), { live: true }, { do: "ask" }],
    [closed(1002), {}, { do: "stop", state: "refused", code: "protocol_error" }],
    [closed(1002, { welcomed: false }), {}, { do: "stop", state: "refused", code: "unsupported_protocol" }],
    [closed(1009), { live: true }, { do: "retry", wait: [0, 500] }],
    [closed(1008), { failures: 2 }, { do: "retry", wait: [30_000, 60_000], ordered: true, failures: 2 }],
    [closed(1012), {}, { do: "retry", wait: [0, 1_000], failures: 1, code: "restart" }],
    [closed(1012), { failures: 2 }, { do: "retry", wait: [0, 2_000], failures: 3 }],
    [closed(4003), {}, { do: "retry", wait: [0, 1_000], forceRefresh: true }],
    [closed(4003), { trying: true }, { do: "nothing", forceRefresh: true }],
    [closed(4001, { by: BY_OTHER }), {}, { do: "stop", state: "overwritten" }],
    [closed(4001, { by: BY_OTHER, succeeded: true }), { trying: true }, { do: "stop", state: "overwritten" }],
    [closed(4001), {}, { do: "stop", state: "overwritten" }],
    [closed(4001, { by: BY_ITSELF, succeeded: true }), { trying: true }, { do: "nothing" }],
    [closed(4001, { by: BY_ITSELF, succeeded: true }), {}, { do: "retry", wait: [0, 500] }],
    [closed(4001, { succeeded: true }), { trying: true }, { do: "nothing" }],
    [closed(4001, { by: BY_ITSELF }), {}, { do: "retry", wait: [0, 1_000], reclaim: true }],
    [closed(4001, { by: BY_ITSELF, reclaimed: 599_999 }), {}, { do: "stop", state: "overwritten" }],
  ],
  refused: [
    [refused("token_expired"), {}, { do: "retry", wait: [0, 0], forceRefresh: true, failures: 0 }],
    [refused("token_expired", { tokenWasFresh: true }), {}, { do: "stop", state: "refused", code: "token_expired" }],
    [refused("token_expired", { tokenWasFresh: true }), { live: true }, { do: "retry", wait: [0, 500] }],
    [refused("user_disabled"), {}, { do: "stop", state: "refused" }],
    [refused("user_disabled"), { live: true }, { do: "retry" }],
    [refused("superseded"), {}, { do: "retry", wait: [0, 0], failures: 1 }],
    [refused("superseded"), { failures: 1 }, { do: "retry", wait: [0, 1_000], failures: 2 }],
    [refused("full", { retryAfterMs: 7_000 }), { failures: 1 }, { do: "retry", wait: [7_000, 8_000], ordered: true }],
    [refused("full", { retryAfterMs: 1e9 }), {}, { do: "retry", wait: [300_000, 300_500], ordered: true }],
    [refused(""), {}, { do: "retry", wait: [0, 500] }],
  ],
  others: [
    [{ type: "failed", code: "network", detail: "" }, { failures: 1 }, { do: "retry", wait: [0, 1_000], failures: 2 }],
    [{ type: "reconnect", inMs: 700 }, { live: true, failures: 5 }, { do: "retry", wait: [700, 700], ordered: true, failures: 0 }],
    [{ type: "reconnect", inMs: 700 }, { live: true, trying: true }, { do: "nothing" }],
  ],
};

for (const [name, rows] of Object.entries(TABLE)) {
  describe(name, () => {
    for (const [event, situation, expected] of rows) {
      const { code, type, ...more } = event;
      test(`${type} ${code ?? ""} ${JSON.stringify(more)} in ${JSON.stringify(situation)}`, () => {
        const next = decide(event, { ...CALM, ...situation }, TIMING);
        for (const [key, value] of Object.entries(expected)) assert.deepEqual(next[key], value, key);
      });
    }
  });
}
