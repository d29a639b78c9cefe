// node generator.mjs SEED: numbers of every kind from the page's generator, as JSON.

import { Random } from "../../docs/playground/src/random.js";

const random = new Random(Number(process.argv[2]));
const four = (make) => Array.from({ length: 4 }, make);
const numbers = [
  four(() => random.next()),
  four(() => random.normal()),
  random.permutation(9),
  four(() => random.whole(10)),
];
process.stdout.write(JSON.stringify(numbers));
