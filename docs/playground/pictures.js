// node pictures.js [CHROMIUM]: desktop.png and phone.png, the page while it trains.

import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { openBrowser, picture, show, until } from "./browser.js";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const SHOTS = [
  { name: "desktop.png", width: 1280, height: 1240, dark: false },
  { name: "phone.png", width: 360, height: 1180, dark: true },
];

const page = await openBrowser(process.argv[2] ?? "chromium");
try {
  for (const { name, ...size } of SHOTS) {
    await show(page, here("clip.html"), size);
    await page.evaluate("document.getElementById('play').click()");
    await until(page, "view.frame.step > 900", 300000);
    await page.evaluate("document.getElementById('sphere').blur()");
    writeFileSync(here(name), Buffer.from(await picture(page), "base64"));
  }
} finally {
  await page.close();
}
