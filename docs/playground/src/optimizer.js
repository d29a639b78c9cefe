// The paper's optimiser (section 2.5): AdamW, decay on matrices only, cosine with warm-up.

const MAX_LOGIT_SCALE = Math.log(100);
const NEVER_DECAYED = /(^|\.)(bias|in_proj_bias|scale|class_embedding|logit_scale|logit_bias)$/;

/** Linear from zero over `warmup` steps, then a cosine down to zero at `steps`. */
export function rateAt(step, { rate, warmup, steps }) {
  if (step < warmup) return (rate * step) / warmup;
  const along = Math.min((step - warmup) / (steps - warmup), 1);
  return (rate * (1 + Math.cos(Math.PI * along))) / 2;
}

export class AdamW {
  constructor(weights, config) {
    this.weights = weights;
    this.config = config;
    this.count = 0;
    this.moments = {};
    for (const [name, { size }] of Object.entries(weights)) {
      this.moments[name] = [new Float32Array(size), new Float32Array(size)];
    }
  }

  /** Change the weights by their gradients, and set these to zero. */
  update() {
    const { decay, beta1 = 0.9, beta2 = 0.98, adamEpsilon = 1e-6, temperature } = this.config;
    const rate = rateAt(this.count, this.config);
    this.count += 1;
    const [first, second] = [1 - beta1 ** this.count, 1 - beta2 ** this.count];
    for (const [name, { value, grad }] of Object.entries(this.weights)) {
      const [mean, square] = this.moments[name];
      const pull = NEVER_DECAYED.test(name) ? 0 : decay;
      const fixed = name === "logit_scale" && temperature === "fixed";
      for (let j = 0; !fixed && j < value.length; j++) {
        mean[j] = beta1 * mean[j] + (1 - beta1) * grad[j];
        square[j] = beta2 * square[j] + (1 - beta2) * grad[j] * grad[j];
        const step = mean[j] / first / (Math.sqrt(square[j] / second) + adamEpsilon);
        value[j] -= rate * (step + pull * value[j]);
      }
      grad.fill(0);
    }
    const scale = this.weights.logit_scale.value;
    scale[0] = Math.min(scale[0], MAX_LOGIT_SCALE);
  }
}
