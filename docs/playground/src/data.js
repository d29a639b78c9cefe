// Drawings, captions, tokens and batches: a pure function of the seed, in Python as here.

import { Random } from "./random.js";

export const BYTES = 32 * 32 * 3; // of a drawing

/** A caption's words, in lower case. */
export const splitWords = (caption) => caption.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];

/** {names, artists, keywords, groups, pixels} as the build leaves them, with the bytes unpacked. */
export async function unpack({ packed, ...rest }) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return { ...rest, pixels: new Uint8Array(await new Response(stream).arrayBuffer()) };
}

/** The drawing of a name by an artist, both by number: bytes [32, 32, 3]. */
export function drawing({ artists, pixels }, name, artist) {
  const at = (name * artists.length + artist) * BYTES;
  return pixels.subarray(at, at + BYTES);
}

/** The words of all captions by number: 0 starts a text, the last number ends it. */
export class Vocabulary {
  constructor(captions) {
    this.words = [...new Set(captions.flatMap(splitWords))].sort();
    this.numbers = new Map(this.words.map((word, i) => [word, i + 1]));
    this.size = this.words.length + 2;
  }

  /** Ids of a caption, start and end included; words that it lacks are left out. */
  encode(caption) {
    const known = splitWords(caption).filter((word) => this.numbers.has(word));
    return [0, ...known.map((word) => this.numbers.get(word)), this.size - 1];
  }
}

/** What a run trains on: chosen names, their captions, and one batch after the other. */
export class Batches {
  constructor(data, { chosen, own, wording, batch, seed, shift }) {
    if (batch < 2 || batch > chosen.length) {
      throw new Error(`expected a batch of 2 to ${chosen.length}, got ${batch}; choose more drawings`);
    }
    Object.assign(this, { data, chosen, wording, batch, shift });
    this.captions = chosen.map((name, i) => own?.[i] || data.names[name]);
    this.keywords = chosen.map((name) => (wording === "keywords" ? data.keywords[name] : []));
    this.vocabulary = new Vocabulary([...this.captions, ...this.keywords.flat()]);
    this.painters = data.artists.length - 1; // the last is never trained on
    this.random = new Random(3 * seed + 1);
    const deal = new Random(3 * seed + 2);
    /** dealt[artist][i]: the place of the drawing that goes with caption i. */
    this.dealt = Array.from({ length: this.painters }, () =>
      wording === "dealt" ? deal.permutation(chosen.length) : chosen.map((_, i) => i));
    this.order = [];
    this.position = 0;
  }

  /** The next n pairs, no caption twice: [{name, artist, caption, shift}]. */
  next() {
    const { chosen, random } = this;
    if (this.position + this.batch > this.order.length) {
      this.order = random.permutation(chosen.length);
      this.position = 0;
    }
    const places = this.order.slice(this.position, (this.position += this.batch));
    return places.map((place) => {
      const artist = random.whole(this.painters);
      const name = chosen[this.dealt[artist][place]];
      let caption = this.captions[place];
      if (this.wording === "keywords") {
        const words = this.keywords[place];
        const picked = random.whole(words.length + 1);
        if (picked) caption += ` ${words[picked - 1]}`;
      }
      const move = () => random.whole(2 * this.shift + 1) - this.shift;
      return { name, artist, caption, shift: [move(), move()] };
    });
  }
}

/** A drawing moved by whole pixels, white where nothing comes in. */
export function shifted(bytes, [down, right]) {
  if (!down && !right) return bytes;
  const moved = new Uint8Array(BYTES).fill(255);
  const row = 3 * 32;
  const [out, into] = [3 * Math.max(0, -right), 3 * Math.max(0, right)]; // of the row's bytes
  for (let y = Math.max(0, down); y < Math.min(32, 32 + down); y++) {
    const from = (y - down) * row;
    moved.set(bytes.subarray(from + out, from + row - into), y * row + into);
  }
  return moved;
}
