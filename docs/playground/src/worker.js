// The worker: trains in slices, and between them tells the page what it needs to draw.

import { splitWords } from "./data.js";
import { mainDirections, project } from "./directions.js";
import { rateAt } from "./optimizer.js";
import { makeMemory } from "./product.js";
import { bestOfRows, cosines, Run } from "./run.js";

const FLOATS = 1 << 24; // 64 MiB: a batch of 64 with two blocks of small patches
const SLICE = 16; // milliseconds of training before messages are read
const FRAME = 220; // milliseconds between two looks at all drawings
const state = { data: null, run: null, playing: false, speed: Infinity, question: "" };
const memory = makeMemory(FLOATS);
let losses = []; // since the last frame
let lastFrame = 0;
let recent = []; // [time, steps] of the last second

/** How the drawings of one artist lie to the captions. */
function lookAt(artist, words) {
  const { run } = state;
  const { embeds, seen } = run.look(run.drawingsBy(artist));
  const similar = cosines(embeds, words, run.config.embedding);
  const best = bestOfRows(similar, run.config.chosen.length);
  const right = best.filter((name, i) => name === i).length;
  return { embeds, seen, similar, best, accuracy: right / best.length };
}

/** Which drawings of the unseen artist fit what the reader typed. */
function answer(unseen) {
  const { run, question } = state;
  const words = splitWords(question);
  const unknown = words.filter((word) => !run.batches.vocabulary.numbers.has(word));
  if (words.length === unknown.length) return { unknown, scores: null };
  return { unknown, scores: cosines(unseen.embeds, run.read([question]), run.config.embedding) };
}

function sendFrame() {
  const { run } = state;
  const { embedding: e } = run.config;
  const words = run.read(run.batches.captions);
  const sets = { trained: lookAt(0, words), unseen: lookAt(run.batches.painters, words) };
  const all = Float32Array.from([...sets.trained.embeds, ...words]);
  state.directions = mainDirections(all, e, state.directions);
  for (const set of Object.values(sets)) set.points = project(set.embeds, e, state.directions);
  const now = performance.now();
  recent = recent.filter(([time]) => now - time < 1500);
  const done = recent.reduce((sum, [, steps]) => sum + steps, 0);
  postMessage({
    step: run.optimizer.count,
    finished: run.optimizer.count >= run.config.steps,
    playing: state.playing,
    losses, sets,
    texts: project(words, e, state.directions),
    scale: Math.exp(run.weights.logit_scale.value[0]),
    bias: run.weights.logit_bias?.value[0] ?? 0,
    rate: rateAt(run.optimizer.count, run.config),
    perSecond: recent.length ? (1000 * done) / Math.max(now - recent[0][0], 1) : 0,
    answer: answer(sets.unseen),
    kind: memory.kind,
  });
  losses = [];
  lastFrame = performance.now();
}

/** Train for one slice; true where the run has ended. */
function train(most) {
  const { run } = state;
  const start = performance.now();
  let steps = 0;
  do {
    losses.push(run.step());
    steps++;
  } while (steps < most && performance.now() - start < SLICE && run.optimizer.count < run.config.steps);
  recent.push([start, steps]);
  if (run.optimizer.count >= run.config.steps) state.playing = false;
}

const wake = new MessageChannel(); // setTimeout would wait four milliseconds every time
wake.port1.onmessage = turn;

/** Run `turn` after `wait` milliseconds, once, however often this is called meanwhile. */
function schedule(wait) {
  if (state.scheduled) return;
  state.scheduled = true;
  if (wait) setTimeout(turn, wait);
  else wake.port2.postMessage(0);
}

function turn() {
  state.scheduled = false;
  if (!state.playing || !state.run) return;
  train(state.speed === Infinity ? Infinity : 1);
  const wait = 1000 / state.speed;
  if (!state.playing || wait > FRAME || performance.now() - lastFrame > FRAME) sendFrame();
  schedule(wait);
}

const ORDERS = {
  data(data) {
    state.data = data;
  },
  start(options) {
    Object.assign(state, { run: null, directions: undefined });
    [losses, recent] = [[], []];
    state.run = new Run(memory, state.data, options);
    sendFrame();
  },
  play(playing) {
    const finished = !state.run || state.run.optimizer.count >= state.run.config.steps;
    const turnOn = playing && !state.playing && !finished;
    state.playing = playing && !finished;
    recent = [];
    if (turnOn) schedule(0);
    else if (state.run) sendFrame();
  },
  step() {
    state.playing = false;
    if (state.run.optimizer.count < state.run.config.steps) train(1);
    sendFrame();
  },
  speed(speed) {
    state.speed = speed;
  },
  ask(question) {
    state.question = question;
    if (!state.playing && state.run) sendFrame();
  },
};

self.onmessage = ({ data: [order, value] }) => {
  try {
    ORDERS[order](value);
  } catch (error) {
    state.playing = false;
    postMessage({ error: error.message });
  }
};
