// A Chromium without a window, driven over a pipe (--remote-debugging-pipe): enough of the
// DevTools protocol for the tests and the pictures, and nothing to install.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
  "--hide-scrollbars", "--remote-debugging-pipe",
];

/** A page of a fresh Chromium: `send` a command, `evaluate` an expression, `events` so far. */
export async function openBrowser(program) {
  const profile = mkdtempSync(join(tmpdir(), "chromium-"));
  const child = spawn(program, [...FLAGS, `--user-data-dir=${profile}`, "about:blank"], {
    stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
  });
  const waiting = new Map();
  const events = [];
  let number = 0, rest = "";
  child.stdio[4].setEncoding("utf8").on("data", (text) => {
    const messages = (rest + text).split("\0");
    rest = messages.pop();
    for (const message of messages.map((each) => JSON.parse(each))) {
      if (message.id) waiting.get(message.id)(message);
      else events.push(message);
    }
  });
  const command = (method, params, sessionId) => new Promise((resolve, reject) => {
    waiting.set(++number, ({ result, error }) => {
      if (error) reject(new Error(`${method}: ${error.message}`));
      else resolve(result);
    });
    child.stdio[3].write(`${JSON.stringify({ id: number, method, params, sessionId })}\0`);
  });
  const { targetInfos } = await command("Target.getTargets");
  const { targetId } = targetInfos.find(({ type }) => type === "page");
  const { sessionId } = await command("Target.attachToTarget", { targetId, flatten: true });
  const send = (method, params) => command(method, params, sessionId);
  for (const domain of ["Page", "Runtime", "Network", "Log"]) await send(`${domain}.enable`);
  return {
    send, events,
    async evaluate(expression) {
      const options = { expression, awaitPromise: true, returnByValue: true };
      const { result, exceptionDetails } = await send("Runtime.evaluate", options);
      if (exceptionDetails) throw new Error(exceptionDetails.exception.description);
      return result.value;
    },
    async close() {
      await command("Browser.close").catch(() => {});
      await new Promise((resolve) => (child.exitCode === null ? child.on("exit", resolve) : resolve()));
      rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    },
  };
}

export const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Wait until an expression holds in the page; an error after `most` milliseconds. */
export async function until(page, expression, most = 60000) {
  for (const end = Date.now() + most; Date.now() < end; await wait(150)) {
    if (await page.evaluate(expression)) return;
  }
  throw new Error(`expected ${expression} within ${most / 1000} s, got none`);
}

/** Show a file at a size, in dark or light. */
export async function show(page, file, { width, height, dark = false, scale = 1 }) {
  const media = { features: [{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }] };
  await page.send("Emulation.setDeviceMetricsOverride", {
    width, height, deviceScaleFactor: scale, mobile: width < 600,
  });
  await page.send("Emulation.setEmulatedMedia", media);
  await page.send("Page.navigate", { url: `file://${file}` });
  await until(page, "document.querySelector('#unseen button') !== null && view.frame !== null");
}

/** Press a key as a reader would. */
export async function press(page, key) {
  const codes = { Tab: 9, Enter: 13, " ": 32, ArrowLeft: 37, ArrowUp: 38, ArrowRight: 39, ArrowDown: 40 };
  const text = { " ": " ", Enter: "\r" }[key] ?? "";
  const event = { key, code: key === " " ? "Space" : key, windowsVirtualKeyCode: codes[key], text };
  await page.send("Input.dispatchKeyEvent", { type: text ? "keyDown" : "rawKeyDown", ...event });
  await page.send("Input.dispatchKeyEvent", { type: "keyUp", ...event });
}

/** A picture of what is seen, or of the whole page, as base64 of PNG. */
export async function picture(page, whole = false) {
  return (await page.send("Page.captureScreenshot", { format: "png", captureBeyondViewport: whole })).data;
}
