/** The browser client of a duorelay relay: types of duorelay.js. */

export type Device = "desktop" | "mobile";

export interface Options {
  /** Gives an ID token. Called at every connection, and with `forceRefresh` where a cached token will not do. */
  getToken(request: { forceRefresh: boolean }): string | Promise<string>;
  /** The relay's WebSocket: absolute, or relative to the page; http and ws are the same. Default `/ws`. */
  url?: string | URL;
  /** The slot to take. Default: what the relay makes of a token from a browser, `desktop`. */
  device?: Device;
  /** 1-64 of A-Z a-z 0-9 - _. Default: an id of this tab, that survives a reload and is never shared by two tabs. */
  client?: string;
  /** Bytes of reliable messages that may wait to be sent. Default 1 MiB; at most 1000 messages wait in any case. */
  queueBytes?: number;
  /** Single times in milliseconds, see TIMING in duorelay.js. */
  timing?: Partial<Timing>;
  /** For Node and for tests; default: the browser's own. */
  WebSocket?: unknown;
  fetch?: typeof globalThis.fetch;
  /** Tells `online`, `visibilitychange`, `pagehide` and `pageshow`; default `window`. */
  page?: EventTarget & { document?: { visibilityState: string } };
}

export interface Timing {
  attempt: number;
  token: number;
  session: number;
  backoff: number;
  backoffMax: number;
  restart: number;
  policy: number;
  retryAfterMax: number;
  stable: number;
  ping: number;
  silence: number;
  probe: number;
  barrier: number;
  linger: number;
  poll: number;
}

/**
 * `connecting`: an attempt is under way; `online`: welcomed; `waiting`: it tries again by itself.
 * Until `connect()` is called: `overwritten` (another tab or device has the slot), `refused` (this page, user or
 * message will not do). For good: `closed`.
 */
export type State = "connecting" | "online" | "waiting" | "overwritten" | "refused" | "closed";

export interface StateInfo {
  /** With `waiting`: when it tries again; null while the page is in the back/forward cache. */
  retryInMs?: number | null;
  /** With `overwritten` and `refused`. */
  code?: string;
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
  limits: { message_bytes: number; messages_per_second: number; queue_bytes: number };
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
}

export interface Refusal {
  /** HTTP status; 0 when the refusal came as a close code or was found here. */
  status: number;
  /** The relay's stable code, or one of `disconnected`, `message_too_big`, `protocol_error`, `invalid_utf8`. */
  code: string;
  detail: string;
  retryAfterMs?: number | null;
  /** It stops here, and does not try again by itself. */
  final: boolean;
}

export interface RelayError {
  /** The relay's code, or `token_unavailable` (getToken failed), `unsent` (it stopped with a full queue), `too_big`. */
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
  /** A round trip between this page and the relay was measured, in milliseconds. */
  rtt(ms: number): void;
}

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
  /** Volatile frames that a newer one replaced before they were sent. */
  readonly dropped: number;
  on<Type extends keyof Events>(type: Type, listener: Events[Type]): () => void;
  /**
   * Sends a frame to the other device: volatile on 0x00-0x7F, reliable on 0x80-0xFF.
   * False when a volatile frame had no connection to go to.
   * @throws {SendError} `too_big`; for a reliable frame also `queue_full` and `not_connected` (it has stopped)
   */
  frame(streamId: number, bytes: ArrayBuffer | ArrayBufferView): boolean;
  /**
   * Sends any JSON value to the other device, reliably.
   * @throws {SendError} `too_big`, `queue_full`, `not_connected` (it has stopped)
   */
  send(data: unknown, options?: { id?: string }): void;
  /** Tries now, also after `overwritten` and `refused`. */
  connect(): void;
  /** Ends the connection for good. */
  close(): void;
}

export class SendError extends Error {
  readonly code: "queue_full" | "too_big" | "not_connected";
}

/** The client id of a tab, kept in sessionStorage while no page holds it. */
export class TabClient {
  constructor(storage: Storage | null, page?: EventTarget);
  readonly id: string;
  static ofThisPage(): TabClient;
}

export function duorelay(options: Options): DuoRelay;
