// Packs the package as npm would publish it, and puts it where the tests import `duorelay` from.
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const HOME = fileURLToPath(new URL("../../src/client/js/", import.meta.url));
const INSTALLED = fileURLToPath(new URL("node_modules/duorelay/", import.meta.url));

const folder = mkdtempSync(join(tmpdir(), "duorelay-pack-"));
try {
  const [{ filename, files }] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", folder], { cwd: HOME }));
  execFileSync("tar", ["-xzf", join(folder, filename), "-C", folder]);
  rmSync(INSTALLED, { recursive: true, force: true });
  mkdirSync(INSTALLED, { recursive: true });
  cpSync(join(folder, "package"), INSTALLED, { recursive: true });
  console.log(`packed ${files.map(({ path }) => path).join(", ")}`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
