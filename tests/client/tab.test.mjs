import { describe, test } from "node:test";
import assert from "node:assert/strict";
import { TabClient } from "duorelay";

/** A tab's sessionStorage. */
class Storage {
  #items;
  constructor(items = []) { this.#items = new Map(items); }
  getItem(key) { return this.#items.get(key) ?? null; }
  setItem(key, value) { this.#items.set(key, value); }
  removeItem(key) { this.#items.delete(key); }
  /** What "Duplicate tab" does. */
  copy() { return new Storage(this.#items); }
}

const hide = (page) => page.dispatchEvent(new Event("pagehide"));
const show = (page, persisted) => page.dispatchEvent(Object.assign(new Event("pageshow"), { persisted }));

describe("the client id of a tab", () => {
  test("is one that the relay takes", () => {
    assert.match(new TabClient(new Storage(), new EventTarget()).id, /^[A-Za-z0-9_-]{1,64}$/);
  });

  test("survives a reload", () => {
    const storage = new Storage();
    const page = new EventTarget();
    const { id } = new TabClient(storage, page);
    hide(page);
    assert.equal(new TabClient(storage, new EventTarget()).id, id);
  });

  test("is not shared with a duplicated tab, whether the copy is of a fresh or a reloaded tab", () => {
    const storage = new Storage();
    const page = new EventTarget();
    const first = new TabClient(storage, page);
    assert.notEqual(new TabClient(storage.copy(), new EventTarget()).id, first.id);
    hide(page);
    const reloaded = new TabClient(storage, new EventTarget());
    assert.notEqual(new TabClient(storage.copy(), new EventTarget()).id, reloaded.id);
  });

  test("is kept through the back/forward cache, where the next page of the tab takes it meanwhile", () => {
    const storage = new Storage();
    const page = new EventTarget();
    const first = new TabClient(storage, page);
    const { id } = first;
    hide(page);
    const nextPage = new EventTarget();
    const next = new TabClient(storage, nextPage);
    assert.equal(next.id, id);
    hide(nextPage);
    show(page, true);
    assert.equal(first.id, id);
    assert.notEqual(new TabClient(storage.copy(), new EventTarget()).id, id, "taken out again");
  });

  test("is a new one after the cache when another page still has it", () => {
    const storage = new Storage();
    const page = new EventTarget();
    const first = new TabClient(storage, page);
    const { id } = first;
    hide(page);
    const next = new TabClient(storage, new EventTarget());
    show(page, true);
    assert.equal(next.id, id);
    assert.notEqual(first.id, id);
  });

  test("the first pageshow of a page changes nothing", () => {
    const page = new EventTarget();
    const tab = new TabClient(new Storage(), page);
    const { id } = tab;
    show(page, false);
    assert.equal(tab.id, id);
  });

  test("works without storage", () => {
    assert.notEqual(new TabClient(null).id, new TabClient(null).id);
  });
});
