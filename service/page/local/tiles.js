// Cuts images of any size into tiles and puts the results together, as `service/domain/tiles.py`, which explains it.

const BLEND = 16; // pixels in which the weights of two tiles change places
const AT_A_TIME = 6; // tiles: more than there are runners, so that none waits

function measured(side, tile, { overlap, multiple, margin }) {
  const length = Math.max(tile, Math.ceil((side + 2 * margin) / multiple) * multiple);
  const blend = Math.max(0, Math.min(BLEND, Math.floor((tile - 2 * overlap) / 2)));
  const stride = Math.floor((tile - 2 * overlap - blend) / multiple) * multiple;
  const pixels = length === tile ? tile : stride > 0 ? tile * (1 + Math.ceil((length - tile) / stride)) : Infinity;
  return { tile, length, blend, stride, pixels };
}

/** That of these sides, ascending, with which tiles have the fewest pixels; the largest of several. */
function sideOfTiles(side, sides, tiles) {
  const all = sides.map((each) => measured(side, each, tiles));
  return all.reduce((best, each) => (each.pixels <= best.pixels ? each : best)).tile;
}

/** Along one side: where tiles begin, the weights of their pixels, and the pixel that is seen at each place. */
function axis(side, tile, tiles) {
  const { overlap, margin } = tiles;
  const { length, blend, stride } = measured(side, tile, tiles);
  const starts = [];
  for (let start = 0; start < length - tile; start += stride) starts.push(start);
  starts.push(length - tile);
  const ramp = (i) => Math.min(1, Math.max(0, (i - overlap + 1) / (blend + 1)));
  const weights = starts.map((_, k) => {
    const [isFirst, isLast] = [k === 0, k === starts.length - 1];
    return Float64Array.from({ length: tile }, (_, i) => (isFirst ? 1 : ramp(i)) * (isLast ? 1 : ramp(tile - 1 - i)));
  });
  const total = new Float64Array(length);
  starts.forEach((start, k) => weights[k].forEach((weight, i) => (total[start + i] += weight)));
  starts.forEach((start, k) => weights[k].forEach((weight, i) => (weights[k][i] = weight / total[start + i])));
  const mirrored = (i) => {
    const at = (((i - margin) % (2 * side)) + 2 * side) % (2 * side);
    return Math.min(at, 2 * side - 1 - at);
  };
  return { starts, weights, pixels: Uint32Array.from({ length }, (_, i) => mirrored(i)) };
}

/** The tiles of an image, row by row. */
export class Tiling {
  /**
   * @param {number[]} shape of the image, [channels, height, width]
   * @param {{shape: number[], tiles: object}} card
   */
  constructor([channels, height, width], { shape: [, ...largest], tiles }) {
    const best = (side, k) => sideOfTiles(side, [...tiles.smaller, largest[k]], tiles);
    const [tileHeight, tileWidth] = [height, width].map(best);
    Object.assign(this, { channels, height, width, margin: tiles.margin, shape: [channels, tileHeight, tileWidth] });
    [this.down, this.right] = [axis(height, tileHeight, tiles), axis(width, tileWidth, tiles)];
    this.count = this.down.starts.length * this.right.starts.length;
  }

  /** f of an image, C×H×W, by `apply` of several tiles at a time; `onTile` is called after each. */
  async map(image, apply, onTile) {
    const made = new Float32Array(image.length);
    const waiting = [];
    // In the order of the tiles: another one would round differently.
    const paste = async () => {
      const { tile, row, column } = waiting.shift();
      this.#paste(await tile, row, column, made);
      onTile();
    };
    for (let row = 0; row < this.down.starts.length; row++) {
      for (let column = 0; column < this.right.starts.length; column++) {
        if (waiting.length === AT_A_TIME) await paste();
        const tile = apply(this.#cut(image, row, column));
        tile.catch(() => {}); // it is awaited later
        waiting.push({ tile, row, column });
      }
    }
    while (waiting.length > 0) await paste();
    return made;
  }

  #cut(image, row, column) {
    const tile = new Float32Array(this.shape.reduce((product, side) => product * side));
    const [top, left] = [this.down.starts[row], this.right.starts[column]];
    this.#forLines((channel, y, at) => {
      const line = (channel * this.height + this.down.pixels[top + y]) * this.width;
      for (let x = 0; x < this.shape[2]; x++) tile[at + x] = image[line + this.right.pixels[left + x]];
    });
    return tile;
  }

  /** Add a tile to the image; what is mirrored is left out. */
  #paste(tile, row, column, made) {
    const [top, left] = [this.down.starts[row] - this.margin, this.right.starts[column] - this.margin];
    const [down, right] = [this.down.weights[row], this.right.weights[column]];
    const [first, width] = [Math.max(0, -left), Math.min(this.shape[2], this.width - left)];
    this.#forLines((channel, y, at) => {
      if (top + y < 0 || top + y >= this.height) return;
      const line = (channel * this.height + top + y) * this.width + left;
      for (let x = first; x < width; x++) made[line + x] += tile[at + x] * down[y] * right[x];
    });
  }

  /** Call with each channel and line of a tile, and the place of its first pixel. */
  #forLines(callback) {
    const [channels, height, width] = this.shape;
    for (let i = 0; i < channels * height; i++) callback(Math.floor(i / height), i % height, i * width);
  }
}
