// Builds src/client/js/duorelay.js, the one file that every relay serves and the package exports, from src/client/js/src.
// The file is committed, so that `cargo build` needs no Node. `--check` changes nothing and says when it is stale.
import { readFile, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const HOME = new URL("../../src/client/js/", import.meta.url);
const FILE = new URL("duorelay.js", HOME);

/** The oldest engines that the client is for; the README names them. */
const TARGET = ["safari15", "chrome94", "firefox93", "node20"];

/** The text of the file, as it must be. */
export async function built() {
  const { version, license } = JSON.parse(await readFile(new URL("package.json", HOME), "utf8"));
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL("src/index.js", HOME))],
    bundle: true,
    minify: true,
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
  const text = await built();
  if (!process.argv.includes("--check")) {
    await writeFile(FILE, text);
  } else if (text !== (await readFile(FILE, "utf8"))) {
    console.error("src/client/js/duorelay.js is not what its sources give: npm run build in tests/client");
    process.exit(1);
  }
}
