// A CLIP of two small towers: a Vision Transformer over drawings of 32 pixels, and a bag of words.
// Parameters have the names and the shapes that the project's Python has for the same config.

import {
  add, attention, bagOfWords, firstTokens, l2Normalize, layerNorm, linear, quickGelu,
  withClassToken,
} from "./ops.js";

export const SIZE = 32; // pixels a side
export const MEAN = [0.48145466, 0.4578275, 0.40821073]; // of CLIP's preprocessing
export const STD = [0.26862954, 0.26130258, 0.27577711];
const INITIAL_LOGIT_SCALE = Math.log(1 / 0.07); // section 2.5
const INITIAL_LOGIT_BIAS = -10; // SigLIP: nearly all pairs of a batch are wrong ones

/** [name, shape, deviation | {constant}] of every parameter, in the order in which it is drawn. */
export function parameters({ width: d, layers, patch, embedding: e, words: w, vocabulary, loss, scale }) {
  const std = 1 / Math.sqrt(d);
  const deep = std / Math.sqrt(2 * layers);
  const fan = 3 * patch * patch;
  const one = { constant: 1 }, zero = { constant: 0 };
  const norm = (name) => [[`${name}.scale`, [d], one], [`${name}.bias`, [d], zero]];
  const block = (name) => [
    [`${name}.attn.in_proj_kernel`, [d, 3 * d], std],
    [`${name}.attn.in_proj_bias`, [3 * d], zero],
    [`${name}.attn.out_proj.kernel`, [d, d], deep],
    [`${name}.attn.out_proj.bias`, [d], zero],
    ...norm(`${name}.ln_1`),
    [`${name}.mlp.c_fc.kernel`, [d, 4 * d], 1 / Math.sqrt(2 * d)],
    [`${name}.mlp.c_fc.bias`, [4 * d], zero],
    [`${name}.mlp.c_proj.kernel`, [4 * d, d], deep],
    [`${name}.mlp.c_proj.bias`, [d], zero],
    ...norm(`${name}.ln_2`),
  ];
  const sigmoid = loss === "sigmoid";
  const start = sigmoid ? Math.log(10) : INITIAL_LOGIT_SCALE;
  return [
    ["logit_scale", [], { constant: scale ? Math.log(scale) : start }],
    ...(sigmoid ? [["logit_bias", [], { constant: INITIAL_LOGIT_BIAS }]] : []),
    ["visual.class_embedding", [d], std],
    ["visual.positional_embedding", [(SIZE / patch) ** 2 + 1, d], std],
    ["visual.proj", [d, e], std],
    ["visual.conv1.kernel", [patch, patch, 3, d], 1 / Math.sqrt(3 * fan)],
    ...norm("visual.ln_pre"),
    ...Array.from({ length: layers }, (_, i) => block(`visual.transformer.resblocks.${i}`)).flat(),
    ...norm("visual.ln_post"),
    ["text.token_embedding.embedding", [vocabulary, w], 0.02],
    ["text.text_projection", [w, e], 1 / Math.sqrt(w)],
  ];
}

/** {name: tensor} with fresh weights, drawn one after the other. */
export function drawParameters(tape, config, random) {
  const drawn = {};
  for (const [name, shape, how] of parameters(config)) {
    const tensor = tape.tensor(shape.reduce((a, b) => a * b, 1));
    for (let j = 0; j < tensor.size; j++) {
      tensor.value[j] = typeof how === "number" ? how * random.normal() : how.constant;
    }
    drawn[name] = tensor;
  }
  tape.keep();
  return drawn;
}

/** A drawing's bytes [32, 32, 3] as rows of patches [p, patch * patch * 3], normalised (im2col). */
export function putPatches(bytes, patch, into) {
  const across = SIZE / patch;
  let at = 0;
  for (let p = 0; p < across * across; p++) {
    const [top, left] = [Math.floor(p / across) * patch, (p % across) * patch];
    for (let y = top; y < top + patch; y++) {
      for (let j = 3 * (y * SIZE + left); j < 3 * (y * SIZE + left + patch); j++) {
        into[at++] = (bytes[j] / 255 - MEAN[j % 3]) / STD[j % 3];
      }
    }
  }
}

/** One block, of which only the first `rows` tokens go on. */
function transformerBlock(tape, weights, name, x, { n, l, d, heads, rows, epsilon }) {
  const at = (part) => weights[`${name}.${part}`];
  const norm = (y, part) => layerNorm(tape, y, at(`${part}.scale`), at(`${part}.bias`), epsilon);
  const map = (y, part, i, o) => linear(tape, y, at(`${part}.kernel`), at(`${part}.bias`), i, o);
  const inProjection = [at("attn.in_proj_kernel"), at("attn.in_proj_bias"), d, 3 * d];
  const qkv = linear(tape, norm(x, "ln_1"), ...inProjection);
  const { mixed, weights: seen } = attention(tape, qkv, n, l, d, heads, rows);
  x = add(tape, firstTokens(tape, x, n, l, d, rows), map(mixed, "attn.out_proj", d, d));
  const wide = quickGelu(tape, map(norm(x, "ln_2"), "mlp.c_fc", d, 4 * d));
  return { x: add(tape, x, map(wide, "mlp.c_proj", 4 * d, d)), seen };
}

/** n drawings -> {embeds [n, e], rows of length one; seen, the last block's attention [n, a, l]}. */
export function encodeImages(tape, weights, config, drawings) {
  const { width: d, layers, heads, patch, embedding: e, epsilon } = config;
  const n = drawings.length;
  const l = (SIZE / patch) ** 2 + 1;
  const pixels = tape.input(n * SIZE * SIZE * 3);
  drawings.forEach((bytes, i) => {
    putPatches(bytes, patch, pixels.value.subarray(i * SIZE * SIZE * 3, (i + 1) * SIZE * SIZE * 3));
  });
  const at = (name) => weights[`visual.${name}`];
  const norm = (y, name) => layerNorm(tape, y, at(`${name}.scale`), at(`${name}.bias`), epsilon);
  const patches = linear(tape, pixels, at("conv1.kernel"), null, 3 * patch * patch, d);
  const tokens = [at("class_embedding"), at("positional_embedding"), n];
  let x = norm(withClassToken(tape, patches, ...tokens), "ln_pre");
  let seen;
  for (let i = 0; i < layers; i++) {
    // Only the class token is projected, so the last block need not compute the others.
    const sizes = { n, l, d, heads, epsilon, rows: i === layers - 1 ? 1 : l };
    ({ x, seen } = transformerBlock(tape, weights, `visual.transformer.resblocks.${i}`, x, sizes));
  }
  const features = linear(tape, norm(x, "ln_post"), at("proj"), null, d, e);
  return { embeds: l2Normalize(tape, features, e), seen };
}

/** n lists of ids -> [n, e], rows of length one. */
export function encodeTexts(tape, weights, { words, embedding: e }, texts) {
  const mean = bagOfWords(tape, weights["text.token_embedding.embedding"], texts, words);
  const features = linear(tape, mean, weights["text.text_projection"], null, words, e);
  return l2Normalize(tape, features, e);
}
