// The entry of the package, and of the one file that every relay serves. From top to bottom, the modules are: relay.js
// (the connection as an app sees it), attempt.js (when to try next, and how), decide.js (the table behind it), links.js (which
// link is which), link.js (one WebSocket), sender.js and outbox.js (what waits to be sent), budget.js, pacing.js and delay.js
// (how much, and how long), identity.js and address.js (who, and where to).

import { SendError } from "./errors.js";
import { TabClient } from "./identity.js";
import { DuoRelay } from "./relay.js";

/** Starts a connection that keeps itself alive. See duorelay.d.ts for the options. */
export function duorelay(options) {
  return new DuoRelay(options);
}

export { DuoRelay, SendError, TabClient };
