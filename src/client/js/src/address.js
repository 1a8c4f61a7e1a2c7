// The relay's address, and what stands in it. React Native's URL can be read but not changed, so it is text here.

const ABSOLUTE = /^(ws|http)(s?):\/\/([^/?#\s]+)([^?#\s]*)(?:\?([^#\s]*))?$/i;

/**
 * The parts of `url`, which a page may give relative to itself.
 * @throws {TypeError} for what no attempt could ever reach
 */
export function relayAddress(url, location) {
  let text = String(url ?? "/ws");
  if (/^[./]/.test(text)) {
    if (!location?.href) {
      throw new TypeError(
        `duorelay needs an absolute url, such as wss://relay.example.com/ws: "${text}" is relative, and there is no page here. ` +
          "Where a server renders a page, call duorelay() in the browser alone.",
      );
    }
    text = new URL(text, location.href).href;
  }
  const parts = ABSOLUTE.exec(text);
  if (!parts) throw new TypeError(`not a relay's url (wss://HOST/ws, or /ws of this page; without a #): "${text}"`);
  const [, , secure, host, path, query = ""] = parts;
  return { secure: secure !== "", host, path: path || "/", query };
}

/** Where an attempt goes: the WebSocket, and the question why it was refused. */
export function attemptUrls({ secure, host, path, query }, parameters) {
  const named = Object.entries(parameters).filter(([, value]) => value !== undefined);
  const kept = query.split("&").filter((pair) => pair !== "" && !(pair.split("=")[0] in parameters));
  const search = [...kept, ...named.map(([name, value]) => `${name}=${encodeURIComponent(value)}`)].join("&");
  const s = secure ? "s" : "";
  return {
    socket: `ws${s}://${host}${path}?${search}`,
    session: `http${s}://${host}${path.replace(/[^/]*$/, "v1/session")}?${search}`,
  };
}

/** A page by https may open a plain WebSocket to its own machine only (Mixed Content, W3C, section 3.1). */
export function isMixedContent({ secure, host }, location) {
  return location?.protocol === "https:" && !secure && !/^(localhost|127\.[\d.]+|\[::1\])(:\d+)?$/i.test(host);
}
