// Every operation of the model with its gradient, derived by hand. An operation writes its result
// and leaves behind, on the tape, a function that adds to the gradients of what it took.
// Arrays lie in one memory, row by row; a tensor is a place in it: {at, size, value, grad}.

export const LAYER_NORM_EPSILON = 1e-5;

/** Memory for tensors, and the operations done since the last `clear`. */
export class Tape {
  constructor({ floats, product }) {
    this.floats = floats;
    this.product = product;
    this.end = 0; // of what is taken
    this.kept = 0; // of what `clear` leaves: parameters
    this.undo = [];
  }

  /** A tensor of zeros whose gradient, zeros as well, lies right behind it. */
  tensor(size) {
    const at = this.end;
    const wide = (size + 3) & ~3; // whole vectors
    this.end += 2 * wide;
    if (this.end > this.floats.length) {
      throw new Error(`expected at most ${this.floats.length} floats, got ${this.end}; use a smaller batch`);
    }
    this.floats.fill(0, at, this.end);
    const value = this.floats.subarray(at, at + size);
    const grad = this.floats.subarray(at + wide, at + wide + size);
    return { at, gradAt: at + wide, size, value, grad };
  }

  /** A tensor that nothing learns from: no gradient is computed for it. */
  input(size) {
    return { ...this.tensor(size), grad: null };
  }

  keep() {
    this.kept = this.end;
  }

  clear() {
    this.end = this.kept;
    this.undo = [];
  }

  /** Run the tape backwards: gradients of everything, from those that the loss has set. */
  backward() {
    for (const step of this.undo.reverse()) step();
    this.undo = [];
  }
}

/** y [m, o] = x [m, i] W [i, o] + bias [o], if any. dx = dy W^T, dW = x^T dy, dbias = sum of dy. */
export function linear(tape, x, kernel, bias, inputs, outputs) {
  const m = x.size / inputs;
  const y = tape.tensor(m * outputs);
  if (bias) for (let r = 0; r < m; r++) y.value.set(bias.value, r * outputs);
  tape.product(x.at, inputs, 1, kernel.at, outputs, y.at, outputs, m, inputs, outputs);
  tape.undo.push(() => {
    if (x.grad) {
      const turned = tape.tensor(kernel.size); // W^T [o, i]
      for (let at = 0; at < kernel.size; at++) {
        turned.value[(at % outputs) * inputs + Math.floor(at / outputs)] = kernel.value[at];
      }
      tape.product(y.gradAt, outputs, 1, turned.at, inputs, x.gradAt, inputs, m, outputs, inputs);
    }
    tape.product(x.at, 1, inputs, y.gradAt, outputs, kernel.gradAt, outputs, inputs, m, outputs);
    for (let r = 0; bias && r < y.size; r += outputs) {
      for (let o = 0; o < outputs; o++) bias.grad[o] += y.grad[r + o];
    }
  });
  return y;
}

/** y = x + z, both of one shape. */
export function add(tape, x, z) {
  const y = tape.tensor(x.size);
  for (let j = 0; j < x.size; j++) y.value[j] = x.value[j] + z.value[j];
  tape.undo.push(() => {
    for (let j = 0; j < x.size; j++) {
      x.grad[j] += y.grad[j];
      z.grad[j] += y.grad[j];
    }
  });
  return y;
}

/**
 * y = scale * (x - mean) / sqrt(variance + epsilon) + bias over rows of d.
 * With u = dy scale and h the normalised row: dx = (u - mean(u) - h mean(u h)) / deviation.
 */
export function layerNorm(tape, x, scale, bias, epsilon = LAYER_NORM_EPSILON) {
  const d = scale.size;
  const y = tape.tensor(x.size);
  const [from, to, gain, shift] = [x.value, y.value, scale.value, bias.value];
  const normal = new Float32Array(x.size); // h
  const inverse = new Float32Array(x.size / d); // 1 / deviation
  for (let r = 0, o = 0; o < x.size; r++, o += d) {
    let sum = 0, squares = 0;
    for (let j = 0; j < d; j++) sum += from[o + j];
    const mean = sum / d;
    for (let j = 0; j < d; j++) squares += (from[o + j] - mean) * (from[o + j] - mean);
    inverse[r] = 1 / Math.sqrt(squares / d + epsilon);
    for (let j = 0; j < d; j++) {
      normal[o + j] = (from[o + j] - mean) * inverse[r];
      to[o + j] = normal[o + j] * gain[j] + shift[j];
    }
  }
  tape.undo.push(() => {
    const [dx, dy, dGain, dShift] = [x.grad, y.grad, scale.grad, bias.grad];
    for (let r = 0, o = 0; o < x.size; r++, o += d) {
      let sum = 0, along = 0; // of u and of u h
      for (let j = 0; j < d; j++) {
        const g = dy[o + j], h = normal[o + j];
        dShift[j] += g;
        dGain[j] += g * h;
        sum += g * gain[j];
        along += g * gain[j] * h;
      }
      for (let j = 0; j < d; j++) {
        dx[o + j] += (dy[o + j] * gain[j] - (sum + normal[o + j] * along) / d) * inverse[r];
      }
    }
  });
  return y;
}

/** y = x s with s = sigmoid(1.702 x). dy/dx = s + 1.702 y (1 - s). */
export function quickGelu(tape, x) {
  const y = tape.tensor(x.size);
  const slope = new Float32Array(x.size);
  for (let j = 0; j < x.size; j++) {
    const s = 1 / (1 + Math.exp(-1.702 * x.value[j]));
    y.value[j] = x.value[j] * s;
    slope[j] = s + 1.702 * y.value[j] * (1 - s);
  }
  tape.undo.push(() => {
    for (let j = 0; j < x.size; j++) x.grad[j] += y.grad[j] * slope[j];
  });
  return y;
}

/**
 * Attention of the first `queries` tokens to all l: qkv [n, l, 3d] -> {mixed [n, queries, d],
 * weights [n, heads, queries, l]}. Softmax backwards: ds = w (dw - sum of w dw).
 */
export function attention(tape, qkv, n, l, d, heads, queries) {
  const k = d / heads;
  const factor = 1 / Math.sqrt(k);
  const y = tape.tensor(n * queries * d);
  const weights = new Float32Array(n * heads * queries * l);
  const { value, grad } = qkv;
  const dw = new Float32Array(l);
  /** For each picture, head and query: where its q, first k, y and weights lie. */
  const visit = (body) => {
    for (let i = 0, w = 0; i < n; i++) {
      for (let a = 0; a < heads; a++) {
        for (let r = 0; r < queries; r++, w += l) {
          const q = (i * l + r) * 3 * d + a * k;
          body(q, i * l * 3 * d + d + a * k, (i * queries + r) * d + a * k, w);
        }
      }
    }
  };
  visit((q, key, out, w) => {
    let most = -Infinity, sum = 0;
    for (let t = 0, at = key; t < l; t++, at += 3 * d) {
      let score = 0;
      for (let j = 0; j < k; j++) score += value[q + j] * factor * value[at + j];
      weights[w + t] = score;
      if (score > most) most = score;
    }
    for (let t = 0; t < l; t++) sum += weights[w + t] = Math.exp(weights[w + t] - most);
    for (let t = 0, at = key + d; t < l; t++, at += 3 * d) {
      const weight = (weights[w + t] /= sum);
      for (let j = 0; j < k; j++) y.value[out + j] += weight * value[at + j];
    }
  });
  tape.undo.push(() => visit((q, key, out, w) => {
    let sum = 0;
    for (let t = 0, at = key + d; t < l; t++, at += 3 * d) {
      let dot = 0;
      for (let j = 0; j < k; j++) {
        dot += y.grad[out + j] * value[at + j];
        grad[at + j] += weights[w + t] * y.grad[out + j];
      }
      dw[t] = dot;
      sum += weights[w + t] * dot;
    }
    for (let t = 0, at = key; t < l; t++, at += 3 * d) {
      const ds = weights[w + t] * (dw[t] - sum) * factor;
      for (let j = 0; j < k; j++) {
        grad[q + j] += ds * value[at + j];
        grad[at + j] += ds * value[q + j];
      }
    }
  }));
  return { mixed: y, weights };
}

/** Class token before the patches, positions added: patches [n, p, d] -> [n, 1 + p, d]. */
export function withClassToken(tape, patches, token, positions, n) {
  const d = token.size;
  const row = positions.size; // (1 + p) d
  const y = tape.tensor(n * row);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < row; j++) {
      const x = j < d ? token.value[j] : patches.value[i * (row - d) + j - d];
      y.value[i * row + j] = x + positions.value[j];
    }
  }
  tape.undo.push(() => {
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < row; j++) {
        const dy = y.grad[i * row + j];
        positions.grad[j] += dy;
        if (j < d) token.grad[j] += dy;
        else patches.grad[i * (row - d) + j - d] += dy;
      }
    }
  });
  return y;
}

/** The first `rows` of l tokens of every picture: x [n, l, d] -> [n, rows, d]. */
export function firstTokens(tape, x, n, l, d, rows) {
  if (rows === l) return x;
  const y = tape.tensor(n * rows * d);
  for (let i = 0; i < n; i++) {
    y.value.set(x.value.subarray(i * l * d, (i * l + rows) * d), i * rows * d);
  }
  tape.undo.push(() => {
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < rows * d; j++) x.grad[i * l * d + j] += y.grad[i * rows * d + j];
    }
  });
  return y;
}

/** Mean of the embeddings of each text's tokens: lists of ids -> [n, d]. */
export function bagOfWords(tape, embedding, texts, d) {
  const y = tape.tensor(texts.length * d);
  const visit = (body) => texts.forEach((ids, i) => {
    for (const id of ids) for (let j = 0; j < d; j++) body(i * d + j, id * d + j, ids.length);
  });
  visit((to, from, count) => { y.value[to] += embedding.value[from] / count; });
  tape.undo.push(() => visit((to, from, count) => { embedding.grad[from] += y.grad[to] / count; }));
  return y;
}

/** y = x / |x| over rows of e. dx = (dy - y (y . dy)) / |x|. */
export function l2Normalize(tape, x, e) {
  const y = tape.tensor(x.size);
  const lengths = new Float64Array(x.size / e);
  for (let r = 0, o = 0; o < x.size; r++, o += e) {
    lengths[r] = Math.hypot(...x.value.subarray(o, o + e));
    for (let j = 0; j < e; j++) y.value[o + j] = x.value[o + j] / lengths[r];
  }
  tape.undo.push(() => {
    for (let r = 0, o = 0; o < x.size; r++, o += e) {
      let along = 0;
      for (let j = 0; j < e; j++) along += y.value[o + j] * y.grad[o + j];
      for (let j = 0; j < e; j++) {
        x.grad[o + j] += (y.grad[o + j] - y.value[o + j] * along) / lengths[r];
      }
    }
  });
  return y;
}
