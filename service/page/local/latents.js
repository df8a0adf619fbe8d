// Latents as `service/domain/latents.py` makes them, bit for bit: numpy's Philox and its normal numbers in float32.

const MASK = (1n << 64n) - 1n;
const [MULTIPLIER_0, MULTIPLIER_1] = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const [WEYL_0, WEYL_1] = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];
const ROUNDS = 10;

/** The 32-bit words of Philox4x64-10 (Salmon et al., 2011) with the key (seed, index), low halves first. */
function* philox(seed, index) {
  for (let counter = 1n; ; counter++) {
    let [a, b, c, d] = [counter, 0n, 0n, 0n];
    let [key0, key1] = [BigInt(seed), BigInt(index)];
    for (let round = 0; round < ROUNDS; round++) {
      const [product0, product1] = [MULTIPLIER_0 * a, MULTIPLIER_1 * c];
      [a, b, c, d] = [(product1 >> 64n) ^ b ^ key0, product1 & MASK, (product0 >> 64n) ^ d ^ key1, product0 & MASK];
      [key0, key1] = [(key0 + WEYL_0) & MASK, (key1 + WEYL_1) & MASK];
    }
    for (const word of [a, b, c, d]) yield* [Number(word & 0xffffffffn), Number(word >> 32n)];
  }
}

// The ziggurat (Marsaglia and Tsang, 2000): 256 layers of equal area under exp(−x²/2), of which the lowest one has the
// tail beyond EDGE. Layer i reaches to x = 2²³·WIDTH[i], where the curve is at HEIGHT[i]; a position below INNER[i] is
// under the curve in all of the layer.
const LAYERS = 256;
const EDGE = 3.6541528853610088;
const AREA = 0.00492867323397465493; // of a layer
const UNIT = 2 ** 23;
const { WIDTH, HEIGHT, INNER } = layers();

function layers() {
  const curve = (x) => Math.exp((-x * x) / 2);
  const [width, height, inner] = [new Float32Array(LAYERS), new Float32Array(LAYERS), new Uint32Array(LAYERS)];
  let x = EDGE;
  [width[0], height[0], inner[0]] = [AREA / curve(x) / UNIT, 1, Math.round(((x * curve(x)) / AREA) * UNIT)];
  for (let i = LAYERS - 1; i > 0; i--) {
    [width[i], height[i]] = [x / UNIT, curve(x)];
    const above = i > 1 ? Math.sqrt(-2 * Math.log(AREA / x + curve(x))) : 0;
    inner[i] = Math.round((above / x) * UNIT);
    x = above;
  }
  return { WIDTH: width, HEIGHT: height, INNER: inner };
}

const { fround } = Math;
const EDGE_32 = fround(EDGE);
const INVERSE_EDGE_32 = fround(1 / EDGE);

/** `numpy.random.Generator(Philox).standard_normal(dtype=float32)`: every rounding to float32 is where C has it. */
function* standardNormal(words) {
  const word = () => words.next().value;
  const uniform = () => (word() >>> 8) / 2 ** 24; // exact in float32
  const exponential = () => -fround(Math.log1p(-uniform()));
  for (;;) {
    const bits = word();
    const [layer, negative, position] = [bits & 0xff, (bits >>> 8) & 1, (bits >>> 9) & 0x7fffff];
    const x = fround(position * WIDTH[layer]) * (negative ? -1 : 1);
    if (position < INNER[layer]) {
      yield x;
    } else if (layer === 0) {
      let [tail, height] = [0, 0];
      do {
        tail = fround(INVERSE_EDGE_32 * exponential());
        height = exponential();
      } while (fround(height + height) <= fround(tail * tail));
      yield fround(EDGE_32 + tail) * ((position >>> 8) & 1 ? -1 : 1);
    } else {
      const height = fround(fround(fround(HEIGHT[layer - 1] - HEIGHT[layer]) * uniform()) + HEIGHT[layer]);
      if (height < Math.exp(-0.5 * x * x)) yield x;
    }
  }
}

/** Latent number `index` of `seed`, both uint32. @returns {Float32Array} of `size` values */
export function latent(seed, index, size) {
  const numbers = standardNormal(philox(seed, index));
  return Float32Array.from({ length: size }, () => numbers.next().value);
}

const PARALLEL = 1e-4; // radians
const sumOf = (values, map) => values.reduce((sum, value, i) => sum + map(value, i), 0);

/** The great arc between two rows (Shoemake, 1985), or the straight line where no arc is unique; t in 0…1. */
function slerp(a, b, t) {
  const product = sumOf(a, (x, i) => x * b[i]);
  const norms = Math.sqrt(sumOf(a, (x) => x * x) * sumOf(b, (y) => y * y));
  const omega = norms === 0 ? 0 : Math.acos(Math.min(1, Math.max(-1, product / norms)));
  const straight = omega < PARALLEL || omega > Math.PI - PARALLEL;
  const weight = (share) => (straight ? share : Math.sin(share * omega) / Math.sin(omega));
  const [before, after] = [weight(1 - t), weight(t)];
  return a.map((x, i) => before * x + after * b[i]);
}

/** `frames` rows from the first point to the last; the last one of a loop, which repeats the first, is left out. */
export function path(points, frames, loop) {
  const stops = loop ? [...points, points[0]] : points;
  return Array.from({ length: frames - (loop ? 1 : 0) }, (_, frame) => {
    const at = frame * (stops.length - 1);
    const [segment, rest] = [Math.floor(at / (frames - 1)), at % (frames - 1)];
    return rest === 0 ? stops[segment] : slerp(stops[segment], stops[segment + 1], rest / (frames - 1));
  });
}
