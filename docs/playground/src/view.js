// What the page holds between two frames, and how its elements are found.

export const $ = (id) => document.getElementById(id);
export const read = (id) => JSON.parse($(id).textContent);
export const SPEEDS = [1, 2, 5, 10, 20, 40, 80, Infinity]; // steps a second
export const BATCHES = [2, 4, 8, 16, 32, 64];
export const RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2];
export const SHOWN = 16; // rows of the matrix
export const view = {
  data: null, defaults: read("defaults"), chosen: null, options: null, frame: null, playing: false,
  losses: [], smooth: [], accuracy: [], selected: 0, angles: [0.5, 0.35], worker: null,
};
view.chosen = new Set(view.defaults.chosen);

export const percent = (share) => `${Math.round(100 * share)} %`;
export const describe = (id, text) => $(id).setAttribute("aria-label", text);
export const say = (text) => { $("said").textContent = text; };

export function setPlaying(playing) {
  view.playing = playing;
  $("play").textContent = playing ? "Pause" : "Train";
  $("play").classList.toggle("on", playing);
}

/** What guessing costs: ln n, or the best that one bias can do for all pairs under the sigmoid. */
export function guessing() {
  const { batch: n, loss } = view.options;
  return Math.log(n) + (loss === "sigmoid" ? (n - 1) * Math.log(n / (n - 1)) : 0);
}
