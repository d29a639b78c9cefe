// node speed.js [CHROMIUM]: steps a second of the default run, and with larger batches and towers; CPU time a step
// too. With a browser: those of the default run in the page as well, drawing included.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { openBrowser, show, until, wait } from "./browser.js";
import { unpack } from "./src/data.js";
import { makeMemory } from "./src/product.js";
import { Run } from "./src/run.js";

const read = (name) => JSON.parse(readFileSync(new URL(name, import.meta.url), "utf8"));
const data = await unpack(read("drawings.json"));
const chosen = [...data.names.keys()];
const RUNS = [
  {}, { plain: true }, { chosen, batch: 32 }, { chosen, batch: 64 }, { patch: 8 }, { patch: 8, layers: 2 }, { layers: 2 },
];
for (const { plain, ...options } of RUNS) {
  const run = new Run(makeMemory(1 << 24, { plain }), data, { ...read("defaults.json"), ...options });
  for (let i = 0; i < 50; i++) run.step(); // compiled by now
  const [wall, cpu] = [performance.now(), process.cpuUsage()];
  for (let i = 0; i < 200; i++) run.step();
  const used = process.cpuUsage(cpu);
  const { batch, patch, layers } = run.config;
  console.log(
    `batch ${batch}, patches of ${patch}, ${layers} block${layers > 1 ? "s" : ""}${plain ? ", plain JavaScript" : ""}: `
    + `${Math.round(200000 / (performance.now() - wall))} steps/s, `
    + `${((used.user + used.system) / 200000).toFixed(1)} ms of CPU a step`,
  );
}

if (process.argv[2]) {
  const page = await openBrowser(process.argv[2]);
  try {
    await show(page, fileURLToPath(new URL("clip.html", import.meta.url)), { width: 1280, height: 1240 });
    await page.evaluate("document.getElementById('play').click()");
    await until(page, "view.frame.step > 50");
    const [wall, first] = [performance.now(), await page.evaluate("view.frame.step")];
    await wait(10000);
    const steps = (await page.evaluate("view.frame.step")) - first;
    console.log(`default in the page: ${Math.round((1000 * steps) / (performance.now() - wall))} steps/s`);
  } finally {
    await page.close();
  }
}
