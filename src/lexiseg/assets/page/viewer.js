// A picture with a result drawn on it, and its legend.

import { colour, paint } from "./masks.js";

const [LEAST, MOST] = [1100, 1600]; // pixels of the longer side of what is drawn
const LETTERS = 12.5; // height of names, in pixels of the window
const ORDERS = { area: (a, b) => b.area - a.area, score: (a, b) => b.score - a.score, name: (a, b) => a.name.localeCompare(b.name) };

export class Viewer {
  // `onPoint` is called with the pointer's position as fractions of width and height, or null.
  constructor(title, result, bitmap, look, onPoint) {
    Object.assign(this, { result, bitmap, look, onPoint, hidden: new Set(), hovered: null, selected: null, order: "area" });
    this.size = [result.height, result.width];
    const longest = Math.max(...this.size), scale = Math.min(MOST, Math.max(LEAST, longest)) / longest;
    this.grid = { width: Math.max(1, Math.round(result.width * scale)), height: Math.max(1, Math.round(result.height * scale)) };
    this.colours = shades(result.segments);
    this.element = this.#build(title);
    this.refresh();
  }

  #build(title) {
    const pane = create("article", "pane", { "aria-label": title });
    const seconds = Object.values(this.result.seconds ?? {}).reduce((sum, value) => sum + value, 0);
    const head = create("header", "pane-head");
    head.append(create("h3", "", {}, title), create("span", "help", {}, summary(this.result, seconds)));
    this.canvas = create("canvas", "canvas", {
      width: this.grid.width, height: this.grid.height, tabindex: "0", role: "img",
      "aria-label": `${summary(this.result, seconds)}. Arrow keys go through the segments, Escape ends the selection.`,
    });
    this.tip = create("div", "tip", { hidden: "", "aria-hidden": "true" });
    const frame = create("div", "frame");
    frame.append(this.canvas, this.tip);
    this.legend = create("div", "legend");
    pane.append(head, frame, this.legend);
    this.#listen();
    this.#drawLegend();
    new ResizeObserver(() => this.#draw()).observe(this.canvas);
    return pane;
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      this.onPoint([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
    });
    canvas.addEventListener("pointerleave", () => this.onPoint(null));
    canvas.addEventListener("click", () => this.select(this.hovered === this.selected ? null : this.hovered));
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        event.preventDefault();
        const order = this.ordered().filter((number) => !this.hidden.has(number));
        if (order.length) this.select(order.at((order.indexOf(this.selected) + step + (this.selected === null && step < 0 ? 1 : 0)) % order.length));
      } else if (event.key === "Escape") this.select(null);
    });
  }

  // Shows the name at a position, as fractions of width and height; null hides it.
  point(position) {
    const number = position === null ? null : this.at(position);
    if (position !== null && number !== null) {
      const segment = this.result.segments[number];
      this.tip.textContent = `${segment.name}  ${percent(segment.score)}`;
      this.tip.style.setProperty("--tip", css(this.colours[number]));
      this.tip.style.left = `${position[0] * 100}%`;
      this.tip.style.top = `${position[1] * 100}%`;
      this.tip.classList.toggle("left", position[0] > 0.6);
    }
    this.tip.hidden = number === null;
    if (number !== this.hovered) {
      this.hovered = number;
      this.canvas.classList.toggle("over", number !== null);
      this.#draw();
      this.#mark();
    }
  }

  at([x, y]) {
    const column = Math.floor(x * this.grid.width), row = Math.floor(y * this.grid.height);
    if (column < 0 || row < 0 || column >= this.grid.width || row >= this.grid.height) return null;
    const value = this.map[row * this.grid.width + column];
    return value ? value - 1 : null;
  }

  select(number) {
    this.selected = number;
    this.#draw();
    this.#mark();
    if (number !== null) {
      const segment = this.result.segments[number];
      this.legend.querySelector(`[data-number="${number}"]`)?.scrollIntoView({ block: "nearest" });
      this.canvas.setAttribute("aria-label", `${segment.name}, score ${percent(segment.score)}, ${share(segment, this.size)} of the picture`);
    }
  }

  refresh() {
    this.map = paint(this.result.segments, this.size, this.grid, (number) => !this.hidden.has(number));
    this.#draw();
  }

  redraw(look) {
    this.look = look;
    this.#draw();
  }

  ordered() {
    const { segments } = this.result;
    return segments.map((_, number) => number).sort((a, b) => ORDERS[this.order](segments[a], segments[b]));
  }

  #draw() {
    const { width, height } = this.grid, context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (this.bitmap) context.drawImage(this.bitmap, 0, 0, width, height);
    const layer = (this.layer ??= new ImageData(width, height)), pixels = new Uint32Array(layer.data.buffer), { map } = this;
    const focus = this.selected ?? this.hovered, alpha = Math.round(this.look.opacity * 255);
    const fills = this.colours.map(([r, g, b], number) =>
      ((focus === null || number === focus ? Math.min(255, alpha + (number === focus ? 45 : 0)) : alpha * 0.35) << 24) | (b << 16) | (g << 8) | r);
    const edges = this.colours.map(([r, g, b], number) =>
      ((focus === null || number === focus ? 255 : 110) << 24) | ((number === focus ? 0xffffff : (b << 16) | (g << 8) | r)));
    const outlined = this.look.outlines;
    for (let row = 0, position = 0; row < height; row++) {
      for (let column = 0; column < width; column++, position++) {
        const value = map[position];
        if (!value) pixels[position] = 0;
        else {
          const edge = outlined && ((column + 1 < width && map[position + 1] !== value) || (row + 1 < height && map[position + width] !== value)
            || (column > 0 && map[position - 1] !== value) || (row > 0 && map[position - width] !== value));
          pixels[position] = edge ? edges[value - 1] : fills[value - 1];
        }
      }
    }
    const above = (this.above ??= new OffscreenCanvas(width, height));
    above.getContext("2d").putImageData(layer, 0, 0);
    context.drawImage(above, 0, 0);
    if (this.look.names) this.#letter(context);
  }

  // Names at the middle of the widest run of each segment, where there is room.
  #letter(context) {
    const { width, height } = this.grid, size = (LETTERS * width) / (this.canvas.clientWidth || width);
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    const taken = [];
    const spots = (this.spots?.map === this.map ? this.spots : (this.spots = Object.assign(widest(this.map, width, height), { map: this.map })));
    for (const number of this.ordered()) {
      const spot = spots.get(number);
      if (!spot || (this.selected !== null && number !== this.selected)) continue;
      const { name } = this.result.segments[number], half = context.measureText(name).width / 2 + size * 0.4;
      const x = Math.min(width - half, Math.max(half, spot.x)), y = Math.min(height - size, Math.max(size, spot.y));
      const box = [x - half, y - size * 0.75, x + half, y + size * 0.75];
      if (2 * half > width || taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
      taken.push(box);
      context.fillStyle = "rgba(15, 20, 32, 0.78)";
      context.beginPath();
      context.roundRect(box[0], box[1], box[2] - box[0], box[3] - box[1], size * 0.45);
      context.fill();
      context.fillStyle = "white";
      context.fillText(name, x, y + size * 0.05);
    }
  }

  #drawLegend() {
    const { segments } = this.result;
    if (!segments.length) {
      this.legend.replaceChildren(create("p", "none", {}, "Nothing of these names is in the picture. Lower the threshold, or name more of what is there."));
      return;
    }
    const bar = create("div", "legend-head");
    const all = (this.all = create("button", "link", { type: "button" }, this.hidden.size ? "Show all" : "Hide all"));
    all.addEventListener("click", () => {
      this.hidden = this.hidden.size ? new Set() : new Set(segments.keys());
      this.#drawLegend();
      this.refresh();
    });
    const sort = create("select", "", { "aria-label": "Order of the legend" });
    for (const order of Object.keys(ORDERS)) sort.append(new Option(`by ${order}`, order, false, order === this.order));
    sort.addEventListener("change", () => {
      this.order = sort.value;
      this.#drawLegend();
    });
    bar.append(create("span", "", {}, counted(segments.length, "segment")), all, sort);
    const list = create("ul", "rows");
    list.append(...this.ordered().map((number) => this.#row(number)));
    this.legend.replaceChildren(bar, list);
    this.#mark();
  }

  #row(number) {
    const segment = this.result.segments[number], row = create("li", "row-segment", { "data-number": number });
    const seen = create("input", "", { type: "checkbox", "aria-label": `Show ${segment.name}` });
    seen.checked = !this.hidden.has(number);
    seen.addEventListener("change", () => {
      this.hidden[seen.checked ? "delete" : "add"](number);
      this.all.textContent = this.hidden.size ? "Show all" : "Hide all";
      this.refresh();
    });
    const pick = create("button", "pick", { type: "button", "aria-pressed": "false" });
    const swatch = create("span", "swatch");
    swatch.style.background = css(this.colours[number]);
    const meter = create("span", "meter");
    meter.style.setProperty("--score", segment.score);
    const name = create("span", "segment-name", {}, segment.name);
    name.append(create("small", "", {}, segment.thing ? "thing" : "stuff"));
    pick.append(swatch, name, meter, create("span", "number", { title: "score" }, percent(segment.score)), create("span", "number", { title: "area" }, share(segment, this.size)));
    pick.addEventListener("click", () => this.select(this.selected === number ? null : number));
    const hover = (value) => () => {
      this.hovered = value;
      this.#draw();
    };
    row.addEventListener("pointerenter", hover(number));
    row.addEventListener("pointerleave", hover(null));
    row.append(seen, pick);
    return row;
  }

  #mark() {
    for (const row of this.legend.querySelectorAll("[data-number]")) {
      const number = Number(row.dataset.number);
      row.classList.toggle("hovered", number === this.hovered);
      row.querySelector(".pick").setAttribute("aria-pressed", String(number === this.selected));
    }
  }
}

function shades(segments) {
  const counts = new Map();
  return segments.map(({ label }) => {
    const shade = counts.get(label) ?? 0;
    counts.set(label, shade + 1);
    return colour(label, shade);
  });
}

// Of each segment the middle of a run within a row: a long one, near the middle of its height.
function widest(map, width, height) {
  const spots = new Map(), middles = new Map();
  for (let position = 0; position < map.length; position += 3) {
    const sums = middles.get(map[position] - 1) ?? middles.set(map[position] - 1, { rows: 0, count: 0 }).get(map[position] - 1);
    sums.rows += Math.floor(position / width);
    sums.count++;
  }
  for (let row = 0; row < height; row += 2) {
    for (let column = 0; column < width; ) {
      const value = map[row * width + column];
      let end = column + 1;
      while (end < width && map[row * width + end] === value) end++;
      const known = spots.get(value - 1), sums = middles.get(value - 1);
      const worth = end - column - (sums ? Math.abs(row - sums.rows / sums.count) : 0);
      if (value && (!known || worth > known.worth)) spots.set(value - 1, { x: (column + end) / 2, y: row, worth });
      column = end;
    }
  }
  return spots;
}

export function create(tag, kind = "", attributes = {}, text = "") {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

export const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;
const percent = (value) => `${Math.round(value * 100)} %`;
const share = ({ area }, [height, width]) => `${((100 * area) / (height * width)).toFixed(1)} %`;
const summary = (result, seconds) => `${counted(result.segments.length, "segment")}, ${result.task}, ${seconds.toFixed(1)} s`;
