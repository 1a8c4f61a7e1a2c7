import { userOf } from "./identity.js";
import { askTwice, within } from "./within.js";

/** The app's tokens: asks for one under a time limit, knows the user of the last one, and when the next one is due. */
export class Tokens {
  /** `UID` or `TENANT/UID` of the last token that could be read. */
  user = null;

  #getToken;
  #env;
  #timing;
  #refresh = null;
  #refreshedAt = -Infinity;

  constructor(getToken, env, timing) {
    this.#getToken = getToken;
    this.#env = env;
    this.#timing = timing;
  }

  /** A token, or null when nobody is signed in. */
  async ask(forceRefresh) {
    const { token, tokenAgain } = this.#timing;
    const ask = () => askTwice(this.#env, tokenAgain, () => this.#getToken({ forceRefresh }));
    return (await within(this.#env, token, ask)) ?? null;
  }

  isOfAnother(token) {
    const user = userOf(token);
    return user !== null && this.user !== null && user !== this.user;
  }

  /** The session ends at `expiresAt` (Unix seconds): calls `refresh` in time. */
  refreshBefore(expiresAt, refresh) {
    // A provider may give tokens that live shorter than the relay's warning time: then not again and again at once.
    const again = this.#env.now() - this.#refreshedAt < 30_000;
    const left = expiresAt * 1000 - this.#env.clock();
    this.#refreshIn(again ? Math.max(5_000, left / 2) : 0, refresh);
  }

  /** The last refresh failed. Close 4003 ends it. */
  refreshAgain(refresh) {
    this.#refreshIn(5_000 + this.#env.random() * 10_000, refresh);
  }

  stop() {
    this.#env.clearTimeout(this.#refresh);
  }

  #refreshIn(ms, refresh) {
    this.stop();
    this.#refresh = this.#env.setTimeout(() => {
      this.#refreshedAt = this.#env.now();
      refresh();
    }, ms);
  }
}
