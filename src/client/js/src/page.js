// iOS may show a page again with any of these, and without `pageshow`.
const WAKES = ["online", "visibilitychange", "focus", "pageshow"];

/** What a page reports about itself: `on.wake`, `on.hide`, and `on.forbidden` for its own Content-Security-Policy. */
export class PageEvents {
  #page;
  #on;

  constructor(page, on) {
    this.#page = page;
    this.#on = on;
    for (const [type, listener] of this.#all()) page?.addEventListener(type, listener);
  }

  stop() {
    for (const [type, listener] of this.#all()) this.#page?.removeEventListener(type, listener);
  }

  #all() {
    return [...WAKES.map((type) => [type, this.#wake]), ["pagehide", this.#hide], ["securitypolicyviolation", this.#policy]];
  }

  #wake = ({ type, persisted }) => {
    const hidden = this.#page.document?.visibilityState === "hidden";
    if (type === "pageshow" ? persisted : type === "online" || !hidden) this.#on.wake();
  };

  #hide = () => this.#on.hide();

  #policy = ({ effectiveDirective, blockedURI = "" }) => {
    if (effectiveDirective === "connect-src") this.#on.forbidden(blockedURI);
  };
}
