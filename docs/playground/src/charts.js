// Everything that is drawn on a canvas. Colours are read from the style sheet, so dark follows.

import { drawing } from "./data.js";

const colours = new Map();

/** A variable of the style sheet, looked up once until `forgetColours`. */
function css(name) {
  if (!colours.has(name)) {
    const style = getComputedStyle(document.documentElement);
    colours.set(name, style.getPropertyValue(`--${name}`).trim());
  }
  return colours.get(name);
}

export const forgetColours = () => colours.clear();

/** {context, width, height} of a cleared canvas, sharp on any screen. */
export function prepare(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.style.height = `${height}px`;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `12px ${css("font")}`;
  context.lineJoin = "round";
  return { context, width, height };
}

const tiles = new Map();

/** A drawing as a canvas of 32 pixels a side, made once. */
export function tile(data, name, artist) {
  const key = name * data.artists.length + artist;
  if (!tiles.has(key)) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 32;
    const image = new ImageData(32, 32);
    drawing(data, name, artist).forEach((byte, j) => {
      image.data[4 * Math.floor(j / 3) + (j % 3)] = byte;
    });
    for (let j = 3; j < image.data.length; j += 4) image.data[j] = 255;
    canvas.getContext("2d").putImageData(image, 0, 0);
    tiles.set(key, canvas);
  }
  return tiles.get(key);
}

/** Put a drawing into a canvas of its own. */
export function copyTile(canvas, image) {
  canvas.width = canvas.height = 32;
  canvas.getContext("2d").drawImage(image, 0, 0);
}

/** Lines [{points: [[x, y]], colour, width, dash}] over axes; y from 0 to `top`, x from 0 to `end`. */
export function lineChart(canvas, height, { lines, top, end, format, guide }) {
  const { context: c, width } = prepare(canvas, height);
  const box = { left: 46, right: width - 10, top: 10, bottom: height - 22 };
  const x = (value) => box.left + (value / end) * (box.right - box.left);
  const y = (value) => box.bottom - (value / top) * (box.bottom - box.top);
  c.lineWidth = 1;
  c.textBaseline = "middle";
  for (let i = 0; i <= 4; i++) {
    const value = (top * i) / 4;
    c.strokeStyle = css(i ? "grid" : "faint");
    c.fillStyle = css("faint");
    c.beginPath();
    c.moveTo(box.left, y(value));
    c.lineTo(box.right, y(value));
    c.stroke();
    c.textAlign = "right";
    c.fillText(format(value), box.left - 6, y(value));
  }
  c.textAlign = "center";
  for (let i = 0; i <= 4; i++) {
    c.textAlign = i === 4 ? "right" : i ? "center" : "left";
    c.fillText(Math.round((end * i) / 4).toLocaleString("en"), x((end * i) / 4), height - 8);
  }
  c.save();
  c.beginPath();
  c.rect(box.left, box.top - 4, box.right - box.left, box.bottom - box.top + 6);
  c.clip();
  for (const { points, colour, thick = 2, dash = [] } of lines) {
    c.strokeStyle = css(colour);
    c.lineWidth = thick;
    c.setLineDash(dash);
    c.beginPath();
    for (const [step, value] of points) c.lineTo(x(step), y(value));
    c.stroke();
  }
  c.restore();
  c.setLineDash([]);
  if (guide) {
    c.fillStyle = css("ink");
    c.textAlign = "right";
    c.fillText(guide.text, box.right - 4, y(guide.value) - 9);
  }
}

/** From blue over the page's own ground to orange: told apart by every kind of eye. */
export function cosineColour(value) {
  const [low, middle, high] = ["low", "zero", "high"].map((name) => css(name).split(" ").map(Number));
  const other = value < 0 ? low : high;
  const much = Math.min(1, Math.abs(value)) ** 0.8;
  return `rgb(${middle.map((from, j) => Math.round(from + much * (other[j] - from))).join(" ")})`;
}

/** The similarity matrix: drawings down, captions across, one cell a cosine. */
export function matrix(canvas, { similar, total, shown, images, captions, selected }) {
  const name = 104; // pixels for the captions, upright
  const side = Math.max(14, Math.min(30, Math.floor((canvas.clientWidth - 40) / shown)));
  const left = Math.max(28, side + 6);
  const { context: c } = prepare(canvas, name + shown * side + 6);
  const ramp = Array.from({ length: 201 }, (_, i) => cosineColour(i / 100 - 1));
  for (let i = 0; i < shown; i++) {
    c.drawImage(images[i], left - side - 2, name + i * side + 1, side - 2, side - 2);
    for (let t = 0; t < shown; t++) {
      c.fillStyle = ramp[Math.round(100 * (similar[i * total + t] + 1))];
      c.fillRect(left + t * side, name + i * side, side - 1, side - 1);
    }
  }
  c.textAlign = "left";
  c.textBaseline = "middle";
  c.font = `${Math.min(12, side - 3)}px ${css("font")}`;
  captions.slice(0, shown).forEach((caption, t) => {
    c.save();
    c.translate(left + (t + 0.5) * side, name - 5);
    c.rotate(-Math.PI / 2);
    c.fillStyle = css(t === selected ? "ink" : "faint");
    c.fillText(caption.length > 18 ? `${caption.slice(0, 17)}…` : caption, 0, 0);
    c.restore();
  });
  c.strokeStyle = css("ink");
  c.lineWidth = 1.5;
  if (selected < shown) c.strokeRect(left, name + selected * side - 0.5, shown * side, side);
  return { left, top: name, side };
}

/** Points [n, 3] turned by two angles. */
function turned(points, [around, up]) {
  const [ca, sa, cu, su] = [Math.cos(around), Math.sin(around), Math.cos(up), Math.sin(up)];
  const out = new Float32Array(points.length);
  for (let i = 0; i < points.length; i += 3) {
    const [x, y, z] = [points[i] * ca + points[i + 2] * sa, points[i + 1], points[i + 2] * ca - points[i] * sa];
    out.set([x, y * cu - z * su, z * cu + y * su], i);
  }
  return out;
}

function globe(c, middle, radius, angles, flat) {
  c.strokeStyle = css("grid");
  c.lineWidth = 1;
  c.beginPath();
  c.arc(middle, middle, radius, 0, 2 * Math.PI);
  c.stroke();
  if (flat) return;
  for (let ring = -2; ring <= 2; ring++) {
    const [height, wide] = [Math.sin(ring * 0.5), Math.cos(ring * 0.5)];
    const circle = Float32Array.from({ length: 3 * 49 }, (_, at) => {
      const angle = (Math.floor(at / 3) / 48) * 2 * Math.PI;
      return [wide * Math.cos(angle), height, wide * Math.sin(angle)][at % 3];
    });
    const seen = turned(circle, angles);
    c.beginPath();
    for (let i = 0; i < seen.length; i += 3) c.lineTo(middle + radius * seen[i], middle - radius * seen[i + 1]);
    c.stroke();
  }
}

/** Both sets of embeddings: drawings as themselves, captions as orange squares, pairs joined. */
export function sphere(canvas, { points, texts, images, captions, selected, angles, flat }) {
  const size = Math.min(canvas.clientWidth, 460);
  if (size < 80) return; // not laid out yet
  const { context: c, width } = prepare(canvas, size);
  c.translate((width - size) / 2, 0);
  const middle = size / 2;
  const radius = size / 2 - 26;
  const turn = flat ? [0, 0] : angles;
  globe(c, middle, radius, turn, flat);
  const [is, ts] = [turned(points, turn), turned(texts, turn)];
  const place = (all, i) => [middle + radius * all[3 * i], middle - radius * all[3 * i + 1]];
  const order = [...images.keys()].sort((a, b) => is[3 * a + 2] - is[3 * b + 2]);
  c.lineWidth = 1;
  for (const i of order) {
    c.globalAlpha = 0.35 + 0.3 * (is[3 * i + 2] + 1);
    c.strokeStyle = css(i === selected ? "ink" : "pair");
    c.lineWidth = i === selected ? 2 : 1;
    c.beginPath();
    c.lineTo(...place(is, i));
    c.lineTo(...place(ts, i));
    c.stroke();
  }
  for (const i of order) {
    c.globalAlpha = 0.55 + 0.22 * (ts[3 * i + 2] + 1);
    const [x, y] = place(ts, i);
    c.fillStyle = css("text-mark");
    c.fillRect(x - 3.5, y - 3.5, 7, 7);
  }
  for (const i of order) {
    c.globalAlpha = 0.55 + 0.22 * (is[3 * i + 2] + 1);
    const half = (i === selected ? 15 : 9) + 2 * is[3 * i + 2];
    const [x, y] = place(is, i);
    c.drawImage(images[i], x - half, y - half, 2 * half, 2 * half);
    c.strokeStyle = css("image-mark");
    c.lineWidth = i === selected ? 2.5 : 1;
    c.strokeRect(x - half, y - half, 2 * half, 2 * half);
  }
  c.globalAlpha = 1;
  if (selected < captions.length) {
    const [x, y] = place(ts, selected);
    c.font = `600 13px ${css("font")}`;
    c.textAlign = x > middle ? "right" : "left";
    c.lineWidth = 4;
    c.strokeStyle = css("panel");
    c.strokeText(captions[selected], x + (x > middle ? -8 : 8), y - 9);
    c.fillStyle = css("ink");
    c.fillText(captions[selected], x + (x > middle ? -8 : 8), y - 9);
  }
}

/** A drawing lit where the class token looks: weights [p], the strongest patch in full light. */
export function spotlight(canvas, image, weights) {
  const size = canvas.clientWidth;
  const { context: c } = prepare(canvas, size);
  c.imageSmoothingEnabled = false;
  c.drawImage(image, 0, 0, size, size);
  const across = Math.sqrt(weights.length);
  const most = Math.max(...weights);
  const side = size / across;
  weights.forEach((weight, p) => {
    c.fillStyle = `rgb(8 14 26 / ${(0.86 * (1 - weight / most)).toFixed(3)})`;
    c.fillRect((p % across) * side, Math.floor(p / across) * side, side + 0.5, side + 0.5);
  });
}
