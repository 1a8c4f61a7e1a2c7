/** The JavaScript client of a duorelay relay: types of duorelay.js. */

export type Device = "desktop" | "mobile";

export interface Options {
  /**
   * Gives an ID token, or null while nobody is signed in: then the client waits until `connect()`. Called at every
   * connection, and with `forceRefresh` where a cached token will not do; a second time when it does not answer for 3 s.
   */
  getToken(request: { forceRefresh: boolean }): Token | Promise<Token>;
  /** The relay's WebSocket: absolute, or of this page (`/ws`, the default); http and ws are the same. */
  url?: string | URL;
  /** The slot to take. Default: what the relay makes of a token from a browser, `desktop`. */
  device?: Device;
  /** 1-64 of A-Z a-z 0-9 - _. Default: an id of this tab, that survives a reload and is never shared by two tabs. */
  client?: string;
  /** Bytes of reliable messages that may wait to be sent. Default 1 MiB; at most 1000 messages wait in any case. */
  queueBytes?: number;
  /**
   * Volatile frames go straight to the other device while that is possible (WebRTC), if the other page has this on as well.
   * The two devices, which are one person's, learn each other's addresses. Default false.
   */
  direct?: boolean;
  /** Single times in milliseconds. */
  timing?: Partial<Timing>;
  /** Logs what it does, without tokens and payloads: true for the console, or a function. */
  debug?: boolean | ((...words: unknown[]) => void);
  /** The platform's own unless given: Node before 22 needs the `WebSocket` of the package `ws`. */
  WebSocket?: unknown;
  RTCPeerConnection?: unknown;
  fetch?: typeof globalThis.fetch;
  /** Fires `online`, `focus`, `visibilitychange`, `pagehide` and `pageshow`; default `window`, where it has events. */
  page?: EventTarget & { document?: { visibilityState: string } };
  /** Clocks, timers, randomness and storage, for tests and for platforms without them. */
  environment?: Partial<Environment>;
}

/** Null or undefined: nobody is signed in. */
export type Token = string | null | undefined;

export interface Environment {
  /** Milliseconds that never go back. */
  now(): number;
  /** Unix milliseconds. */
  clock(): number;
  /** From 0 up to but not 1. */
  random(): number;
  setTimeout(work: () => void, ms: number): unknown;
  clearTimeout(timer: unknown): void;
  /** Keeps the number of the last attempt beside the client id. */
  storage: Pick<Storage, "getItem" | "setItem"> | null;
  location: { href: string; protocol: string } | undefined;
}

export interface Timing {
  /** From opening a socket to its welcome. */
  attempt: number;
  /** GetToken. */
  token: number;
  /** GetToken is called a second time: its own request may hang on a path that died. */
  tokenAgain: number;
  /** Asking why a handshake was refused. */
  session: number;
  /** Full jitter: random(0, min(backoffMax, backoff * 2 ** failures)). */
  backoff: number;
  backoffMax: number;
  /** "at once, with jitter" spreads a whole instance's clients over this time. */
  restart: number;
  /** The long back-off: random(1, 2) times this. */
  policy: number;
  /** A Retry-After is believed up to here. */
  retryAfterMax: number;
  /** A page that wakes up again and again tries at most this often. */
  wake: number;
  /** An overwrite by this very client is answered once in this time. */
  reclaim: number;
  /** A connection that lived this long forgets earlier failures. */
  stable: number;
  /** How often a ping asks for a sign of life (and measures the round trip). */
  ping: number;
  /** How long it may stay unanswered: then the path is dead. */
  silence: number;
  /** The same two while frames flow. */
  activePing: number;
  activeSilence: number;
  /** How long a move waits for the old relay to hand on what it was sent. */
  barrier: number;
  /** How long the old socket may deliver its rest after a hand-over. */
  linger: number;
  /** How long a `pressure` high holds without being repeated. */
  pressure: number;
  /** How long `send(…, { ack: true })` waits for its answer. */
  ack: number;
  /** How late a message that was read may be reported. */
  report: number;
  /** Browsers have no "drained" event: how often bufferedAmount is looked at. */
  poll: number;
  /** How long the desktop waits for the answer to its offer of a direct path. */
  directAnswer: number;
  /** From the answer to an open channel. */
  directOpen: number;
  /** How often what came on the direct path is reported. */
  directReport: number;
  /** How long a direct frame may stay unreported beyond the round trip. */
  directSilence: number;
  /** How often the direct path is measured. */
  directPing: number;
  /** How late a direct frame may arrive that nothing was heard of. */
  directSettle: number;
  /** How long it may be silent altogether. */
  directDead: number;
  /** The pause after a failure doubles from the first to the second of these. */
  directRetry: number;
  directRetryMax: number;
  /** A direct path that lived this long forgets earlier failures. */
  directStable: number;
  /** How much slower than the relay it may be, to be taken and to be kept. */
  directEnter: number;
  directStay: number;
}

/**
 * `connecting`: an attempt is under way; `online`: welcomed; `waiting`: it tries again by itself.
 * Until `connect()` is called: `overwritten` (another tab or device has the slot), `refused` (this page, user or
 * message will not do), `signed_out` (`getToken` gave null, or `signedOut()` was called). For good: `closed`.
 */
export type State = "connecting" | "online" | "waiting" | "overwritten" | "refused" | "signed_out" | "closed";

export interface StateInfo {
  /** With `waiting`: when it tries again; null while the page is hidden for good or in the back/forward cache. */
  retryInMs?: number | null;
  /** The reason: a refusal's code, or `network`, `restart`, `overloaded`, `upgrade_blocked`, … */
  code?: string;
  /** The same for people. */
  detail?: string;
}

export interface Slot {
  connection: string;
  generation: number;
}

export interface Peer extends Slot {
  device: Device;
}

export interface Welcome {
  type: "welcome";
  connection: string;
  device: Device;
  generation: number;
  uid: string;
  peer: Slot | null;
  /** Unix seconds. */
  expires_at: number;
  heartbeat_ms: number;
  limits: { message_bytes: number; messages_per_second: number; bytes_per_second?: number; queue_bytes: number };
  /** What the relay understands beyond the first version. */
  features?: string[];
  /** Servers from which a browser learns its public address, for the direct path. */
  stun?: string[];
  instance: string;
}

export interface Message {
  type: "message";
  from: Device | "server";
  /** From a v1 client or the server. */
  data?: unknown;
  /** From a classic client. */
  text?: string;
  id?: string;
  /** The other device waits for the news that your listeners got this; the client sends it. */
  ack?: boolean;
}

export interface Refusal {
  /** HTTP status; 0 when the refusal came as a close code or was found here. */
  status: number;
  /**
   * The relay's stable code, or one of `disconnected`, `message_too_big`, `protocol_error`, `invalid_utf8`, `not_allowed`
   * (the browser forbids this connection), `upgrade_blocked` (the relay answers over HTTP, but no WebSocket gets through).
   */
  code: string;
  detail: string;
  retryAfterMs?: number | null;
  /** It stops here, and does not try again by itself. */
  final: boolean;
}

export interface RelayError {
  /** The relay's code, or `token_unavailable` (getToken failed), `unsent` (it stopped with messages in its queue), `too_big`. */
  code: string;
  detail: string;
  id?: string;
}

export interface Events {
  state(state: State, info: StateInfo): void;
  /** A socket was welcomed: the first, one after a break, or one that replaced a socket without a gap. */
  welcome(welcome: Welcome): void;
  /** Who is the other device; null when it is gone, or when this connection does not know. */
  peer(peer: Peer | null): void;
  frame(streamId: number, bytes: Uint8Array): void;
  message(message: Message): void;
  /** `by` is null when the relay could not name the new holder. */
  overwritten(by: (Slot & { same_client: boolean }) | null): void;
  /** The token ends soon; a fresh one is on its way without your help. */
  expiring(event: { expires_at: number }): void;
  authenticated(event: { expires_at: number }): void;
  backplane(state: "up" | "down"): void;
  /** This socket will end; the next one is opened before that without your help. */
  reconnect(event: { reason: "draining" | "lifetime"; in_ms: number; deadline_ms: number }): void;
  refused(refusal: Refusal): void;
  error(error: RelayError): void;
  /** The connection ended by itself. */
  close(event: { code: number; reason: string; willReconnect: boolean }): void;
  /** A round trip between this client and the relay was measured, in milliseconds. */
  rtt(ms: number): void;
  /** The same, each way. */
  delay(delay: Delay): void;
  /** Volatile frames take another path; `because` says in one word why they are back on the relay's. */
  path(path: Path, because: string | null): void;
}

/** How long a message takes to the relay and from it, with what waits before it on the path: milliseconds, estimated. */
export interface Delay {
  up: number | null;
  down: number | null;
  /** Straight to the other device; null while there is no direct path. */
  direct: number | null;
}

/** Straight to the other device, or through the relay. */
export type Path = "direct" | "relay";

export class DuoRelay {
  constructor(options: Options);
  readonly state: State;
  readonly client: string;
  readonly welcome: Welcome | null;
  readonly peer: Peer | null;
  /** When the session ends, in Unix seconds. */
  readonly expiresAt: number | null;
  readonly backplane: "up" | "down";
  /** The last round trip to the relay and back, in milliseconds. */
  readonly rtt: number | null;
  readonly delay: Delay;
  /** The path that volatile frames take now. */
  readonly path: Path;
  /** Volatile frames that were not sent: a newer one replaced them, or their connection ended. */
  readonly dropped: number;
  /** Bytes of reliable messages that wait to be sent. */
  readonly queued: number;
  on<Type extends keyof Events>(type: Type, listener: Events[Type]): () => void;
  /**
   * Sends a frame to the other device: volatile on 0x00-0x7F, reliable on 0x80-0xFF.
   * False when a volatile frame had no connection to go to.
   * @throws {SendError} `too_big`; for a reliable frame also `queue_full` and `not_connected` (it has stopped)
   */
  frame(streamId: number, bytes: ArrayBuffer | ArrayBufferView): boolean;
  /**
   * Sends any JSON value to the other device, reliably. An `error` about it has its `id`.
   * @throws {SendError} `too_big`, `queue_full`, `not_connected` (it has stopped)
   */
  send(data: unknown, options?: { id?: string; ack?: false }): void;
  /**
   * The same, and resolves when the other device's listeners have got it. Rejects with a {@link SendError}: the relay's
   * code (`peer_absent`: nobody is there), `timeout` (it may have arrived or not), `closed`, `ack_unsupported`.
   * `id` must be unique over all clients and time; by default the client makes one. `timeout` is 10,000 ms.
   */
  send(data: unknown, options: { id?: string; ack: true; timeout?: number }): Promise<void>;
  /**
   * Resolves once at most half of the queue is taken: await it before each chunk of a file.
   * Rejects with `not_connected` when the connection has stopped.
   */
  drained(): Promise<void>;
  /**
   * Tries now, also after `overwritten`, `refused` and `signed_out`. Online, it asks `getToken` again: another user's token
   * ends the connection and opens that user's. Call it whenever somebody signs in.
   */
  connect(): void;
  /** Nobody is signed in any more: ends the connection at once, and drops what waits. `connect()` goes on. */
  signedOut(): void;
  /** The network changed, or the app is in the foreground: looks at once whether the path still works. Pages need not call it. */
  wake(): void;
  /** Ends the connection for good. */
  close(): void;
}

export class SendError extends Error {
  /** `queue_full`, `too_big`, `not_connected`; of an ack also `timeout`, `closed`, `ack_unsupported`, or the relay's. */
  readonly code: string;
}

/** The client id of a tab, kept in sessionStorage while no page holds it. */
export class TabClient {
  constructor(storage: Pick<Storage, "getItem" | "setItem" | "removeItem"> | null, page?: EventTarget);
  readonly id: string;
  static ofThisPage(): TabClient;
}

export function duorelay(options: Options): DuoRelay;
