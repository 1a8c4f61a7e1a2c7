// Builds the two files that every relay serves and the package exports, from src/client/js/src: duorelay.js, and
// duorelay-direct.js, which it loads where the direct path is on. They are committed, so that `cargo build` needs no Node.
// `--check` changes nothing and says when one is stale.
import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { minify } from "terser";

const HOME = new URL("../../src/client/js/", import.meta.url);

/** The files, and what they are built from. */
export const FILES = { "duorelay.js": "src/index.js", "duorelay-direct.js": "src/duorelay-direct.js" };

/** The oldest engines that the client is for; the README names them. */
const TARGET = ["safari15", "chrome94", "firefox93", "node20"];

/**
 * Names that only the modules use among themselves, and neither an app, nor the wire, nor the platform: each costs bytes in
 * every page that loads the file.
 */
const INNER = `
  accepts ackId acked acknowledge afterClose ask atBarrier attempts beganAt checkAlive current dropReliable
  dropVolatile dueAt endAll endNext endOld fail failAll failures forbidden forgive goAbove goOn hold inMs inOrder
  isDrained isFresh isLimited isMoving isOfAnother isOpen isOwn isUrgent links live lookAtClock mayLeaveAt
  messageBytes number onControl onFrame onGone onPong onRead onReconnect onRelayFrame onReport onSent onSignal
  onWelcome opened overwrittenBy pinged ponged promote putAnswer putReliable putVolatile randomHex reclaimed
  refreshAgain refreshBefore refuse refused reliableWait route sendReliable sendVolatile setPace setPair setState
  settle spend succeeded take tokenWasFresh trying user volatileWait wait welcomed
`.trim().split(/\s+/);

/** The names of the file that was built first hold in the other one, too: they call each other. */
let mangleCache = {};

/** The text of a file, as it must be. */
export async function built(file) {
  const { version, license } = JSON.parse(await readFile(new URL("package.json", HOME), "utf8"));
  const { outputFiles, mangleCache: names } = await build({
    entryPoints: [fileURLToPath(new URL(FILES[file], HOME))],
    bundle: true,
    external: ["./duorelay-direct.js"],
    minify: true, // terser finds less in what esbuild has not shortened
    mangleProps: new RegExp(`^(${INNER.join("|")})$`),
    mangleCache,
    format: "esm",
    target: TARGET,
    legalComments: "none",
    write: false,
    logLevel: "error",
  });
  mangleCache = names;
  // Its passes over the whole file take 2 % more off, compressed; longer sequences would compress worse.
  const compress = { passes: 3, pure_getters: true, unsafe_arrows: true, sequences: false, inline: 1 };
  const { code } = await minify(outputFiles[0].text, { module: true, ecma: 2020, compress });
  return `// duorelay ${version}, ${license}. Built from src/client/js/src; types are in duorelay.d.ts.\n${code}\n`;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  for (const file of Object.keys(FILES)) {
    const text = await built(file);
    if (!process.argv.includes("--check")) {
      await writeFile(new URL(file, HOME), text);
    } else if (text !== (await readFile(new URL(file, HOME), "utf8"))) {
      console.error(`src/client/js/${file} is not what its sources give: npm run build in tests/client`);
      process.exitCode = 1;
    }
  }
}
