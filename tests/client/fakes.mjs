// What the client meets outside, under the tests' control: sockets, time, HTTP, the page.
import { mock } from "node:test";
import { duorelay } from "duorelay";

export class FakeWebSocket {
  static made = [];

  readyState = 0;
  bufferedAmount = 0;
  protocol = "";
  sent = [];
  closedWith = null;

  constructor(url, protocols) {
    if (protocols.some((protocol) => !/^[!-~]+$/.test(protocol))) throw new SyntaxError("not a subprotocol");
    this.url = new URL(url);
    this.protocols = protocols;
    FakeWebSocket.made.push(this);
  }

  /** Does the relay answer pings at once? */
  lively = false;

  send(message) {
    this.sent.push(message);
    if (this.lively && typeof message === "string" && JSON.parse(message).type === "ping") queueMicrotask(() => this.pong());
  }

  /** The relay answers the newest ping. */
  pong(time = Date.now()) {
    this.say({ type: "pong", id: this.said("ping").at(-1).id, time });
  }

  close(code) {
    this.closedWith = code;
    this.readyState = 2;
  }

  // The relay's side.
  open(protocol = "duorelay.v1") {
    this.readyState = 1;
    this.protocol = protocol;
    this.onopen?.({});
  }

  say(message) {
    this.onmessage?.({ data: JSON.stringify(message) });
  }

  frame(...bytes) {
    this.onmessage?.({ data: Uint8Array.from(bytes).buffer });
  }

  welcome(more = {}) {
    this.open();
    this.say({ ...WELCOME, connection: `c${FakeWebSocket.made.indexOf(this)}`, ...more });
  }

  end(code = 1006, reason = "") {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  get token() {
    return this.protocols[1];
  }

  /** JSON messages of a type that the client sent here. */
  said(type) {
    return this.sent.filter((message) => typeof message === "string").map((text) => JSON.parse(text)).filter((message) => message.type === type);
  }

  /** Binary messages as arrays of bytes. */
  get frames() {
    return this.sent.filter((message) => typeof message !== "string").map((bytes) => [...bytes]);
  }
}

export const WELCOME = {
  type: "welcome",
  connection: "c0",
  device: "desktop",
  generation: 1,
  uid: "u",
  peer: null,
  expires_at: 2_000_000_000,
  heartbeat_ms: 25_000,
  limits: { message_bytes: 65_536, messages_per_second: 240, queue_bytes: 1_048_576 },
  instance: "i",
};

let now;
let clock;
const relays = [];

/** Time stands still until `pass`; randomness is `random.value`. */
export function freeze() {
  now = 0;
  FakeWebSocket.made = [];
  random.value = 0.5;
  mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  mock.method(performance, "now", () => now);
  mock.method(Math, "random", () => random.value);
  setClock(1_800_000_000_000);
  mock.method(Date, "now", () => clock + now);
}

export function thaw() {
  closeAll();
  mock.timers.reset();
  mock.restoreAll();
}

/** What the clock says from now on, in Unix milliseconds. */
export function setClock(time) {
  clock = time - now;
}

/** A relay that is left alone would go on in real time. */
export function closeAll() {
  for (const relay of relays.splice(0)) relay.close();
  FakeWebSocket.made = [];
}

export const random = { value: 0.5 };

/** Lets time pass in small steps, with everything that awaits in between. */
export async function pass(ms) {
  await settle();
  const most = ms > 60_000 ? 1_000 : 50;
  for (let left = ms; left > 0 || left === ms; left -= most) {
    const step = Math.min(most, left);
    now += step;
    mock.timers.tick(step);
    await settle();
    if (left <= most) return;
  }
}

/** Lets everything that does not wait for time happen. */
export const settle = () => new Promise((resolve) => setImmediate(resolve));

/** An HTTP answer of the relay's session endpoint. */
export function answer(status, code, headers = {}) {
  return new Response(JSON.stringify({ code, detail: "because" }), { status, headers });
}

/** A relay client in the hands of a test, with every event that it emits in `told`. */
export function start(options = {}) {
  const told = [];
  const tokens = [];
  const page = Object.assign(new EventTarget(), { document: { visibilityState: "visible" } });
  const asked = [];
  const setup = { answers: [] };
  const relay = duorelay({
    url: "wss://relay.test/ws",
    client: "tab",
    device: "desktop",
    page,
    WebSocket: FakeWebSocket,
    getToken: async ({ forceRefresh }) => {
      tokens.push(forceRefresh);
      return `token${tokens.length}`;
    },
    fetch: async (url, { headers }) => {
      asked.push({ url: String(url), authorization: headers.authorization });
      const next = setup.answers.shift();
      if (next === undefined) throw new TypeError("network error");
      return next;
    },
    ...options,
  });
  relays.push(relay);
  for (const type of ["state", "welcome", "peer", "frame", "message", "overwritten", "refused", "error", "close", "backplane", "rtt",
    "delay", "expiring", "authenticated", "reconnect"]) {
    relay.on(type, (...details) => told.push([type, ...details]));
  }
  return {
    relay, told, tokens, page, asked, setup,
    socket: (index = -1) => FakeWebSocket.made.at(index),
    sockets: () => FakeWebSocket.made.length,
    tell: (type) => told.filter(([name]) => name === type).map(([, ...details]) => details),
    async online(more) {
      await settle();
      FakeWebSocket.made.at(-1).welcome(more);
      return FakeWebSocket.made.at(-1);
    },
  };
}
