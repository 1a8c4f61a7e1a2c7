// Reads Kubernetes objects (JSON, a list) from standard input and holds those of Google's and of the Prometheus
// operator's kinds against their schemas: values by the schema's own validator, misspelled fields by the types,
// which the validator does not look for. Prints one line for each mistake, and last the number of objects checked.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const packages = {
    "cloud.google.com/v1": "gke",
    "networking.gke.io/v1": "gke",
    "networking.gke.io/v1beta1": "gke",
    "monitoring.coreos.com/v1": "prometheus-operator",
};
const objects = JSON.parse(readFileSync(0, "utf8"));
const mistakes = [];
const source = [];
for (const [number, object] of objects.entries()) {
    const { apiVersion, kind } = object;
    const module = `@kubernetes-models/${packages[apiVersion]}/${apiVersion}/${kind}`;
    const { [kind]: Model } = await import(module);
    try {
        new Model(object).validate();
    } catch (error) {
        mistakes.push(`${kind} ${object.metadata.name}: ${error.message}`);
    }
    source.push(`import type { I${kind} as Kind${number} } from "${module}";`);
    source.push(`export const object${number}: Kind${number} = ${JSON.stringify(object)};`);
}

// It lies below node_modules, where the compiler finds the packages and git does not look.
const folder = fileURLToPath(new URL("node_modules/.objects/", import.meta.url));
mkdirSync(folder, { recursive: true });
const file = `${folder}objects.ts`;
writeFileSync(file, source.join("\n"));
const options = { noEmit: true, strict: true, skipLibCheck: true, types: [] };
options.module = ts.ModuleKind.NodeNext;
options.moduleResolution = ts.ModuleResolutionKind.NodeNext;
for (const found of ts.getPreEmitDiagnostics(ts.createProgram([file], options))) {
    mistakes.push(ts.flattenDiagnosticMessageText(found.messageText, " "));
}

for (const mistake of mistakes) console.log(mistake);
console.log(`${objects.length} objects checked, ${mistakes.length} mistakes`);
process.exitCode = mistakes.length ? 1 : 0;
