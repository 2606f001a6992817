// Masks as COCO's compressed run lengths: column by column, the first run of zeros.

export function runs(text) {
  const counts = [];
  for (let position = 0; position < text.length; ) {
    let value = 0, shift = 0, digit;
    do {
      digit = text.charCodeAt(position++) - 48;
      value += (digit & 31) * 2 ** shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16) value -= 2 ** shift;
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

// Segment number + 1 of each pixel of a grid of width × height cells, 0 for none. The first segment is on top.
export function paint(segments, size, grid, isVisible) {
  const [height, width] = size;
  const map = new Uint16Array(grid.width * grid.height);
  const rows = starts(height, grid.height);
  const columns = starts(width, grid.width);
  for (let number = segments.length - 1; number >= 0; number--) {
    if (!isVisible(number)) continue;
    let position = 0, inside = false;
    for (const length of (segments[number].runs ??= runs(segments[number].segmentation.counts))) {
      if (inside) fill(map, position, position + length, height, rows, columns, grid, number + 1);
      position += length;
      inside = !inside;
    }
  }
  return map;
}

// For each pixel along a side: the first cell whose centre is at it or behind it.
function starts(pixels, cells) {
  const first = new Int32Array(pixels + 1).fill(cells);
  for (let cell = cells - 1; cell >= 0; cell--) first[centre(cell, pixels, cells)] = cell;
  for (let pixel = pixels - 1; pixel >= 0; pixel--) first[pixel] = Math.min(first[pixel], first[pixel + 1]);
  return first;
}

const centre = (cell, pixels, cells) => Math.min(pixels - 1, Math.floor(((cell + 0.5) * pixels) / cells));

function fill(map, from, to, height, rows, columns, grid, value) {
  while (from < to) {
    const x = Math.floor(from / height);
    const end = Math.min(to, (x + 1) * height);
    const first = columns[x], last = columns[x + 1];
    if (first < last) {
      const top = rows[from - x * height], bottom = rows[end - x * height];
      for (let row = top; row < bottom; row++) map.fill(value, row * grid.width + first, row * grid.width + last);
    }
    from = end;
  }
}

// Colour of a class, as in the overlays that lexiseg draws; `shade` tells instances of a class apart.
export function colour(label, shade = 0) {
  const hue = (0.58 + label * 0.61803398875) % 1;
  const value = [1, 0.82, 0.92, 0.74][(Math.floor(label / 7) + shade) % 4];
  const saturation = [0.72, 0.55, 0.85][(Math.floor(label / 3) + shade) % 3];
  return [5, 3, 1].map((offset) => {
    const k = (offset + hue * 6) % 6;
    return Math.round(255 * (value - value * saturation * Math.max(0, Math.min(k, 4 - k, 1))));
  });
}
