// Who this client is: the id of a tab, the number of an attempt, the user of a token.

import { browserPage, randomHex, sessionStorageIfAllowed } from "./environment.js";

const CLIENT = "duorelay.client";
const ATTEMPT = "duorelay.attempt";

/**
 * The number of each attempt, above all earlier ones of this client. The relay refuses a lower one than the slot's
 * holder has. So a handshake that was given up, and is carried out late, cannot throw out its own successor.
 */
class Attempts {
  #storage;
  #last = 0;

  constructor(storage) {
    this.#storage = storage;
    this.goAbove(Number(storage?.getItem(ATTEMPT)) || 0);
  }

  /** Stored before the socket is opened: a page that reloads meanwhile must not use the number again. */
  next(clock) {
    this.#last = Math.max(Math.floor(clock), this.#last + 1);
    store(this.#storage, ATTEMPT, String(this.#last));
    return this.#last;
  }

  goAbove(number) {
    if (Number.isSafeInteger(number) && number > this.#last) this.#last = number;
  }
}

/**
 * The client id of this tab: a reload keeps it, so that the relay sees a hand-over and not an eviction.
 *
 * Duplicating a tab copies its sessionStorage, and two open tabs must never share an id. So the id is in the storage
 * only while no page holds it: taken out on load, written back on pagehide, taken out again when the page returns
 * from the back/forward cache. There another page of this tab may have held it meanwhile; if it is gone, a new one is
 * made.
 */
export class TabClient {
  static #ofThisPage;

  #storage;

  constructor(storage, page) {
    this.#storage = storage;
    this.#take();
    page?.addEventListener("pagehide", () => store(this.#storage, CLIENT, this.id));
    page?.addEventListener("pageshow", ({ persisted }) => persisted && this.#take());
  }

  /** One id for the whole page: two relays of one page are the same client. */
  static ofThisPage() {
    return (TabClient.#ofThisPage ??= new TabClient(sessionStorageIfAllowed(), browserPage()));
  }

  #take() {
    const id = this.#storage?.getItem(CLIENT);
    this.#storage?.removeItem(CLIENT);
    this.id = id || randomHex(16);
    this.attempts = new Attempts(this.#storage);
  }
}

/** A client that was given its id. */
export class NamedClient {
  constructor(id, storage) {
    this.id = id;
    this.attempts = new Attempts(storage);
  }
}

/** The storage may be full, or forbidden: then the next page of this tab is a new client. */
function store(storage, key, value) {
  try {
    storage?.setItem(key, value);
  } catch {}
}

/** `UID` or `TENANT/UID` of a token; null for one that cannot be read. Only the relay verifies it. */
export function userOf(token) {
  try {
    const claims = JSON.parse(base64UrlText(token.split(".")[1]));
    if (typeof claims.sub !== "string") return null;
    const tenant = claims.firebase?.tenant;
    return tenant ? `${tenant}/${claims.sub}` : claims.sub;
  } catch {
    return null;
  }
}

/** FNV-1a, 32 bits: many users share one, so it does not identify this one. */
export function affinityOf(user) {
  let hash = 0x811c9dc5;
  for (const byte of utf8(user)) hash = Math.imul(hash ^ byte, 0x01000193);
  return (hash >>> 0).toString(16).padStart(8, "0");
}

/** React Native's engine has had no TextEncoder and no atob for long. */
export function utf8(text) {
  const escaped = encodeURIComponent(text.replace(/[\ud800-\udfff]/gu, "\ufffd"));
  return Uint8Array.from(escaped.match(/%..|./g) ?? [], (unit) => (unit[1] ? parseInt(unit.slice(1), 16) : unit.charCodeAt(0)));
}

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

function base64UrlText(text) {
  let bits = 0;
  let held = 0;
  let escaped = "";
  for (const letter of text.replace(/=+$/, "")) {
    bits = (bits << 6) | ALPHABET.indexOf(letter);
    held += 6;
    if (held >= 8) escaped += `%${((bits >> (held -= 8)) & 0xff).toString(16).padStart(2, "0")}`;
  }
  return decodeURIComponent(escaped);
}
