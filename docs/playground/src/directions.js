// Where embeddings of e numbers are drawn in three dimensions.

/** The three directions in which rows [n, e] vary most; `before`, if any, keeps them from jumping. */
export function mainDirections(rows, e, before) {
  if (e <= 3) return Array.from({ length: 3 }, (_, d) => Float64Array.from({ length: e }, (_, j) => +(j === d)));
  const n = rows.length / e;
  const mean = new Float64Array(e);
  for (let at = 0; at < rows.length; at++) mean[at % e] += rows[at] / n;
  const found = [];
  for (let d = 0; d < 3; d++) {
    let direction = before?.[d] ?? Float64Array.from({ length: e }, (_, j) => Math.cos((d + 1) * j));
    for (let round = 0; round < (before ? 6 : 40); round++) {
      const next = new Float64Array(e); // covariance times direction
      for (let i = 0; i < n; i++) {
        let along = 0;
        for (let j = 0; j < e; j++) along += (rows[i * e + j] - mean[j]) * direction[j];
        for (let j = 0; j < e; j++) next[j] += along * (rows[i * e + j] - mean[j]);
      }
      for (const other of found) {
        const along = next.reduce((sum, x, j) => sum + x * other[j], 0);
        other.forEach((x, j) => { next[j] -= along * x; });
      }
      const length = Math.hypot(...next) || 1;
      direction = next.map((x) => x / length);
    }
    found.push(direction);
  }
  return found;
}

/** Rows [n, e] along three directions: [n, 3]. */
export function project(rows, e, directions) {
  return Float32Array.from({ length: (rows.length / e) * 3 }, (_, at) => {
    const direction = directions[at % 3];
    let along = 0;
    for (let j = 0; j < e; j++) along += rows[Math.floor(at / 3) * e + j] * direction[j];
    return along;
  });
}
