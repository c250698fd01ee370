"use strict";
// Arrays as packing.py packs them, and sums over them. No page is needed here.

const RANGE = 1e4, LEVELS = 254; // as in packing.py

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

// {kind, shape, data} -> {shape, values}: a flat typed array, the last axis fastest.
function unpack(packed) {
  const bytes = bytesOf(packed.data), view = new DataView(bytes.buffer);
  const read = (type, get) => type.from({ length: bytes.length / type.BYTES_PER_ELEMENT },
    (_, i) => get.call(view, i * type.BYTES_PER_ELEMENT, true));
  const kinds = {
    float32: () => read(Float32Array, view.getFloat32),
    uint16: () => read(Uint16Array, view.getUint16),
    uint32: () => read(Uint32Array, view.getUint32),
    share: () => Float32Array.from(bytes, (level) => (level > LEVELS ? NaN : level / LEVELS)),
    log: () => Float32Array.from(bytes, (level) =>
      level === 0 ? 0 : packed.high * Math.pow(RANGE, (level - 1) / LEVELS - 1)),
  };
  return { shape: packed.shape, values: kinds[packed.kind]() };
}

// Row `row` of an array of shape (n, L).
function rowOf(array, row) {
  const length = array.shape[1];
  return array.values.slice(row * length, (row + 1) * length);
}

// The geometric mean over the first axis of an array of shape (n, L); 0 where one is 0.
function geometricMean(array) {
  const [rows, length] = array.shape;
  return Array.from({ length }, (_, t) => {
    let sum = 0;
    for (let row = 0; row < rows; row++) sum += Math.log(array.values[row * length + t]);
    return Math.exp(sum / rows);
  });
}

// Values above 0 as places on a logarithmic scale, 0 to 1, and the ends of that scale.
function scaleOf(values) {
  const known = values.filter((value) => value > 0 && value < Infinity);
  if (known.length === 0) return { levels: values.map(() => 0), low: 0, high: 0 };
  const low = known.reduce((a, b) => Math.min(a, b)), high = known.reduce((a, b) => Math.max(a, b));
  const width = Math.log(high / low) || 1;
  const place = (value) => (value > 0 && value < Infinity ? Math.log(value / low) / width : 0);
  return { levels: values.map(place), low, high };
}

// What the output at token t gets of token s <= t, from rows of a lower triangle, one after another.
function attentionTo(triangle, t, s) {
  return triangle[(t * (t + 1)) / 2 + s];
}

// The mean over several triangles.
function meanOf(triangles) {
  const sum = new Float64Array(triangles[0].length);
  for (const triangle of triangles) triangle.forEach((value, i) => { sum[i] += value; });
  return sum.map((value) => value / triangles.length);
}

// Who reads token s (later ones), and whom it reads (earlier ones and itself): [token, how much].
function readersOf(triangle, length, s) {
  const found = [];
  for (let t = s + 1; t < length; t++) found.push([t, attentionTo(triangle, t, s)]);
  return found;
}

function readBy(triangle, t) {
  const found = [];
  for (let s = 0; s <= t; s++) found.push([s, attentionTo(triangle, t, s)]);
  return found;
}

// The `count` largest of [token, how much], largest first; nothing that is 0.
function largest(pairs, count) {
  const some = pairs.filter(([, value]) => value > 0);
  return some.sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, count);
}

// The share left of token t in one layer, for each lag: of an array of shape (n, L, K).
function curveOf(decay, row, t) {
  const [, length, lags] = decay.shape;
  const start = (row * length + t) * lags;
  return Array.from(decay.values.slice(start, start + lags));
}

// Mean over curves, lag by lag; NaN where the text has ended.
function meanCurve(curves) {
  return curves[0].map((_, k) => curves.reduce((sum, curve) => sum + curve[k], 0) / curves.length);
}

// What a curve says, in words.
function lifeOf(curve, lags) {
  const last = curve.filter((share) => !Number.isNaN(share)).length - 1;
  if (last < 1) return "It is the last token: nothing comes after it.";
  const gone = curve.findIndex((share) => share <= 0.5);
  const tokens = (count) => (count === 1 ? "1 token" : `${count} tokens`);
  if (gone < 0) return `After ${tokens(lags[last])}, ${percent(curve[last])} is still there.`;
  const left = last > gone ? `, and ${percent(curve[last])} after ${lags[last]}` : "";
  return `${percent(curve[gone])} is left after ${tokens(lags[gone])}${left}.`;
}

function percent(share) {
  if (Number.isNaN(share)) return "–";
  return `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)} %`;
}

function short(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  return value >= 1e5 || value < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}
