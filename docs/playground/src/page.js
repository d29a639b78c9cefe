// The page: what it builds, and what it listens to.

import { forgetColours } from "./charts.js";
import { unpack } from "./data.js";
import { draw, drawSphere, takeFrame } from "./frames.js";
import { options, showValues, speed } from "./options.js";
import { fillTiles, tileButton } from "./tiles.js";
import { $, BATCHES, RATES, read, say, setPlaying, SHOWN, view } from "./view.js";

function buildUnseen() {
  const unseen = view.data.artists.length - 1;
  fillTiles($("unseen"), view.options.chosen.map((name, i) =>
    tileButton(name, unseen, view.data.names[name], () => {
      view.selected = i;
      draw();
    })));
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
