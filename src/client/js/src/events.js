/** Listeners by the name of their event. */
export class Events {
  #listeners = new Map();

  /** The returned function ends it. */
  on(type, listener) {
    const listeners = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  /** True when somebody listens. */
  emit(type, ...details) {
    const listeners = this.#listeners.get(type);
    for (const listener of listeners ?? []) {
      try {
        listener(...details);
      } catch (cause) {
        // A listener's mistake must not break the connection.
        (globalThis.reportError ?? console.error)(cause);
      }
    }
    return listeners !== undefined && listeners.size > 0;
  }
}
