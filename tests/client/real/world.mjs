// Real relays, real browsers, and paths between them that move, swallow or are thin.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createServer as createHttpServer } from "node:http";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import puppeteer from "puppeteer-core";

const PROGRAM = process.env.DUORELAY_BIN;
if (!PROGRAM) throw new Error("DUORELAY_BIN must name the duorelay program (tests/client/run sets it)");

/** Calls `attempt` until it does not throw, at most for `ms`. */
export async function eventually(what, ms, attempt) {
  const deadline = Date.now() + ms;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (Date.now() > deadline) throw new Error(`waited ${ms} ms for ${what}: ${error.message}`, { cause: error });
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** Ends whatever the test file started, the last first. */
const ends = [];
export async function endAll() {
  while (ends.length > 0) await ends.pop()();
}

async function startProcess(program, args, isReady, env = {}) {
  const child = spawn(program, args, { env: { PATH: process.env.PATH, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  for (const pipe of [child.stdout, child.stderr]) pipe.setEncoding("utf8").on("data", (text) => (log += text));
  const ended = once(child, "exit");
  const stop = async (signal = "SIGKILL") => {
    child.kill(signal);
    await ended;
  };
  ends.push(stop);
  await eventually(`${program} to be ready`, 20_000, async () => {
    if (child.exitCode !== null) throw new Error(`it ended: ${log}`);
    await isReady(log);
  });
  return { stop, log: () => log };
}

/** A relay with its own sign-in: `{http, ws, port, admin, token(user), stop(signal), log()}`. */
export async function startRelay(args = [], port) {
  port ??= await freePort();
  const adminPort = await freePort();
  const http = `http://127.0.0.1:${port}`;
  const listen = ["--listen", `127.0.0.1:${port}`, "--admin-listen", `127.0.0.1:${adminPort}`];
  const relay = await startProcess(PROGRAM, ["demo", ...listen, "--handshakes-per-second-per-ip", "0", ...args], async () => {
    const { status } = await fetch(`${http}/healthz/ready`);
    if (status !== 200) throw new Error(`${status}`);
  });
  const token = async (user) => {
    const request = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ user }) };
    return (await (await fetch(`${http}/demo/token`, request)).json()).token;
  };
  const metric = async (name) => {
    const text = await (await fetch(`http://127.0.0.1:${adminPort}/metrics`)).text();
    return text.split("\n").filter((line) => line.startsWith(name)).reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  };
  return { ...relay, http, ws: `ws://127.0.0.1:${port}/ws`, port, token, metric };
}

/** A Redis of the test's own; its URL. */
export async function startRedis() {
  const port = await freePort();
  const folder = mkdtempSync(join(tmpdir(), "duorelay-redis-"));
  ends.push(() => rmSync(folder, { recursive: true, force: true }));
  const args = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder];
  await startProcess("redis-server", args.map(String), (log) => {
    if (!log.includes("Ready to accept connections")) throw new Error(log);
  });
  return `redis://127.0.0.1:${port}`;
}

/**
 * A TCP path to `target()`, a port, asked for each connection. `swallow()`: what is open carries nothing any more, in
 * either direction, and does not end; new connections are as before.
 */
export async function startPath(target) {
  const open = new Set();
  const server = createServer({ pauseOnConnect: true }, async (near) => {
    const far = connect(await target(), "127.0.0.1");
    const pair = { near, far };
    open.add(pair);
    for (const [socket, other] of [[near, far], [far, near]]) {
      socket.setNoDelay(true);
      socket.on("error", () => {});
      socket.on("data", (data) => pair.swallowed || other.write(data));
      socket.on("close", () => {
        open.delete(pair);
        if (!pair.swallowed) other.destroy();
      });
    }
    near.resume();
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  ends.push(() => {
    server.close();
    for (const { near, far } of open) near.destroy(), far.destroy();
  });
  const { port } = server.address();
  return {
    port,
    ws: `ws://127.0.0.1:${port}/ws`,
    swallow() {
      for (const pair of open) pair.swallowed = true;
    },
  };
}

/** A TCP path that carries `up` and `down` bytes a second, and whose kernel buffers hold little. */
export async function startThinPath(port, { up = 0, down = 0 }) {
  const program = fileURLToPath(new URL("thin.py", import.meta.url));
  let listening;
  const process = await startProcess("python3", [program, port, up, down].map(String), (log) => {
    listening = /^(\d+)$/m.exec(log)?.[1];
    if (!listening) throw new Error(log);
  });
  return { ...process, ws: `ws://127.0.0.1:${listening}/ws` };
}

/** A proxy that forwards HTTP, and answers each upgrade with `answer`, the text of a whole response. */
export async function startBlockingProxy(relay, answer) {
  const server = createHttpServer(async (request, response) => {
    const { status, headers, body } = await fetch(relay.http + request.url, { method: request.method, headers: request.headers });
    const kept = [...headers].filter(([name]) => !/^(content-encoding|content-length|transfer-encoding|connection)$/.test(name));
    response.writeHead(status, Object.fromEntries(kept));
    response.end(body && Buffer.from(await new Response(body).arrayBuffer()));
  });
  server.on("upgrade", (_, socket) => socket.end(answer.replaceAll("\n", "\r\n")));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  ends.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return `ws://127.0.0.1:${server.address().port}/ws`;
}

/**
 * Pages of another origin than the relay's, with the package's file. `open_(options)` in a page starts a client for a user
 * and keeps its events in `told`.
 */
export async function startPages(relay, { headers = {} } = {}) {
  const server = createHttpServer(async (request, response) => {
    const url = new URL(request.url, "http://localhost");
    if (url.pathname === "/token") return response.end(await relay().token(url.searchParams.get("user")));
    if (url.pathname === "/duorelay.js") {
      response.writeHead(200, { "content-type": "text/javascript" });
      return response.end(await readFile(new URL("../node_modules/duorelay/duorelay.js", import.meta.url)));
    }
    response.writeHead(200, { "content-type": "text/html", ...headers });
    response.end(`<!doctype html><title>test</title><script type="module">${PAGE}</script>`);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  ends.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}/`;
}

const PAGE = `
  import { duorelay } from "/duorelay.js";
  window.open_ = ({ user, ...options }) => {
    const getToken = async () => (await fetch("/token?user=" + user)).text();
    const relay = (window.relay = duorelay({ getToken, ...options }));
    window.told = { frame: [], message: [], error: [], close: [], refused: [], state: [], rtt: [] };
    for (const type of Object.keys(told)) {
      relay.on(type, (...details) => told[type].push([...details.map((d) => (d instanceof Uint8Array ? [...d] : d)), Date.now()]));
    }
  };
  window.isReady = true;
`;

/** A browser that throttles hidden pages as it does for people: "chromium" or "firefox". */
export async function startBrowser(name, more = []) {
  const isFirefox = name === "firefox";
  const browser = await puppeteer.launch({
    browser: isFirefox ? "firefox" : "chrome",
    executablePath: isFirefox ? process.env.FIREFOX ?? "/usr/bin/firefox-esr" : process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    args: isFirefox ? [] : ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", ...more],
    ignoreDefaultArgs: isFirefox ? [] : [
      "--disable-background-timer-throttling", "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding",
    ],
  });
  ends.push(() => browser.close());
  const open = async (url) => {
    const page = await browser.newPage();
    await page.goto(url);
    await page.waitForFunction("window.isReady", { timeout: 30_000, polling: 50 });
    return page;
  };
  return {
    open,
    /** Opens a page; what it logs, and what it fails with. */
    async show(url) {
      const page = await browser.newPage();
      const lines = [];
      page.on("console", (message) => lines.push(message.text()));
      page.on("pageerror", (error) => lines.push(String(error)));
      await page.goto(url);
      return lines;
    },
    /** A page with an online client. */
    async client(url, options) {
      const page = await open(url);
      await page.evaluate((given) => window.open_(given), options);
      await page.waitForFunction("relay.state === 'online'", { timeout: 30_000, polling: 50 });
      return page;
    },
  };
}
