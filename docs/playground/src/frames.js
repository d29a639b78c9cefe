// From the worker's frames to pictures and numbers.

import {
  copyTile, lineChart, matrix, prepare, sphere, spotlight, tile,
} from "./charts.js";
import { $, describe, guessing, percent, say, setPlaying, SHOWN, view } from "./view.js";

export function takeFrame(frame) {
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

export function drawSphere() {
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

export function draw() {
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
