// Standard input: [{op, tensors: {name: numbers}, sizes, upstream}]. Prints, for each, the result and
// the gradients of sum(result * upstream), or of the loss itself.

import { readFileSync } from "node:fs";

import { contrastive } from "../../docs/playground/src/losses.js";
import * as ops from "../../docs/playground/src/ops.js";
import { makeMemory } from "../../docs/playground/src/product.js";

const OPS = {
  linear: (tape, t, s) => ops.linear(tape, t.x, t.kernel, t.bias, s.inputs, s.outputs),
  withoutBias: (tape, t, s) => ops.linear(tape, t.x, t.kernel, null, s.inputs, s.outputs),
  add: (tape, t) => ops.add(tape, t.x, t.z),
  layerNorm: (tape, t, s) => ops.layerNorm(tape, t.x, t.scale, t.bias, s.epsilon),
  quickGelu: (tape, t) => ops.quickGelu(tape, t.x),
  attention: (tape, t, s) => ops.attention(tape, t.qkv, s.n, s.l, s.d, s.heads, s.queries).mixed,
  withClassToken: (tape, t, s) => ops.withClassToken(tape, t.patches, t.token, t.positions, s.n),
  firstTokens: (tape, t, s) => ops.firstTokens(tape, t.x, s.n, s.l, s.d, s.rows),
  bagOfWords: (tape, t, s) => ops.bagOfWords(tape, t.embedding, s.texts, s.d),
  l2Normalize: (tape, t, s) => ops.l2Normalize(tape, t.x, s.e),
};

function gradients({ op, tensors, sizes, upstream }) {
  const tape = new ops.Tape(makeMemory(1 << 16, { plain: sizes.plain }));
  const made = {};
  for (const [name, numbers] of Object.entries(tensors)) {
    made[name] = tape.tensor(numbers.length);
    made[name].value.set(numbers);
  }
  let value;
  if (OPS[op]) {
    const result = OPS[op](tape, made, sizes);
    result.grad.set(upstream);
    value = [...result.value];
  } else {
    const { images, texts, scale, bias } = made;
    value = [contrastive(tape, op, images, texts, sizes.n, sizes.e, scale, bias).loss];
  }
  tape.backward();
  const grads = Object.entries(made).map(([name, tensor]) => [name, [...tensor.grad]]);
  return { value, grads: Object.fromEntries(grads) };
}

process.stdout.write(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(gradients)));
