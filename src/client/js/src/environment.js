// What the client meets outside. Tests, and platforms without a part of it, give their own.

/** The options' own parts before the platform's. Looked up at each call, so that a polyfill may come late. */
export function environment({ WebSocket, RTCPeerConnection, fetch, page, environment: given = {} }) {
  return {
    WebSocket: WebSocket ?? globalThis.WebSocket,
    RTCPeerConnection: RTCPeerConnection ?? globalThis.RTCPeerConnection,
    fetch: fetch ?? ((...request) => globalThis.fetch(...request)),
    page: page === undefined ? browserPage() : page,
    location: globalThis.location,
    now: () => (globalThis.performance ?? Date).now(),
    clock: () => Date.now(),
    random: () => Math.random(),
    setTimeout: (work, ms) => globalThis.setTimeout(work, ms),
    clearTimeout: (timer) => globalThis.clearTimeout(timer),
    storage: sessionStorageIfAllowed(),
    ...given,
  };
}

/** React Native calls the global object `window` as well, without any event of a page. */
export function browserPage() {
  const page = globalThis.window;
  return typeof page?.addEventListener === "function" ? page : undefined;
}

/** Null where there is none: Node, or a browser that blocks site data (then the very access throws). */
export function sessionStorageIfAllowed() {
  try {
    return globalThis.window?.sessionStorage ?? null;
  } catch {
    return null;
  }
}

/** `crypto.randomUUID` is missing on plain http pages, and React Native has no `crypto` at all. */
export function randomHex(bytes, random = Math.random) {
  const values = new Uint8Array(bytes);
  if (globalThis.crypto?.getRandomValues) globalThis.crypto.getRandomValues(values);
  else values.forEach((_, index) => (values[index] = random() * 256));
  return hex(values);
}

const hex = (values) => Array.from(values, (value) => value.toString(16).padStart(2, "0")).join("");
