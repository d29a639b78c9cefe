// The losses of a batch of n pairs, with their gradients. All start from the scaled cosines,
// logits [n, n] = I_e T_e^T e^t (Figure 3 of the paper); they differ in what a row is held against.

/** {logits - log of the sum over a line, as softmax}: lines of n numbers, `stride` apart. */
function logSoftmax(logits, n, start, stride, put) {
  let most = -Infinity, sum = 0;
  for (let j = 0; j < n; j++) most = Math.max(most, logits[start + j * stride]);
  for (let j = 0; j < n; j++) sum += Math.exp(logits[start + j * stride] - most);
  const log = most + Math.log(sum);
  for (let j = 0; j < n; j++) put(start + j * stride, logits[start + j * stride] - log);
}

/** Mean over rows (or columns) of -log softmax at the diagonal; adds weight (softmax - 1) / n. */
function crossEntropy(logits, n, weight, slope, [line, stride]) {
  let loss = 0;
  for (let i = 0; i < n; i++) {
    logSoftmax(logits, n, i * line, stride, (at, log) => {
      const right = at === i * n + i;
      if (right) loss -= (weight * log) / n;
      slope[at] += (weight * (Math.exp(log) - right)) / n;
    });
  }
  return loss;
}

const rows = (n) => [n, 1];
const columns = (n) => [1, n];

/** From logits [n, n]: the loss; its gradient is added to `slope` [n, n]. */
export const LOSSES = {
  /** CLIP's: each picture picks its text, each text its picture; the mean of both. */
  softmax: (logits, n, slope) =>
    crossEntropy(logits, n, 0.5, slope, rows(n)) + crossEntropy(logits, n, 0.5, slope, columns(n)),

  /** Pictures pick texts, texts pick nothing. */
  oneSided: (logits, n, slope) => crossEntropy(logits, n, 1, slope, rows(n)),

  /** SigLIP's: every pair is a question of its own. -log sigmoid(z), z = +-logit. */
  sigmoid(logits, n, slope) {
    let loss = 0;
    for (let at = 0; at < n * n; at++) {
      const label = at % (n + 1) ? -1 : 1;
      const z = label * logits[at];
      loss += (Math.max(-z, 0) + Math.log1p(Math.exp(-Math.abs(z)))) / n;
      slope[at] -= label / (1 + Math.exp(z)) / n;
    }
    return loss;
  },
};

/**
 * The loss of embeddings [n, e] with the log temperature t and, for the sigmoid, a bias b.
 * logits = e^t c + b, so dc = e^t slope, dt = sum of slope e^t c, db = sum of slope.
 */
export function contrastive(tape, kind, images, texts, n, e, logitScale, logitBias) {
  const scale = Math.exp(logitScale.value[0]);
  const bias = logitBias ? logitBias.value[0] : 0;
  const logits = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let t = 0; t < n; t++) {
      let cosine = 0;
      for (let j = 0; j < e; j++) cosine += images.value[i * e + j] * texts.value[t * e + j];
      logits[i * n + t] = scale * cosine + bias;
    }
  }
  const slope = new Float64Array(n * n);
  const loss = LOSSES[kind](logits, n, slope);
  tape.undo.push(() => {
    for (let at = 0; at < n * n; at++) {
      logitScale.grad[0] += slope[at] * (logits[at] - bias);
      if (logitBias) logitBias.grad[0] += slope[at];
      const [i, t] = [Math.floor(at / n) * e, (at % n) * e];
      for (let j = 0; j < e; j++) {
        images.grad[i + j] += scale * slope[at] * texts.value[t + j];
        texts.grad[t + j] += scale * slope[at] * images.value[i + j];
      }
    }
  });
  return { loss, logits };
}
