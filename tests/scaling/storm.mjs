// Clients of the JavaScript library, as many as are asked for, which lose something and come back: what scaling.py
// compares the simulation of a fleet with. Reads one JSON object from standard input, and prints one.
import { readFileSync } from "node:fs";
import { createPrivateKey, sign } from "node:crypto";
import { WebSocket } from "../peers/node_modules/ws/wrapper.mjs";
import { duorelay } from "../../src/client/js/src/index.js";

const plan = JSON.parse(readFileSync(0, "utf8"));
const key = createPrivateKey(readFileSync(plan.key));
const encode = (value) => Buffer.from(typeof value === "string" ? value : JSON.stringify(value)).toString("base64url");

function token(uid) {
  const now = Math.floor(Date.now() / 1000);
  const claims = { iss: plan.issuer, aud: plan.audience, sub: uid, iat: now, auth_time: now, exp: now + 3600 };
  const signed = `${encode({ alg: "RS256", kid: plan.kid })}.${encode(claims)}`;
  return `${signed}.${sign("sha256", Buffer.from(signed), key).toString("base64url")}`;
}

// A balancer that knows at once: each connection goes to a living instance by chance.
const living = new Set(plan.ports);
function balanced(url) {
  const address = new URL(url);
  const ports = [...living];
  address.port = ports[Math.floor(Math.random() * ports.length)];
  return address;
}
const counts = { attempts: 0, refused: {} };
let lostAt = Infinity;
class Balanced extends WebSocket {
  constructor(url, protocols) {
    super(balanced(url), protocols);
    if (performance.now() >= lostAt) counts.attempts += 1;
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
async function until(what, holds) {
  const deadline = performance.now() + plan.limit;
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`${what} did not come within ${plan.limit} ms: ${JSON.stringify(counts)}`);
    await sleep(20);
  }
}

let online = 0;
const lost = new Set();
const back = [];
function client(number, uid, device, ready) {
  const relay = duorelay({
    url: `ws://127.0.0.1:${plan.ports[0]}/ws`,
    device,
    client: `storm-${number}`,
    getToken: async () => ready,
    WebSocket: Balanced,
    fetch: (url, options) => fetch(balanced(url), options),
    page: null,
  });
  relay.on("state", (state) => {
    if (state !== "online") return;
    online += 1;
    if (lost.delete(number)) back.push((performance.now() - lostAt) / 1000);
  });
  relay.on("close", () => {
    online -= 1;
    if (performance.now() >= lostAt) lost.add(number);
  });
  relay.on("refused", ({ code }) => {
    if (performance.now() >= lostAt) counts.refused[code] = (counts.refused[code] ?? 0) + 1;
  });
  return relay;
}

const people = Array.from({ length: plan.clients }, (_, number) => {
  const uid = `storm-${Math.floor(number / 2)}`;
  return [number, uid, number % 2 ? "mobile" : "desktop", token(uid)];
});
const relays = [];
if (plan.during) {
  // Redis stands still, and clients whose time it is come evenly over that time.
  lostAt = performance.now();
  process.kill(plan.kill, "SIGSTOP");
  const resume = sleep(plan.during).then(() => process.kill(plan.kill, "SIGCONT"));
  for (const [place, person] of people.entries()) {
    await sleep(Math.max(0, (plan.during * place) / people.length - (performance.now() - lostAt)));
    lost.add(person[0]);
    relays.push(client(...person));
  }
  await resume;
} else if (plan.send !== undefined) {
  for (const person of people) {
    relays.push(client(...person));
    await sleep(1000 / plan.rate);
  }
  await until("everybody", () => online === people.length);
  // A desktop's goes to a mobile, and back.
  if (plan.send) relays.forEach((relay) => relay.frame(1, new Uint8Array(plan.send)));
  await sleep(2000);
  console.log("sent");
  await sleep(plan.limit);
  process.exit(1);
} else {
  for (const person of people) {
    relays.push(client(...person));
    await sleep(1000 / plan.rate);
  }
  await until("everybody", () => online === people.length);
  lostAt = performance.now();
  living.delete(plan.ports[0]);
  process.kill(plan.kill, "SIGKILL");
  await until("the loss", () => lost.size > 0);
}
await until("everybody again", () => lost.size === 0 && online === people.length);
back.sort((one, other) => one - other);
const at = (part) => back[Math.max(0, Math.ceil(back.length * part) - 1)];
console.log(JSON.stringify({ lost: back.length, half: at(0.5), most: at(0.99), all: at(1), ...counts }));
process.exit(0);
