// The entry of the package, and of the one file that every relay serves. From top to bottom, the modules are: relay.js
// (which link, and when the next one), decide.js (the table behind it), link.js (one WebSocket), outbox.js and inbox.js
// (what waits), budget.js and delay.js (how much, and how long), identity.js and address.js (who, and where to).

import { SendError } from "./errors.js";
import { TabClient } from "./identity.js";
import { DuoRelay } from "./relay.js";

/** Starts a connection that keeps itself alive. See duorelay.d.ts for the options. */
export function duorelay(options) {
  return new DuoRelay(options);
}

export { DuoRelay, SendError, TabClient };
