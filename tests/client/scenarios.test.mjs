// The table of scenarios that all client libraries share; scenarios.md says what each step means.
import { afterEach, beforeEach, describe, test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { freeze, pass, random, settle, setClock, start, thaw } from "./fakes.mjs";

const TABLE = JSON.parse(readFileSync(new URL("scenarios.json", import.meta.url), "utf8"));
const UNASKED = new Set(["ping", "received", "reports"]);

beforeEach(freeze);
afterEach(thaw);

describe("the shared table", () => {
  for (const scenario of TABLE.scenarios) test(scenario.name, () => run(scenario));
});

async function run({ options = {}, random: drawn = 0.5, tokens = ["ada1"], steps }) {
  random.value = drawn;
  setClock(TABLE.clock);
  const given = tokens.slice();
  const client = start({
    url: TABLE.url,
    client: TABLE.client,
    device: TABLE.device,
    getToken: () => token(given.length > 1 ? given.shift() : given[0]),
    ...options,
  });
  const world = new World(client);
  await settle();
  for (const [index, step] of steps.entries()) {
    try {
      await world.step(step);
    } catch (error) {
      throw new Error(`step ${index + 1}, ${JSON.stringify(step)}: ${error.message}`, { cause: error });
    }
    await settle();
  }
}

function token(name) {
  if (name === null) return null;
  if (name === "hangs") return new Promise(() => {});
  if (name === "fails") return Promise.reject(new Error("no token"));
  return TABLE.tokens[name];
}

/** One client and the scripted relay around it. */
class World {
  #client;
  #socketsSeen = 0;
  #asked = 0;
  #events = new Map();
  #answers = new Map();
  #read = new Map();
  #ponged = new Map();

  constructor(client) {
    this.#client = client;
  }

  async step(step) {
    const verb = Object.keys(step).find((key) => key in VERBS);
    assert.ok(verb, "no such step");
    const socket = this.#client.socket(step.on === undefined ? -1 : step.on - 1);
    await VERBS[verb].call(this, step[verb], { socket, step, client: this.#client });
  }

  socket(expected) {
    assert.equal(this.#client.sockets(), ++this.#socketsSeen, "sockets opened");
    const socket = this.#client.socket();
    assert.equal(socket.protocols[0], "duorelay.v1");
    if (expected.token) assert.equal(socket.token, TABLE.tokens[expected.token]);
    compareQuery(socket.url, expected.query);
  }

  noSocket() {
    assert.equal(this.#client.sockets(), this.#socketsSeen, "sockets opened");
  }

  asked(expected) {
    const question = this.#client.asked[this.#asked++];
    assert.ok(question, "the client has not asked");
    if (expected.token) assert.equal(question.authorization, `Bearer ${TABLE.tokens[expected.token]}`);
    compareQuery(new URL(question.url), expected.query);
  }

  /** The next message on `socket`, without those of the types in UNASKED but `type`. */
  nextSent(socket, type) {
    const position = this.#read.get(socket) ?? 0;
    for (let index = position; index < socket.sent.length; index += 1) {
      const message = socket.sent[index];
      const json = typeof message === "string" ? JSON.parse(message) : null;
      if (json && UNASKED.has(json.type) && json.type !== type) continue;
      this.#read.set(socket, index + 1);
      return json ?? message;
    }
    return undefined;
  }

  pong(socket) {
    const pings = socket.said("ping");
    const ping = pings.at(-1);
    assert.ok(ping && this.#ponged.get(socket) !== ping.id, "no ping waits");
    this.#ponged.set(socket, ping.id);
    socket.say({ type: "pong", id: ping.id, time: Date.now() });
  }

  nextEvent(name) {
    const position = this.#events.get(name) ?? 0;
    const event = this.#client.tell(name)[position];
    if (event) this.#events.set(name, position + 1);
    return event;
  }

  do(name, { as, throws, ...step }, { relay, page }) {
    const actions = {
      frame: () => relay.frame(step.stream, Buffer.from(step.bytes, "hex")),
      send: () => relay.send(step.data, { id: step.id, ack: step.ack, timeout: step.timeout }),
      connect: () => relay.connect(),
      close: () => relay.close(),
      signed_out: () => relay.signedOut(),
      wake: () => page.dispatchEvent(new Event("online")),
    };
    assert.ok(name in actions, "no such action");
    if (throws) return assert.throws(actions[name], { code: throws });
    const answer = actions[name]();
    if (!(answer instanceof Promise)) return;
    const state = { state: "pending" };
    answer.then(() => (state.state = "resolved"), ({ code }) => Object.assign(state, { state: "rejected", code }));
    if (as) this.#answers.set(as, state);
  }

  answer(name, state, code) {
    const answer = this.#answers.get(name);
    assert.equal(answer?.state, state);
    if (code) assert.equal(answer.code, code);
  }
}

const VERBS = {
  welcome(fields, { socket }) { socket.welcome({ ...TABLE.welcome, ...fields }); },
  open(protocol, { socket }) { socket.open(protocol); },
  say(message, { socket }) { socket.say(message); },
  bytes(hex, { socket }) { socket.frame(...Buffer.from(hex, "hex")); },
  close(code, { socket }) { socket.end(code); },
  fail(_, { socket }) { socket.end(1006); },
  session({ status, body = {}, headers = {} }, { client }) {
    client.setup.answers.push(new Response(JSON.stringify(body), { status, headers }));
  },
  async pass(ms) { await pass(ms); },
  do(name, { step, client }) { this.do(name, step, client); },
  socket(expected) { this.socket(expected); },
  no_socket() { this.noSocket(); },
  asked(expected) { this.asked(expected); },
  sent(expected, { socket }) { contains(this.nextSent(socket, expected.type), expected); },
  sent_bytes(hex, { socket }) {
    const message = this.nextSent(socket);
    assert.ok(message instanceof Uint8Array, `no bytes but ${JSON.stringify(message)}`);
    assert.equal(Buffer.from(message).toString("hex"), hex);
  },
  nothing_sent(_, { socket }) { assert.equal(this.nextSent(socket), undefined); },
  pong(_, { socket }) { this.pong(socket); },
  ended(_, { socket }) { assert.notEqual(socket.closedWith, null, "the socket is open"); },
  state(state, { step, client }) {
    assert.equal(client.relay.state, state);
    if (step.code) assert.equal(client.tell("state").at(-1)[1].code, step.code);
  },
  event(name, { step }) {
    const event = this.nextEvent(name);
    assert.ok(event, "no such event");
    for (const [index, expected] of (step.with ?? []).entries()) {
      const found = event[index] instanceof Uint8Array ? Buffer.from(event[index]).toString("hex") : event[index];
      contains(found, expected);
    }
  },
  no_event(name) { assert.equal(this.nextEvent(name), undefined); },
  resolved(name) { this.answer(name, "resolved"); },
  rejected(name, { step }) { this.answer(name, "rejected", step.code); },
  pending(name) { this.answer(name, "pending"); },
  is(expected, { client: { relay } }) {
    for (const [name, value] of Object.entries(expected)) {
      assert.equal(name === "peer" ? relay.peer?.connection ?? null : relay[name], value, name);
    }
  },
};

function compareQuery(url, query = {}) {
  for (const [name, value] of Object.entries(query)) {
    const found = url.searchParams.get(name);
    if (value === "*") assert.ok(found, `${name} is absent`);
    else assert.equal(found, value, name);
  }
}

/** Objects are compared by the fields that are named. */
function contains(found, expected) {
  if (expected === null || typeof expected !== "object") return assert.equal(found, expected);
  assert.ok(found !== null && typeof found === "object", `${JSON.stringify(found)} is not ${JSON.stringify(expected)}`);
  for (const [key, value] of Object.entries(expected)) contains(found[key], value);
}
