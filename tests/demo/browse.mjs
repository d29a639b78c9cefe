// node browse.mjs CHROMIUM ADDRESS EXAMPLES BROKEN: every tab in a real browser, as JSON.

import { openBrowser, until } from "../../docs/playground/browser.js";
import { chooseTab, fill, openDemo, upload } from "../../docs/demo/walk.js";

const [chromium, address, examples, broken] = process.argv.slice(2);
const shows = (page, text) => until(
  page, `seen(".prose").some((x) => x.innerText.includes(${JSON.stringify(text)}))`, 120000,
);
const problem = (page) => page.evaluate("problems().join()");
const saysProblem = (page) => until(page, "problems().length > 0", 60000);

const page = await openBrowser(chromium);
try {
  const told = {};
  await openDemo(page, address, { width: 1100, height: 800 });
  await shows(page, "100.0 %"); // the first example, at once
  await fill(page, "Labels", "zebra\nrocket");
  await shows(page, "zebra");
  told.first = await page.evaluate("seen('.bars td')[0].innerText");
  await fill(page, "Labels", "");
  await saysProblem(page);
  told.labels = await problem(page);
  await fill(page, "Labels", "<b>zebra</b>\nrocket");
  await shows(page, "<b>zebra</b>");
  await upload(page, [broken]);
  await saysProblem(page);
  told.broken = await problem(page);

  await chooseTab(page, "Search");
  await fill(page, "Words", "a rocket");
  await shows(page, "rocket.png");
  told.found = await page.evaluate("seen('.found figcaption')[0].innerText.split('\\n')[1]");
  await fill(page, "Words", "");
  await saysProblem(page);
  told.query = await problem(page);

  await chooseTab(page, "What does");
  await upload(page, [`${examples}/bicycle.png`]);
  await fill(page, "Words", "bicycle");
  await shows(page, "relevance of 'bicycle'");
  told.maps = await page.evaluate("seen('.seen img').map((x) => x.naturalWidth)");

  await chooseTab(page, "Compare");
  await upload(page, ["rocket", "bicycle"].map((name) => `${examples}/${name}.png`));
  await until(page, "seen('.cosines td').length === 8", 60000);
  told.cosines = await page.evaluate("seen('.cosines td').map((x) => Number(x.innerText))");

  const events = (method) => page.events.filter((each) => each.method === method);
  process.stdout.write(JSON.stringify({
    told,
    urls: events("Network.requestWillBeSent").map(({ params }) => params.request.url),
    errors: events("Network.responseReceived").map(({ params }) => params.response)
      .filter(({ status }) => status >= 400).map(({ url }) => url),
    problems: [...events("Log.entryAdded"), ...events("Runtime.exceptionThrown")]
      .map(({ params }) => params.entry?.text ?? params.exceptionDetails.text),
    page: await page.evaluate("document.body.innerText"),
  }));
} finally {
  await page.close();
}
