// One training run: data, weights, optimiser, and the step that joins them.

import { Batches, drawing, shifted } from "./data.js";
import { contrastive } from "./losses.js";
import { drawParameters, encodeImages, encodeTexts } from "./model.js";
import { Tape } from "./ops.js";
import { AdamW } from "./optimizer.js";
import { Random } from "./random.js";


export class Run {
  /** `memory` as of `makeMemory`; `options` as in defaults.json, with `chosen`: numbers of names. */
  constructor(memory, data, options) {
    this.data = data;
    this.batches = new Batches(data, options);
    this.config = { ...options, vocabulary: this.batches.vocabulary.size };
    this.tape = new Tape(memory);
    const random = new Random(3 * this.config.seed);
    this.weights = drawParameters(this.tape, this.config, random);
    this.optimizer = new AdamW(this.weights, this.config);
  }

  /** One update; returns the loss before it. */
  step() {
    const { tape, weights, config, data } = this;
    const pairs = this.batches.next();
    const pictures = pairs.map(({ name, artist, shift }) => shifted(drawing(data, name, artist), shift));
    const texts = pairs.map(({ caption }) => this.batches.vocabulary.encode(caption));
    tape.clear();
    const images = encodeImages(tape, weights, config, pictures).embeds;
    const words = encodeTexts(tape, weights, config, texts);
    const { logit_scale: scale, logit_bias: bias } = weights;
    const sizes = [config.batch, config.embedding];
    const { loss } = contrastive(tape, config.loss, images, words, ...sizes, scale, bias);
    tape.backward();
    this.optimizer.update();
    return loss;
  }

  /** {embeds [n, e], seen [n, a, l]: the class token's attention} of drawings, some at a time. */
  look(drawings) {
    const embeds = [], seen = [];
    for (let i = 0; i < drawings.length; i += 16) {
      this.tape.clear();
      const some = encodeImages(this.tape, this.weights, this.config, drawings.slice(i, i + 16));
      embeds.push(...some.embeds.value);
      seen.push(...some.seen);
    }
    return { embeds: Float32Array.from(embeds), seen: Float32Array.from(seen) };
  }

  /** Embeddings [n, e] of captions. */
  read(captions) {
    this.tape.clear();
    const texts = captions.map((caption) => this.batches.vocabulary.encode(caption));
    return encodeTexts(this.tape, this.weights, this.config, texts).value.slice();
  }

  /** The chosen names' drawings by one artist. */
  drawingsBy(artist) {
    return this.config.chosen.map((name) => drawing(this.data, name, artist));
  }
}

/** Cosines [n, m] of embeddings [n, e] and [m, e]. */
export function cosines(images, texts, e) {
  const m = texts.length / e;
  return Float32Array.from({ length: (images.length / e) * m }, (_, at) => {
    const [i, t] = [Math.floor(at / m) * e, (at % m) * e];
    let cosine = 0;
    for (let j = 0; j < e; j++) cosine += images[i + j] * texts[t + j];
    return cosine;
  });
}

/** The largest of each row of [n, m], by number. */
export function bestOfRows(values, m) {
  return Array.from({ length: values.length / m }, (_, i) => {
    const row = values.subarray(i * m, (i + 1) * m);
    return row.indexOf(Math.max(...row));
  });
}
