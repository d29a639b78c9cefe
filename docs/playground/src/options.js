// From the controls to the options of a run.

import { $, BATCHES, RATES, SPEEDS, view } from "./view.js";

const scaleAt = (position) => 100 ** (position / 40); // 1 to 100

/** What the controls say, as `Run` takes it. */
export function options() {
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

export function showValues() {
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

export const speed = () => SPEEDS[$("speed").value];
