// The page of `jaxclip demo` in a real browser: open it, fill in its fields, read what it shows.

import { spawn } from "node:child_process";

import { until, wait } from "../playground/browser.js";

/** Start a command; its child and the address that it prints. */
export function startDemo(command, ...given) {
  const child = spawn(command, given, { stdio: ["ignore", "pipe", "inherit"] });
  return new Promise((resolve, reject) => {
    let text = "";
    child.on("exit", (code) => reject(new Error(`expected an address, got exit code ${code}`)));
    child.stdout.setEncoding("utf8").on("data", (more) => {
      text += more;
      const found = /^(http:\S+)/m.exec(text);
      if (found) resolve({ child, address: found[1] });
    });
  });
}

/** Helpers inside of the page: what stands in the tab that is seen. */
const HELPERS = `
  window.seen = (selector) => [...document.querySelectorAll(selector)].filter((x) => x.offsetParent);
  window.field = (label) => seen("label").find((x) => x.textContent.includes(label))
    ?.querySelector("textarea, input");
  window.fill = (label, text) => {
    const it = field(label);
    const kind = it.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
    Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(it, text);
    it.dispatchEvent(new Event("input", { bubbles: true }));
  };
  window.tab = (name) => seen("button[role=tab]").find((x) => x.textContent.includes(name)).click();
  window.problems = () => seen(".problem").map((x) => x.textContent);
`;

export async function openDemo(page, address, { width, height, dark = false }) {
  await page.send("Emulation.setDeviceMetricsOverride", {
    width, height, deviceScaleFactor: 1, mobile: false,
  });
  const value = dark ? "dark" : "light";
  await page.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value }] });
  await page.send("Page.addScriptToEvaluateOnNewDocument", { source: HELPERS });
  await page.send("Page.navigate", { url: address });
  await until(page, "window.seen && seen('button[role=tab]').length === 4");
}

/** Write a text into the field with that label, once it is seen. */
export async function fill(page, label, text) {
  await until(page, `Boolean(field(${JSON.stringify(label)}))`);
  await page.evaluate(`fill(${JSON.stringify(label)}, ${JSON.stringify(text)})`);
}

/** Choose a tab. */
export async function chooseTab(page, name) {
  await page.evaluate(`tab(${JSON.stringify(name)})`);
  await wait(300); // the tab before is still seen while this one appears
}

/** Choose files in the upload field that is seen. */
export async function upload(page, files) {
  const shown = `[...document.querySelectorAll("input[type=file]")]
    .find((x) => x.closest(".tabitem")?.offsetParent)`;
  await until(page, `Boolean(${shown})`);
  const { result } = await page.send("Runtime.evaluate", { expression: shown });
  await page.send("DOM.setFileInputFiles", { files, objectId: result.objectId });
}
