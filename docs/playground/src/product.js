// The matrix product, C += A B, in WebAssembly with 128-bit vectors. The module's bytes are made
// here, so there is nothing to compile and nothing hidden: `emitModule` is the whole assembler.

// Opcodes of https://webassembly.github.io/spec/core/binary/instructions.html
const I32 = 0x7f;
const V128 = 0x7b;
const get = (local) => [0x20, local];
const set = (local) => [0x21, local];
const constant = (value) => [0x41, ...signed(value)];
const ADD = 0x6a;
const SUB = 0x6b;
const MUL = 0x6c;
const LESS_OR_EQUAL = 0x4c; // signed
const access = (opcode, offset) => [0xfd, ...unsigned(opcode), 2, ...unsigned(offset)];
const LOAD = 0x00; // four floats
const SPLAT = 0x09; // one float, four times
const STORE = 0x0b;
const F32X4_ADD = [0xfd, ...unsigned(0xe4)];
const F32X4_MUL = [0xfd, ...unsigned(0xe6)];
const END = 0x0b;

function unsigned(value) {
  const bytes = [];
  do {
    bytes.push((value & 127) | (value > 127 ? 128 : 0));
    value >>>= 7;
  } while (value);
  return bytes;
}

function signed(value) {
  const bytes = [];
  for (;;) {
    const byte = value & 127;
    value >>= 7;
    if ((value === 0 && !(byte & 64)) || (value === -1 && byte & 64)) return [...bytes, byte];
    bytes.push(byte | 128);
  }
}

const vector = (items) => [...unsigned(items.length), ...items.flat()];
const section = (id, bytes) => [id, ...unsigned(bytes.length), ...bytes];

// The parameters: addresses and strides in bytes. A[i, p] lies at a + i ra + p ca, so A may be
// transposed; rows of B and C have stride rb and rc.
const NAMES = ["a", "ra", "ca", "b", "rb", "c", "rc", "m", "k", "n"];
const [A, RA, CA, B, RB, C, RC, M, K, N] = NAMES.keys();
const [I, J, P, ROW, COLUMN, TARGET] = [10, 11, 12, 13, 14, 15]; // whole numbers beside them
const ACCUMULATORS = 16; // eight vectors, then two of B and one of A
const [B0, B1, A0] = [24, 25, 26];

const increase = (local, by) => [...get(local), ...by, ADD, ...set(local)];
/** `body` as long as local + step <= limit; it must increase `local`. */
const loop = (local, step, limit, body) => [
  0x02, 0x40, 0x03, 0x40, // block, loop
  ...get(local), ...constant(step), ADD, ...get(limit), LESS_OR_EQUAL, 0x45, 0x0d, 1, // else leave
  ...body, 0x0c, 0, END, END,
];

/** One block of C, `rows` by 4 `columns`, kept in registers while p runs over k. */
function block(rows, columns) {
  const accumulator = (r, c) => ACCUMULATORS + 2 * r + c;
  const each = (make) => {
    const code = [];
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) code.push(...make(r, c));
    return code;
  };
  const rowAddress = (base, stride, r) => {
    const code = [...get(base)];
    for (let s = 0; s < r; s++) code.push(...get(stride), ADD);
    return code;
  };
  const step = [];
  for (let c = 0; c < columns; c++) {
    step.push(...get(COLUMN), ...access(LOAD, 16 * c), ...set(c ? B1 : B0));
  }
  for (let r = 0; r < rows; r++) {
    step.push(...rowAddress(ROW, RA, r), ...access(SPLAT, 0), ...set(A0));
    for (let c = 0; c < columns; c++) {
      step.push(...get(accumulator(r, c)), ...get(A0), ...get(c ? B1 : B0));
      step.push(...F32X4_MUL, ...F32X4_ADD, ...set(accumulator(r, c)));
    }
  }
  return [
    // addresses of A[i, 0], B[0, j], C[i, j]
    ...get(A), ...get(I), ...get(RA), MUL, ADD, ...set(ROW),
    ...get(B), ...get(J), ...constant(4), MUL, ADD, ...set(COLUMN),
    ...get(C), ...get(I), ...get(RC), MUL, ADD, ...get(J), ...constant(4), MUL, ADD, ...set(TARGET),
    ...each((r, c) => [
      ...rowAddress(TARGET, RC, r), ...access(LOAD, 16 * c), ...set(accumulator(r, c)),
    ]),
    ...constant(0), ...set(P),
    ...loop(P, 1, K, [
      ...step, ...increase(ROW, get(CA)), ...increase(COLUMN, get(RB)), ...increase(P, constant(1)),
    ]),
    ...each((r, c) => [
      ...rowAddress(TARGET, RC, r), ...get(accumulator(r, c)), ...access(STORE, 16 * c),
    ]),
  ];
}

/** All of C for `rows` rows at a time: eight columns, and four where n leaves them. */
function stripes(rows) {
  const across = (columns) =>
    loop(J, 4 * columns, N, [...block(rows, columns), ...increase(J, constant(4 * columns))]);
  return loop(I, rows, M, [
    ...constant(0), ...set(J), ...across(2), ...across(1), ...increase(I, constant(rows)),
  ]);
}

/** The bytes of a module with one function, `product`, over a memory that it imports. */
export function emitModule() {
  const locals = vector([[6, I32], [11, V128]]); // I to TARGET; accumulators, B and A
  const code = [...locals, ...stripes(4), ...stripes(1), END];
  const text = (word) => vector([...word].map((letter) => [letter.charCodeAt(0)]));
  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, vector([[0x60, ...vector(NAMES.map(() => [I32])), 0]])),
    ...section(2, vector([[...text("env"), ...text("memory"), 2, 0, 1]])),
    ...section(3, vector([[0]])),
    ...section(7, vector([[...text("product"), 0, 0]])),
    ...section(10, vector([[...unsigned(code.length), ...code]])),
  ]);
}

/** C += A B in plain JavaScript, for a machine without vectors and for n that four do not divide. */
export function plainProduct(floats, a, ra, ca, b, rb, c, rc, m, k, n) {
  for (let i = 0; i < m; i++) {
    for (let p = 0; p < k; p++) {
      const x = floats[a + i * ra + p * ca];
      for (let j = 0; j < n; j++) floats[c + i * rc + j] += x * floats[b + p * rb + j];
    }
  }
}

const PAGE = 65536; // bytes of a page of WebAssembly's memory

/** {floats, product, kind}: memory of `size` floats and the product over places in it. */
export function makeMemory(size, { plain = false } = {}) {
  const withoutVectors = (floats) => ({
    floats,
    product: (...places) => plainProduct(floats, ...places),
    kind: "plain JavaScript",
  });
  if (plain) return withoutVectors(new Float32Array(size));
  let product, pages;
  try {
    pages = new WebAssembly.Memory({ initial: Math.ceil((4 * size) / PAGE) });
    const module = new WebAssembly.Module(emitModule());
    product = new WebAssembly.Instance(module, { env: { memory: pages } }).exports.product;
  } catch {
    return withoutVectors(new Float32Array(size)); // no WebAssembly here, or none with vectors
  }
  const floats = new Float32Array(pages.buffer);
  return {
    floats,
    kind: "WebAssembly SIMD",
    product(a, ra, ca, b, rb, c, rc, m, k, n) {
      if (n % 4) plainProduct(floats, a, ra, ca, b, rb, c, rc, m, k, n);
      else product(4 * a, 4 * ra, 4 * ca, 4 * b, 4 * rb, 4 * c, 4 * rc, m, k, n);
    },
  };
}
