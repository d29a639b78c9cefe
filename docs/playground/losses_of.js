// node losses_of.js RUNS STEPS [plain]: the losses of each run's first steps, as JSON, for the twin
// in Python. RUNS is a list of options as in defaults.json.

import { readFileSync } from "node:fs";

import { unpack } from "./src/data.js";
import { makeMemory } from "./src/product.js";
import { Run } from "./src/run.js";

const [runs, steps, plain] = process.argv.slice(2);
const data = await unpack(JSON.parse(readFileSync(new URL("drawings.json", import.meta.url), "utf8")));
const losses = JSON.parse(runs).map((options) => {
  const run = new Run(makeMemory(1 << 24, { plain: plain === "plain" }), data, options);
  return Array.from({ length: Number(steps) }, () => run.step());
});
process.stdout.write(JSON.stringify(losses));
