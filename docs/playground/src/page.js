// The page: controls to options, the worker's frames to pictures and numbers.

import { forgetColours, lineChart, matrix, prepare, sphere, spotlight, tile } from "./charts.js";
import { unpack } from "./data.js";

const $ = (id) => document.getElementById(id);
const read = (id) => JSON.parse($(id).textContent);
const SPEEDS = [1, 2, 5, 10, 20, 40, 80, Infinity]; // steps a second
const BATCHES = [2, 4, 8, 16, 32, 64];
const RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2];
const SHOWN = 16; // rows of the matrix
const view = {
  data: null, defaults: read("defaults"), chosen: null, options: null, frame: null, playing: false,
  losses: [], smooth: [], accuracy: [], selected: 0, angles: [0.5, 0.35], worker: null,
};
view.chosen = new Set(view.defaults.chosen);

const percent = (share) => `${Math.round(100 * share)} %`;
const describe = (id, text) => $(id).setAttribute("aria-label", text);
const say = (text) => { $("said").textContent = text; };

// Options ---------------------------------------------------------------------------------------

const scaleAt = (position) => 100 ** (position / 40); // 1 to 100

/** What the controls say, as `Run` takes it. */
function options() {
  const [patch, layers] = $("tower").value.split(",").map(Number);
  const chosen = [...view.chosen].sort((a, b) => a - b);
  const wording = $("wording").value;
  const scale = Number($("scale").value);
  const own = $("own").value.split("\n").map((line) => line.trim());
  return {
    ...view.defaults, chosen, patch, layers, wording,
    own: wording === "own" ? own : null,
    batch: Math.min(BATCHES[$("batch").value], chosen.length),
    loss: $("loss").value,
    temperature: document.querySelector("[name=temperature]:checked").value,
    scale: scaleMoved() ? scaleAt(scale) : null,
    embedding: Number($("embedding").value),
    rate: RATES[$("rate").value],
    shift: Number($("shift").value),
    steps: Number($("steps").value),
    seed: Math.max(0, Math.floor(Number($("seed").value)) || 0),
  };
}

/** Whether e^t at the start is the reader's; else it is 1 / 0.07, the sigmoid's 10. */
const scaleMoved = () => $("scale").value !== $("scale").defaultValue;

function showValues() {
  const { batch, rate, shift, chosen } = options();
  const asked = BATCHES[$("batch").value];
  $("batch-value").textContent = asked > batch ? `${batch} (all that is chosen)` : `${batch}, ln ${batch} = ${Math.log(batch).toFixed(2)}`;
  $("rate-value").textContent = rate;
  $("shift-value").textContent = `${shift} pixel${shift === 1 ? "" : "s"}`;
  const start = $("loss").value === "sigmoid" ? "10" : "14.3";
  $("scale-value").textContent = scaleMoved() ? scaleAt(Number($("scale").value)).toFixed(1) : start;
  $("speed-value").textContent = speed() === Infinity ? "full" : `${speed()} a second`;
  $("chosen-count").textContent = `${chosen.length} names chosen.`;
  $("own").hidden = $("wording").value !== "own";
}

const speed = () => SPEEDS[$("speed").value];

/** What guessing costs: ln n, or the best that one bias can do for all pairs under the sigmoid. */
function guessing() {
  const { batch: n, loss } = view.options;
  return Math.log(n) + (loss === "sigmoid" ? (n - 1) * Math.log(n / (n - 1)) : 0);
}

/** A new run with what the controls say; it goes on playing if one did. */
function restart() {
  showValues();
  view.options = options();
  if (view.options.chosen.length < 2) {
    $("problem").hidden = false;
    $("problem").textContent = "Choose two drawings or more.";
    setPlaying(false);
    return;
  }
  $("problem").hidden = true;
  Object.assign(view, { losses: [], smooth: [], accuracy: [], frame: null });
  view.selected = Math.min(view.selected, view.options.chosen.length - 1);
  buildUnseen();
  view.worker.postMessage(["start", view.options]);
  if (view.playing) view.worker.postMessage(["play", true]);
}

function setPlaying(playing) {
  view.playing = playing;
  $("play").textContent = playing ? "Pause" : "Train";
  $("play").classList.toggle("on", playing);
}

// Frames ----------------------------------------------------------------------------------------

function takeFrame(frame) {
  if (frame.error) {
    $("problem").hidden = false;
    $("problem").textContent = frame.error;
    setPlaying(false);
    return;
  }
  view.frame = frame;
  if (frame.finished) {
    if (view.playing) say("The run has ended.");
    setPlaying(false);
  }
  let at = frame.step - frame.losses.length;
  for (const loss of frame.losses) {
    const before = view.smooth.length ? view.smooth.at(-1)[1] : loss;
    const weight = Math.max(0.06, 2 / (view.losses.length + 2)); // the first losses fall fast
    view.losses.push([at, loss]);
    view.smooth.push([at++, before + weight * (loss - before)]);
  }
  const { trained, unseen } = frame.sets;
  if (view.accuracy.at(-1)?.[0] !== frame.step) {
    view.accuracy.push([frame.step, trained.accuracy, unseen.accuracy]);
  }
  draw();
}

/** At most 600 points of a line. */
function thin(points) {
  const every = Math.ceil(points.length / 600);
  return points.filter((_, i) => i % every === 0 || i === points.length - 1);
}

function drawCharts() {
  const guess = guessing();
  const round = view.frame.step > 1500 ? 1000 : 200; // so that every fourth is a round number
  const end = Math.min(view.options.steps, Math.ceil((view.frame.step + 20) / round) * round);
  const across = (value) => [[0, value], [end, value]];
  const most = Math.max(...view.losses.slice(0, 5).map(([, loss]) => loss), 0);
  const top = Math.min(Math.max(1.35 * guess, 1.05 * most), 2.2 * guess);
  lineChart($("loss-chart"), 210, {
    end, top,
    format: (value) => value.toFixed(1),
    guide: { text: `guessing: ${guess.toFixed(2)}`, value: guess },
    lines: [
      { points: thin(view.losses), colour: "loss-faint", thick: 1 },
      { points: across(guess), colour: "ink", thick: 1.5, dash: [6, 5] },
      { points: thin(view.smooth), colour: "loss", thick: 2.5 },
    ],
  });
  const { step, sets: { trained, unseen } } = view.frame;
  const loss = $("n-loss").textContent;
  describe("loss-chart", `Loss ${loss} at step ${step}; guessing costs ${guess.toFixed(2)}`);
  describe("accuracy-chart", `Names right at step ${step}: ${percent(trained.accuracy)} of an artist it `
    + `trains on, ${percent(unseen.accuracy)} of the artist it has not seen`);
  const chance = 1 / view.options.chosen.length;
  lineChart($("accuracy-chart"), 150, {
    end, top: 1, format: percent,
    lines: [
      { points: across(chance), colour: "ink", thick: 1.5, dash: [6, 5] },
      { points: view.accuracy.map(([s, a]) => [s, a]), colour: "image-mark", thick: 2 },
      { points: view.accuracy.map(([s, , a]) => [s, a]), colour: "text-mark", thick: 2.5, dash: [2, 2] },
    ],
  });
}

const whichSet = () => document.querySelector("[name=set]:checked").value;

/** Drawings, as canvases, of the set that is shown. */
function imagesOf(set) {
  const artist = set === "trained" ? 0 : view.data.artists.length - 1;
  return view.options.chosen.map((name) => tile(view.data, name, artist));
}

const captions = () => view.options.chosen.map((name, i) => view.options.own?.[i] || view.data.names[name]);

function drawSphere() {
  if (!view.frame) return;
  const set = whichSet();
  sphere($("sphere"), {
    points: view.frame.sets[set].points, texts: view.frame.texts, images: imagesOf(set),
    captions: captions(), selected: view.selected, angles: view.angles,
    flat: view.options.embedding === 2,
  });
}

function drawSelected() {
  const { sets, scale, bias } = view.frame;
  const { seen, similar } = sets.unseen;
  const images = imagesOf("unseen");
  const i = view.selected;
  const n = images.length;
  const { heads, patch } = view.options;
  const l = (32 / patch) ** 2 + 1;
  const { context, width } = prepare($("picture"), $("picture").clientWidth);
  context.imageSmoothingEnabled = false;
  context.drawImage(images[i], 0, 0, width, width);
  for (let head = 0; head < heads; head++) {
    const from = (i * heads + head) * l;
    spotlight($(`head-${head}`), images[i], seen.slice(from + 1, from + l));
  }
  const logits = [...similar.subarray(i * n, (i + 1) * n)].map((cosine) => scale * cosine + bias);
  const most = Math.max(...logits);
  const exps = logits.map((logit) => Math.exp(logit - most));
  const sum = exps.reduce((a, b) => a + b, 0);
  const words = captions();
  const best = [...exps.keys()].sort((a, b) => exps[b] - exps[a]).slice(0, 5);
  $("guesses").replaceChildren(...best.map((t) => {
    const item = document.createElement("li");
    const bar = document.createElement("span");
    bar.style.width = `${(100 * exps[t]) / sum}%`;
    item.classList.toggle("right", t === i);
    item.append(bar, `${t === i ? "✓ " : ""}${words[t]}`, document.createElement("b"));
    item.lastChild.textContent = percent(exps[t] / sum);
    return item;
  }));
}

/** ✓ or ✗ on the unseen artist's drawings, and what the model says of each. */
function markUnseen() {
  const words = captions();
  const { best, accuracy } = view.frame.sets.unseen;
  [...$("unseen").children].forEach((button, i) => {
    const right = best[i] === i;
    button.classList.toggle("right", right);
    button.setAttribute("aria-pressed", String(i === view.selected));
    const label = `${words[i]}: ${right ? "right" : `says ${words[best[i]]}`}`;
    if (button.title !== label) button.title = label;
    button.setAttribute("aria-label", label);
  });
  describe("matrix", `Cosines of drawings and captions; ${percent(accuracy)} of the unseen artist's drawings lie `
    + "nearest to their own caption");
  $("unseen-score").textContent = `${percent(accuracy)} right, guessing ${percent(1 / words.length)}`;
}

function drawAnswer() {
  const { scores, unknown } = view.frame.answer;
  if (!$("ask").value.trim()) return $("found").replaceChildren();
  const lacking = unknown.length ? `Never seen: ${unknown.join(", ")}. ` : "";
  const text = scores ? `${lacking}Nearest first:` : `${lacking}Try words of the captions.`;
  if ($("answer").textContent !== text) $("answer").textContent = text;
  const best = scores ? [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, 8) : [];
  const images = imagesOf("unseen");
  $("found").replaceChildren(...best.map((i) => {
    const item = document.createElement("li");
    const canvas = document.createElement("canvas");
    copyTile(canvas, images[i]);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", captions()[i]);
    item.append(canvas, scores[i].toFixed(2));
    return item;
  }));
}

function draw() {
  const { frame } = view;
  if (!frame) return;
  $("n-step").textContent = frame.step.toLocaleString("en");
  $("n-loss").textContent = view.smooth.length ? view.smooth.at(-1)[1].toFixed(3) : "–";
  $("n-chance").textContent = guessing().toFixed(3);
  $("n-scale").textContent = frame.scale.toFixed(1);
  $("n-unseen").textContent = percent(frame.sets.unseen.accuracy);
  $("n-speed").textContent = frame.perSecond ? Math.round(frame.perSecond) : "–";
  $("kind").textContent = `The product runs here in ${frame.kind}.`;
  $("guess-name").textContent = view.options.loss === "sigmoid"
    ? "one bias for all pairs: guessing" : `ln(${view.options.batch}): guessing`;
  const e = view.options.embedding;
  $("sphere-note").textContent = e <= 3 ? "" : `Of ${e} numbers, the three directions that vary most.`;
  drawCharts();
  const set = whichSet();
  view.place = matrix($("matrix"), {
    similar: frame.sets[set].similar, total: view.options.chosen.length,
    shown: Math.min(SHOWN, view.options.chosen.length), images: imagesOf(set),
    captions: captions(), selected: view.selected,
  });
  drawSphere();
  drawSelected();
  markUnseen();
  drawAnswer();
}

// Building and listening ------------------------------------------------------------------------

function copyTile(canvas, image) {
  canvas.width = canvas.height = 32;
  canvas.getContext("2d").drawImage(image, 0, 0);
}

/** A button with a drawing; one of its group is reached by Tab, the others by the arrow keys. */
function tileButton(name, artist, label, press) {
  const button = document.createElement("button");
  const canvas = document.createElement("canvas");
  copyTile(canvas, tile(view.data, name, artist));
  button.type = "button";
  button.title = label;
  button.setAttribute("aria-label", label);
  button.append(canvas);
  button.addEventListener("click", press);
  return button;
}

function fillTiles(box, buttons) {
  box.replaceChildren(...buttons);
  buttons.forEach((button, i) => { button.tabIndex = i ? -1 : 0; });
  box.onkeydown = (event) => {
    const across = Math.max(1, Math.floor(box.clientWidth / (buttons[0].offsetWidth + 6)));
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    const from = buttons.indexOf(document.activeElement);
    const to = buttons[from + by];
    if (!by) return;
    event.preventDefault();
    if (!to) return;
    buttons[from].tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  };
}

function buildUnseen() {
  const unseen = view.data.artists.length - 1;
  fillTiles($("unseen"), view.options.chosen.map((name, i) =>
    tileButton(name, unseen, view.data.names[name], () => {
      view.selected = i;
      draw();
    })));
}

function choose(names, on) {
  for (const name of names) view.chosen[on ? "add" : "delete"](name);
  showChosen();
  fillOwn();
  restart();
}

function showChosen() {
  [...$("names").children].forEach((button, name) => {
    button.setAttribute("aria-pressed", String(view.chosen.has(name)));
  });
  for (const box of $("groups").querySelectorAll("input")) {
    const names = box.value.split(",").map(Number);
    const count = names.filter((name) => view.chosen.has(name)).length;
    box.checked = count === names.length;
    box.indeterminate = count > 0 && count < names.length;
  }
}

function fillOwn() {
  const names = [...view.chosen].sort((a, b) => a - b).map((name) => view.data.names[name]);
  $("own").value = names.join("\n");
}

function buildChoices() {
  let start = 0;
  for (const [group, end] of view.data.groups) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    const names = Array.from({ length: end - start }, (_, i) => start++);
    box.type = "checkbox";
    box.value = names.join();
    box.addEventListener("change", () => choose(names, box.checked));
    label.className = "chip";
    label.append(box, ` ${group}`);
    $("groups").append(label);
  }
  fillTiles($("names"), view.data.names.map((text, name) =>
    tileButton(name, 0, text, () => choose([name], !view.chosen.has(name)))));
  showChosen();
  fillOwn();
}

function turnSphere(around, up) {
  view.angles = [view.angles[0] + around, Math.max(-1.4, Math.min(1.4, view.angles[1] + up))];
  drawSphere();
}

function listenToSphere() {
  const canvas = $("sphere");
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, 0.15], ArrowDown: [0, -0.15] };
    if (!by[event.key]) return;
    event.preventDefault();
    turnSphere(...by[event.key]);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons) turnSphere(event.movementX / 120, event.movementY / 120);
  });
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let before = 0;
  const spin = (now) => {
    if (view.playing && !still.matches && now - before > 50) {
      turnSphere(0.006, 0);
      before = now;
    }
    requestAnimationFrame(spin);
  };
  requestAnimationFrame(spin);
}

function listen() {
  for (const control of $("controls").elements) {
    if (control.matches("select, input:not([type=checkbox]), textarea")) {
      control.addEventListener("change", restart);
      control.addEventListener("input", showValues);
    }
  }
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("play").addEventListener("click", () => {
    if (view.frame?.finished) restart();
    setPlaying(!view.playing);
    view.worker.postMessage(["play", view.playing]);
  });
  $("step").addEventListener("click", () => {
    setPlaying(false);
    view.worker.postMessage(["step"]);
  });
  $("reset").addEventListener("click", () => {
    setPlaying(false);
    view.worker.postMessage(["play", false]);
    restart();
    say("Started anew.");
  });
  $("speed").addEventListener("input", () => {
    showValues();
    view.worker.postMessage(["speed", speed()]);
  });
  $("ask").addEventListener("input", () => view.worker.postMessage(["ask", $("ask").value]));
  for (const radio of document.querySelectorAll("[name=set]")) radio.addEventListener("change", draw);
  addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    forgetColours();
    draw();
  });
  $("matrix").addEventListener("click", (event) => {
    const row = Math.floor((event.offsetY - view.place.top) / view.place.side);
    if (row >= 0 && row < Math.min(SHOWN, view.options.chosen.length)) view.selected = row;
    draw();
  });
  listenToSphere();
}

async function main() {
  view.data = await unpack(read("drawings"));
  const { batch, embedding, patch, layers, steps, seed, shift, rate, loss } = view.defaults;
  $("batch").value = BATCHES.indexOf(batch);
  $("rate").value = RATES.indexOf(rate);
  $("tower").value = `${patch},${layers}`;
  Object.entries({ embedding, steps, seed, shift, loss }).forEach(([id, value]) => { $(id).value = value; });
  const source = new Blob([$("worker-source").textContent], { type: "text/javascript" });
  view.worker = new Worker(URL.createObjectURL(source)); // from file:// a worker must be a blob
  view.worker.onmessage = ({ data }) => takeFrame(data);
  view.worker.onerror = (event) => takeFrame({ error: `The worker failed: ${event.message}` });
  view.worker.postMessage(["data", view.data]);
  buildChoices();
  listen();
  restart();
}

main().catch((error) => takeFrame({ error: `The page failed to start: ${error.message}` }));
