// One seeded generator, written a second time in experiments/proofs/playground_twin.py: whole
// numbers only, so both give the same weights and batches to the last bit.

const STRIDE = 0x6d2b79f5;

/** Random numbers by mulberry32 (Tommy Ettinger's, public domain). */
export class Random {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  /** The next whole number from 0 to 2^32 - 1. */
  next() {
    this.state = (this.state + STRIDE) >>> 0;
    let z = this.state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return (z ^ (z >>> 14)) >>> 0;
  }

  /** A whole number from 0 to n - 1. */
  whole(n) {
    return Math.floor((this.next() / 2 ** 32) * n);
  }

  /** Nearly normal, mean 0, deviation 1: a sum of twelve needs no logarithm, which may round. */
  normal() {
    let sum = 0;
    for (let i = 0; i < 12; i++) sum += this.next();
    return sum / 2 ** 32 - 6;
  }

  /** 0 to n - 1 in random order (Fisher and Yates). */
  permutation(n) {
    const order = Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.whole(i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }
}
