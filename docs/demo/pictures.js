// node docs/demo/pictures.js [PYTHON [CHROMIUM]]: a picture of each tab, from the folder examples.
// PYTHON has jaxclip[demo] installed.

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { openBrowser, picture, until, wait } from "../playground/browser.js";
import { chooseTab, fill, openDemo, startDemo, upload } from "./walk.js";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const [python = "python", chromium = "chromium"] = process.argv.slice(2);
const examples = here("../../examples");
const drawings = join(examples, "drawings");
const drawing = (name) => join(examples, `${name}.png`);
const index = mkdtempSync(join(tmpdir(), "jaxclip-index-"));

/** A picture with 200 colours at most: half the bytes. */
const SMALLER = `
import sys
from PIL import Image
for name in sys.argv[1:]:
    Image.open(name).convert("RGB").quantize(200).save(name, optimize=True)
`;

const TABS = {
  async classify(page) {
    await fill(page, "Labels", "rocket\naeroplane\nfire engine\npencil\nsailboat");
    await until(page, "seen('.bars tr').length === 5", 120000);
  },
  async search(page) {
    await chooseTab(page, "Search");
    await fill(page, "Words", "a vehicle with wheels");
    await until(page, "seen('.found img').length > 3", 60000);
  },
  async look(page) {
    await chooseTab(page, "What does");
    await upload(page, [drawing("rocket")]);
    await fill(page, "Words", "rocket");
    await until(page, "seen('.seen img').length === 2", 60000);
  },
  async compare(page) {
    await chooseTab(page, "Compare");
    await upload(page, ["cat-face", "rocket", "bicycle", "hot-beverage"].map(drawing));
    await until(page, "seen('.cosines td').length === 16", 60000);
  },
};

const demo = await startDemo(
  python, "-m", "jaxclip", "demo", "--folder", drawings, "--index", index, "--port", "0",
);
const page = await openBrowser(chromium);
try {
  await openDemo(page, demo.address, { width: 1080, height: 640 });
  for (const [name, show] of Object.entries(TABS)) {
    await show(page);
    await wait(1500); // for what fades in
    writeFileSync(here(`${name}.png`), Buffer.from(await picture(page), "base64"));
  }
  execFileSync(python, ["-c", SMALLER, ...Object.keys(TABS).map((name) => here(`${name}.png`))]);
} finally {
  await page.close();
  demo.child.kill("SIGINT");
  rmSync(index, { recursive: true });
}
