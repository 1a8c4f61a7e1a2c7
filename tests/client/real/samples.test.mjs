// The samples of the READMEs, read from there and run as written against a relay: only the relay's address is another, and
// a stand-in for Firebase gives the demo's tokens.
import { after, before, test } from "node:test";
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { WebSocket } from "ws";
import { duorelay } from "duorelay";
import { endAll, eventually, startBrowser, startRelay } from "./world.mjs";

const MODULES = fileURLToPath(new URL("../node_modules/", import.meta.url));
const read = (path) => readFileSync(new URL(`../../../${path}`, import.meta.url), "utf8");

let relay;
let browser; // one for all pages
before(async () => {
  relay = await startRelay();
});
after(endAll);

/** The samples that some test has run. */
const ran = new Set();

/** The samples of a language below a heading. */
function samples(path, heading, language) {
  const text = `\n${read(path)}`;
  const from = text.indexOf(`\n${heading}\n`);
  assert.ok(from >= 0, `${path} has no heading "${heading}"`);
  const level = /^#+/.exec(heading)[0].length;
  const rest = text.slice(from + heading.length + 2);
  const end = rest.search(new RegExp(`^#{1,${level}} `, "m"));
  const section = end < 0 ? rest : rest.slice(0, end);
  const blocks = [...section.matchAll(/^```(\w+)\n(.*?)^```$/gms)].filter(([, name]) => name === language).map(([, , code]) => code);
  assert.ok(blocks.length > 0, `no ${language} below "${heading}"`);
  for (const block of blocks) ran.add(block);
  return blocks;
}

const here = (code) => code.replaceAll("wss://relay.example.com", relay.ws.replace("/ws", "")).replaceAll("https://relay.example.com", relay.http);

/** firebase/auth, as far as the samples use it: somebody is signed in, and the page knows it after a moment. */
const firebase = (token) => `
  const user = { getIdToken: async () => ${JSON.stringify(token)} };
  const auth = { currentUser: null, authStateReady: () => ready };
  export const connectAuthEmulator = () => {};
  export const createUserWithEmailAndPassword = async () => { throw new Error("this account exists"); };
  export const signInWithEmailAndPassword = async () => {};
  const ready = new Promise((resolve) => setTimeout(() => { auth.currentUser = user; resolve(); }, 100));
  export const getAuth = () => auth;
  export const onIdTokenChanged = (auth, listener) => void ready.then(() => listener(auth.currentUser));
`;

/** The other device, which keeps what it gets. */
async function other(user, device) {
  const token = await relay.token(user);
  const got = { frames: [], messages: [] };
  const client = duorelay({ url: relay.ws, device, client: device, WebSocket, getToken: () => token });
  client.on("frame", (stream, bytes) => got.frames.push([stream, ...bytes]));
  client.on("message", ({ data }) => got.messages.push(data));
  after(() => client.close());
  await eventually("the other device to be online", 30_000, () => assert.equal(client.state, "online"));
  return { client, got };
}

/** Runs a page with this body in Chromium, and `more` files beside it; what it logs. */
async function runPage(body, token, more = {}) {
  const paths = { "firebase/app": "/firebase-app.js", "firebase/auth": "/firebase.js", duorelay: `${relay.http}/duorelay.js` };
  const imports = JSON.stringify({ imports: paths });
  const server = createServer((request, response) => {
    const files = { "/firebase.js": firebase(token), "/firebase-app.js": "export const initializeApp = () => {};", ...more };
    const file = files[request.url];
    response.writeHead(200, { "content-type": file ? "text/javascript" : "text/html" });
    response.end(file ?? `<!doctype html><script type="importmap">${imports}</script>${body}`);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  after(() => (server.closeAllConnections(), server.close()));
  browser ??= await startBrowser("chromium");
  return browser.show(`http://127.0.0.1:${server.address().port}/`);
}

/** Runs a module in this Node; what it logs, and how it is ended. */
async function runNode(code, token) {
  const folder = mkdtempSync(join(tmpdir(), "duorelay-sample-"));
  mkdirSync(join(folder, "node_modules", "firebase"), { recursive: true });
  for (const name of ["duorelay", "ws"]) symlinkSync(join(MODULES, name), join(folder, "node_modules", name));
  writeFileSync(join(folder, "node_modules/firebase/package.json"), '{"type":"module","exports":{"./auth":"./auth.js"}}');
  writeFileSync(join(folder, "node_modules/firebase/auth.js"), firebase(token));
  writeFileSync(join(folder, "sample.mjs"), code);
  const child = spawn(process.execPath, ["sample.mjs"], { cwd: folder, stdio: ["ignore", "pipe", "pipe"] });
  const lines = [];
  for (const pipe of [child.stdout, child.stderr]) pipe.setEncoding("utf8").on("data", (text) => lines.push(text));
  after(() => {
    child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  });
  return lines;
}

const logged = (lines, expected) => eventually(`the log to match ${expected}`, 30_000, () => assert.match(lines.join("\n"), expected));

test("README: a page with the client", async () => {
  const mobile = await other("sample-page", "mobile");
  const [html] = samples("src/client/README.md", "### From a web page, with the client", "html");
  const lines = await runPage(here(html), await relay.token("sample-page"));
  await eventually("frame and message", 30_000, () => {
    assert.deepEqual(mobile.got, { frames: [[1, 1, 2, 3]], messages: [{ hello: "world" }] });
  });
  await logged(lines, /the mobile is here/);
  mobile.client.send("back");
  await logged(lines, /message mobile back/);
});

test("README: from a Firebase project to two devices", async () => {
  const mobile = await other("sample-newcomer", "mobile");
  const heading = "## From a Firebase project to two devices";
  const [html] = samples("src/client/README.md", heading, "html");
  const [code] = samples("src/client/README.md", heading, "js");
  const main = code.replace("ws://127.0.0.1:3000/ws", relay.ws);
  assert.notEqual(main, code);
  await runPage(html, await relay.token("sample-newcomer"), { "/main.js": main });
  await eventually("a stream of frames", 30_000, () => assert.ok(mobile.got.frames.length > 10));
  assert.equal(mobile.got.frames[0][0], 1);
});

test("README: a page without the client, and the question why", async () => {
  const mobile = await other("sample-raw", "mobile");
  const code = samples("src/client/README.md", "### From a web page, without it", "js").map(here);
  const head = 'import { getAuth } from "firebase/auth";\nawait getAuth().authStateReady();\n';
  const lines = await runPage(`<script type="module">${head}${code.join("\n")}</script>`, await relay.token("sample-raw"));
  await eventually("frame and message", 30_000, () => {
    assert.deepEqual(mobile.got, { frames: [[1, 1, 2, 3]], messages: [{ hello: "world" }] });
  });
  await logged(lines, /control/);
  await logged(lines, /^200 /m);
});

test("README: Node with ws", async () => {
  const token = await relay.token("sample-node");
  const [code] = samples("src/client/README.md", "### From Node", "js");
  const lines = await runNode(`const token = ${JSON.stringify(token)};\n${here(code)}`, token);
  await logged(lines, /frame <Buffer 80 04 05>/);
});

test("README: the classic protocol with ws", async () => {
  const token = await relay.token("sample-classic");
  const [code] = samples("src/client/README.md", "## Moving from a single-process `ws` server", "js");
  const head = `import { WebSocket } from "ws";\nconst token = ${JSON.stringify(token)};\n`;
  const tail = 'for (const socket of [desktop, mobile]) socket.on("open", () => socket.send("hi")).on("message", (text) => console.log(String(text)));';
  const lines = await runNode(head + here(code) + tail, token);
  await logged(lines, /Desktop connected: true\nMobile connected: true\nRoom: .*\nMessage: hi/);
});

for (const [path, heading, head] of [
  ["src/client/js/README.md", "# duorelay", ""],
  ["src/client/README.md", "## The same ten lines", 'import { getAuth } from "firebase/auth";\nconst getToken = async () => (await getAuth().authStateReady(), getAuth().currentUser.getIdToken());\n'],
  ["README.md", "## Connect", ""],
]) {
  test(`${path}: the client`, async () => {
    const user = `sample-${path.replace(/\W/g, "")}`;
    const mobile = await other(user, "mobile");
    const [code] = samples(path, heading, "js");
    const lines = await runPage(`<script type="module">${head}${here(code)}</script>`, await relay.token(user));
    await eventually("frames and message", 30_000, () => {
      assert.deepEqual(mobile.got.frames[0], [1, 1, 2, 3]);
      assert.deepEqual(mobile.got.messages, [{ hello: "world" }]);
    });
    mobile.client.frame(0x80, Uint8Array.of(7));
    await logged(lines, /128/);
  });
}

test("README: a token of the demo's, from the shell", async () => {
  const [command] = samples("src/client/README.md", "## Tokens", "sh");
  const { stdout } = await promisify(execFile)("bash", ["-c", command.replace("localhost:3000", relay.http)]);
  assert.equal(JSON.parse(stdout).token.split(".").length, 3);
});

test("every sample of these pages is run, and those without the library have a ping", () => {
  for (const path of ["README.md", "src/client/README.md", "src/client/js/README.md"]) {
    for (const [, language, code] of read(path).matchAll(/^```(js|html)\n(.*?)^```$/gms)) {
      assert.ok(ran.has(code), `${path}: no test runs this ${language}:\n${code}`);
      const isRaw = /new WebSocket\(.*duorelay\.v1/.test(code);
      assert.ok(!isRaw || code.includes('{"type":"ping"}'), `${path}: a dead network would say nothing:\n${code}`);
    }
  }
});
