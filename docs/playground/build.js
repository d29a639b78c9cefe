// node build.js [OUT]: one page from src/, with the drawings, the licences and the default run inside.
// Modules are joined in the order of their imports, with `import` and `export` taken away; nothing
// is installed, and the same sources give the same bytes.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const here = new URL(".", import.meta.url);
const read = (path) => readFileSync(new URL(path, here), "utf8");
const LICENCES = ["fluent-emoji-MIT", "Unicode-3.0", "Apache-2.0"];

/** One script of a module and all that it imports, each once, in an order that works. */
export function bundle(entry) {
  const done = new Map();
  const declared = new Map();
  const visit = (path) => {
    if (done.has(path)) return;
    done.set(path, "");
    const source = read(`src/${path}`);
    const imports = /^import \{[^}]*\} from "\.\/([\w.]+)";\n/gm;
    for (const [, other] of source.matchAll(imports)) visit(other);
    for (const [, name] of source.matchAll(/^(?:export )?(?:async )?(?:const|let|function|class) (\w+)/gm)) {
      if (declared.has(name)) {
        throw new Error(`expected one ${name}, got two: in ${declared.get(name)} and ${path}; rename one`);
      }
      declared.set(name, path);
    }
    const text = source.replace(imports, "").replace(/^export /gm, "").trim();
    if (/^(import|export)\b/m.test(text)) throw new Error(`${path}: expected plain imports and exports`);
    done.delete(path); // it goes behind what it imports
    done.set(path, `// ${path}\n${text}\n`);
  };
  visit(entry);
  return `"use strict";\n${[...done.values()].join("\n")}`;
}

const digest = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

/** Text for a script element: what would close it cannot stand in our sources. */
function inScript(text) {
  if (/<\/script|<!--/i.test(text)) throw new Error("expected no </script and no <!-- in a script");
  return text;
}

export function buildPage() {
  const page = inScript(bundle("page.js"));
  const style = read("src/style.css");
  const policy = [
    "default-src 'none'",
    `script-src ${digest(page)} 'wasm-unsafe-eval'`,
    `style-src ${digest(style)}`,
    "worker-src blob:",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
  ].join("; ");
  const parts = {
    policy, style, page,
    worker: inScript(bundle("worker.js")),
    drawings: inScript(read("drawings.json").trim()),
    defaults: read("defaults.json").trim(),
  };
  for (const name of LICENCES) parts[name] = escape(read(`../../licenses/${name}.txt`).trim());
  return read("src/template.html").replace(/\{\{([\w.-]+)\}\}/g, (_, name) => parts[name]);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const out = process.argv[2] ?? fileURLToPath(new URL("clip.html", here));
  const text = buildPage();
  writeFileSync(out, text);
  console.log(`${out}: ${Buffer.byteLength(text).toLocaleString("en")} bytes`);
}
