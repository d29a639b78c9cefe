// node browse.mjs CHROMIUM PAGE CHECK: what one check sees in a real browser, as JSON.

import { openBrowser, press, show, until, wait } from "../../docs/playground/browser.js";

const [chromium, file, check] = process.argv.slice(2);
const DESK = { width: 1280, height: 900 };
const PHONE = { width: 360, height: 740 };

/** The control that has the focus. */
const FOCUS = "document.activeElement.id || document.activeElement.name || document.activeElement.tagName";

async function tabTo(page, wanted) {
  for (let i = 0; i < 60; i++) {
    await press(page, "Tab");
    if ((await page.evaluate(FOCUS)) === wanted) return;
  }
  throw new Error(`expected ${wanted} within 60 presses of Tab`);
}

const step = (page) => page.evaluate("view.frame.step");
const meanOf = (page, part) => page.evaluate(
  `view.losses${part}.map(([, loss]) => loss).reduce((sum, x, _, all) => sum + x / all.length, 0)`,
);

const CHECKS = {
  /** A run at full speed, paused after 150 steps. */
  async trains(page) {
    await show(page, file, DESK);
    const before = await page.evaluate("document.getElementById('n-unseen').textContent");
    await page.evaluate("document.getElementById('play').click()");
    await until(page, "view.frame.step > 150 && view.frame.sets.unseen.accuracy > 0.1");
    await page.evaluate("document.getElementById('play').click()");
    await until(page, "!view.frame.playing");
    const paused = await step(page);
    await wait(400);
    return {
      before,
      stayed: (await step(page)) === paused,
      first: await meanOf(page, ".slice(0, 10)"),
      last: await meanOf(page, ".slice(-30)"),
      losses: await page.evaluate("view.losses.slice(0, 5).map(([, loss]) => loss)"),
      kind: await page.evaluate("view.frame.kind"),
      accuracy: await page.evaluate("view.frame.sets.unseen.accuracy"),
    };
  },

  /** Nothing but keys: train, pause, one step, another batch, another drawing, turn the sphere. */
  async keyboard(page) {
    const seen = {};
    await show(page, file, DESK);
    await tabTo(page, "play");
    await press(page, "Enter");
    await until(page, "view.frame.step > 5");
    await press(page, " ");
    await until(page, "!view.frame.playing && !view.playing");
    const paused = await step(page);
    await tabTo(page, "step");
    await press(page, "Enter");
    await until(page, `view.frame.step === ${paused + 1}`);
    await tabTo(page, "batch");
    await press(page, "ArrowRight");
    await until(page, "view.frame?.step === 0");
    seen.batch = await page.evaluate("view.options.batch");
    await tabTo(page, "sphere");
    const angle = await page.evaluate("view.angles[0]");
    await press(page, "ArrowRight");
    seen.turned = (await page.evaluate("view.angles[0]")) !== angle;
    for (let i = 0; i < 5; i++) {
      await press(page, "Tab");
      if (await page.evaluate("document.activeElement.parentElement.id === 'unseen'")) break;
    }
    await press(page, "ArrowRight");
    await press(page, "Enter");
    seen.selected = await page.evaluate("view.selected");
    return seen;
  },

  /** At a phone's width, while it trains: how wide the page is, and what sticks out. */
  async phone(page) {
    await show(page, file, PHONE);
    await page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })");
    await page.evaluate("document.getElementById('play').click()");
    await until(page, "view.frame.step > 10");
    return page.evaluate(`({
      page: document.documentElement.scrollWidth,
      small: [...document.querySelectorAll(".buttons button, select, .chip")]
        .filter((each) => each.offsetParent && each.offsetHeight < 30).map((each) => each.id || each.textContent),
      outside: [...document.querySelectorAll("body *:not(.skip, .hidden)")]
        .filter((each) => each.getBoundingClientRect().right > ${PHONE.width + 1}).map((each) => each.tagName),
    })`);
  },

  /** Every choice of every control runs; nothing is refused, nothing is NaN. */
  async choices(page) {
    await show(page, file, DESK);
    const failed = [];
    const set = (id, value) => page.evaluate(
      `{ const c = document.getElementById("${id}"); c.value = ${JSON.stringify(value)};
         c.dispatchEvent(new Event("change")); }`,
    );
    const choices = [
      ...["keywords", "dealt", "own"].map((value) => ["wording", value]), ["wording", "names"],
      ["loss", "oneSided"], ["loss", "sigmoid"], ["embedding", "2"], ["embedding", "3"],
      ["embedding", "64"], ["tower", "8,2"], ["batch", "0"], ["batch", "5"], ["scale", "40"],
      ["shift", "0"], ["rate", "4"], ["seed", "7"],
    ];
    for (const [id, value] of choices) {
      await set(id, value);
      await until(page, "view.frame?.step === 0 && !view.frame.playing");
      await page.evaluate("document.getElementById('step').click()");
      await until(page, "view.frame.step === 1");
      const fine = await page.evaluate(
        "document.getElementById('problem').hidden && view.losses.every(([, loss]) => Number.isFinite(loss))",
      );
      if (!fine) failed.push([id, value]);
    }
    await page.evaluate(`{ const ask = document.getElementById("ask"); ask.value = "cat zebra";
      ask.dispatchEvent(new Event("input")); }`);
    await until(page, "document.getElementById('found').children.length === 8");
    return { failed, answer: await page.evaluate("document.getElementById('answer').textContent") };
  },
};

const page = await openBrowser(chromium);
try {
  const seen = await CHECKS[check](page);
  const urls = page.events.filter(({ method }) => method === "Network.requestWillBeSent");
  const problems = page.events.filter(
    ({ method }) => method === "Log.entryAdded" || method === "Runtime.exceptionThrown",
  );
  process.stdout.write(JSON.stringify({
    seen,
    urls: urls.map(({ params }) => params.request.url),
    problems: problems.map(({ params }) => params.entry?.text ?? params.exceptionDetails),
  }));
} finally {
  await page.close();
}
