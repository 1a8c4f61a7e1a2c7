// Builds the two files that every relay serves and the package exports, from src/client/js/src: duorelay.js, and
// duorelay-direct.js, which it loads where the direct path is on. They are committed, so that `cargo build` needs no Node.
// `--check` changes nothing and says when one is stale.
import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const HOME = new URL("../../src/client/js/", import.meta.url);

/** The files, and what they are built from. */
export const FILES = { "duorelay.js": "src/index.js", "duorelay-direct.js": "src/duorelay-direct.js" };

/** The oldest engines that the client is for; the README names them. */
const TARGET = ["safari15", "chrome94", "firefox93", "node20"];

/** Names that only the modules of duorelay.js use among themselves: the file is short of 12 KB with them, compressed. */
const INNER = /^(reliableWait|sendReliable|dropVolatile|checkAlive|isOfAnother|refreshBefore|refreshAgain|putReliable|putVolatile|putAnswer|dropReliable|isDrained|overwrittenBy|succeeded|acknowledge|isFresh|goAbove|messageBytes|onFrame|onControl|onGone|tokenWasFresh|failAll|setPace|onRead|dueAt|forbidden)$/;

/** The text of a file, as it must be. */
export async function built(file) {
  const { version, license } = JSON.parse(await readFile(new URL("package.json", HOME), "utf8"));
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL(FILES[file], HOME))],
    bundle: true,
    external: ["./duorelay-direct.js"],
    minify: true,
    mangleProps: INNER,
    format: "esm",
    target: TARGET,
    legalComments: "none",
    banner: { js: `// duorelay ${version}, ${license}. Built from src/client/js/src; types are in duorelay.d.ts.` },
    write: false,
    logLevel: "error",
  });
  return outputFiles[0].text;
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
