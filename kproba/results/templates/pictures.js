// Draws the pictures of the report in three views; see pictures.html.jinja.
(() => {
"use strict";
const NONE = 255;  // a pixel without a class
const FILL = 0.35;  // opacity of a region on a photo
const LEAST = 256;  // pixels of the longer side of a canvas
const LARGE = 768;  // the same in the dialog
const KINDS = ["right", "missed", "invented", "confused"];
const images = new WeakMap(), masks = new WeakMap();

// Colours of classes and of errors of a block of pictures.
function readBlock(block) {
  const given = JSON.parse(block.dataset.px), style = getComputedStyle(block);
  const hex = kind => style.getPropertyValue("--px-" + kind).trim();
  const rgb = text => [1, 3, 5].map(at => parseInt(text.slice(at, at + 2), 16));
  const table = new Map(given.classes.map(([r, g, b], index) => [r << 16 | g << 8 | b, index]));
  for (const [r, g, b] of given.none) table.set(r << 16 | g << 8 | b, NONE);
  return {
    colours: given.classes.map(entry => entry.slice(0, 3)),
    steps: given.classes.map(entry => entry[3]),
    none: given.none,
    errors: KINDS.map(kind => rgb(hex(kind))),
    table,
  };
}

// An image that is decoded, also where it is not shown.
function load(shown) {
  if (!images.has(shown)) {
    const image = new Image();
    image.src = shown.src;
    images.set(shown, image.decode().then(() => image));
  }
  return images.get(shown);
}

function pixels(image, width, height, smooth) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.imageSmoothingEnabled = smooth;
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

// The nearest colour: a browser that protects from fingerprints changes values a little.
function nearest(block, r, g, b) {
  let best = 0, least = Infinity;
  for (const [key, index] of block.table) {
    const far = (r - (key >> 16)) ** 2 + (g - (key >> 8 & 255)) ** 2 + (b - (key & 255)) ** 2;
    if (far < least) { least = far; best = index; }
  }
  return best;
}

// Class of every pixel of an embedded mask.
async function readMask(shown, block) {
  if (!masks.has(shown)) {
    const image = await load(shown);
    const width = image.naturalWidth, height = image.naturalHeight;
    const data = pixels(image, width, height, false), classes = new Uint8Array(width * height);
    for (let at = 0, from = 0; at < classes.length; at++, from += 4) {
      const [r, g, b] = [data[from], data[from + 1], data[from + 2]];
      classes[at] = block.table.get(r << 16 | g << 8 | b) ?? nearest(block, r, g, b);
    }
    masks.set(shown, {width, height, classes});
  }
  return masks.get(shown);
}

// A mask with every pixel repeated `scale` times in both directions.
function enlarge(mask, scale) {
  const width = mask.width * scale, height = mask.height * scale;
  const classes = new Uint8Array(width * height);
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor(y / scale) * mask.width;
    for (let x = 0; x < width; x++, at++) classes[at] = mask.classes[row + Math.floor(x / scale)];
  }
  return {width, height, classes};
}

// The highest (or lowest) class in a square around each pixel.
function around({width, height}, regions, distance, better) {
  const pass = (from, step, length, index) => {
    const found = new Uint8Array(from);
    for (let at = 0; at < from.length; at++) {
      const place = index(at);
      const first = Math.max(-distance, -place), last = Math.min(distance, length - 1 - place);
      for (let d = first; d <= last; d++) found[at] = better(found[at], from[at + d * step]);
    }
    return found;
  };
  const across = pass(regions, 1, width, at => at % width);
  return pass(across, width, height, at => Math.floor(at / width));
}

const striped = (at, width) => (Math.floor(at / width) + at % width) % 4 < 2;
const regionsOf = mask => mask.classes.map(index => index === NONE ? 0 : index);

function drawLabels(data, mask, block, scale) {
  const regions = regionsOf(mask), highest = around(mask, regions, scale, Math.max);
  for (let at = 0, to = 0; at < regions.length; at++, to += 4) {
    const index = mask.classes[at];
    let colour = index === NONE ? block.none[+striped(at, mask.width)] : block.colours[index];
    if (regions[at] && highest[at] > regions[at]) colour = [255, 255, 255];
    data.set(colour, to);
  }
}

// As `overlay` of kproba.data.drawing: a coloured contour between two white lines.
function drawOverlay(data, mask, block, scale) {
  const regions = regionsOf(mask);
  const highest = distance => around(mask, regions, distance, Math.max);
  const lowest = distance => around(mask, regions, distance, Math.min);
  const outer = highest(scale), lower = lowest(2 * scale), higher = highest(3 * scale);
  const lowerStill = lowest(3 * scale), higherStill = highest(4 * scale);
  for (let at = 0, to = 0; at < regions.length; at++, to += 4) {
    const index = mask.classes[at], own = regions[at];
    if (outer[at] > own) { data.set([255, 255, 255], to); continue; }
    if (!index) continue;
    const colour = index === NONE ? block.none[+striped(at, mask.width)] : block.colours[index];
    let opacity = FILL;
    if (own && (lower[at] < own || higher[at] > own)) opacity = 1;
    else if (own && (lowerStill[at] < own || higherStill[at] > own)) {
      data.set([255, 255, 255], to);
      continue;
    }
    for (let c = 0; c < 3; c++) data[to + c] += opacity * (colour[c] - data[to + c]);
  }
}

// Kind of error of every pixel; -1: background in both; -2: it does not count.
function findErrors(mask, truth, block, step) {
  return Int8Array.from(mask.classes, (found, at) => {
    const y = Math.floor(at / mask.width), x = at % mask.width;
    const row = Math.min(truth.height - 1, Math.floor(y * truth.height / mask.height));
    const column = Math.min(truth.width - 1, Math.floor(x * truth.width / mask.width));
    const real = truth.classes[row * truth.width + column];
    if (real === NONE || found === NONE || block.steps[real] > step) return -2;
    if (real === found) return real ? 0 : -1;
    return found === 0 ? 1 : real === 0 ? 2 : 3;
  });
}

function drawErrors(data, mask, truth, block, step) {
  const errors = findErrors(mask, truth, block, step);
  for (let at = 0, to = 0; at < errors.length; at++, to += 4) {
    const grey = 90 + 0.5 * (0.3 * data[to] + 0.59 * data[to + 1] + 0.11 * data[to + 2]);
    let colour = [grey, grey, grey];
    if (errors[at] === -2) colour = block.none[+striped(at, mask.width)];
    else if (errors[at] >= 0) {
      // Shades of the photo stay visible, but not enough to confuse two colours.
      colour = block.errors[errors[at]].map(value => 0.85 * value + 0.15 * grey);
    }
    data.set(colour, to);
  }
}

// Draw a picture of a row into a canvas. `parts`: the <img> of photo, truth and mask.
async function draw(canvas, parts, kind, view, block, step, size) {
  const token = canvas.token = {};  // a later call for the same canvas wins
  const truth = await readMask(parts.truth, block);
  const mask = kind === "mask" ? await readMask(parts.mask, block) : truth;
  const scale = Math.max(1, Math.round(size / Math.max(mask.width, mask.height)));
  const large = enlarge(mask, scale), {width, height} = large;
  const flat = kind !== "photo" && view === "labels";
  const data = flat ? new Uint8ClampedArray(4 * width * height).fill(255)
    : pixels(await load(parts.photo), width, height, true);
  const line = Math.max(1, Math.round(size / LEAST));
  if (flat) drawLabels(data, large, block, line);
  else if (kind === "mask" && view === "errors") drawErrors(data, large, truth, block, step);
  else if (kind !== "photo") drawOverlay(data, large, block, line);
  if (canvas.token !== token) return;
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
  canvas.dataset.view = view;
}

// Photo, truth and rows of the pictures of a grid; null where a method has none.
function readGrid(table) {
  const one = kind => table.querySelector(`[data-kind="${kind}"]`);
  const rows = [...table.tBodies[0].rows].map(row =>
    [...row.cells].filter(cell => cell.matches("td:not([rowspan])"))
      .map(cell => cell.querySelector(".px-open")));
  return {photo: one("photo"), truth: one("truth"), rows};
}

const partsOf = (grid, button) => ({
  photo: grid.photo.querySelector("img"),
  truth: grid.truth.querySelector("img"),
  mask: button.querySelector("img"),
});

// Draw all pictures of a grid, if it is not folded and not yet drawn in this view.
async function drawGrid(table, block, view) {
  if (table.dataset.drawn === view || table.closest("details:not([open])")) return;
  table.dataset.drawn = view;
  const grid = readGrid(table);
  for (const button of [grid.truth, ...grid.rows.flat().filter(Boolean)]) {
    if (table.dataset.drawn !== view) return;
    let canvas = button.querySelector("canvas");
    if (!canvas) {
      canvas = document.createElement("canvas");
      canvas.setAttribute("aria-hidden", "true");
      button.append(canvas);
    }
    await draw(canvas, partsOf(grid, button), button.dataset.kind, view, block,
      +button.dataset.step, LEAST);
    button.classList.add("px-drawn");
  }
}

// --- The dialog --------------------------------------------------------------------

let dialog = null, current = null;

function makeDialog() {
  const element = document.createElement("dialog");
  element.className = "px-dialog";
  element.setAttribute("aria-labelledby", "px-title");
  element.innerHTML = `<div><header><h2 id="px-title" aria-live="polite"></h2>
    <button type="button" data-move="0,-1">← step</button>
    <button type="button" data-move="0,1">step →</button>
    <button type="button" data-move="-1,0">↑ method</button>
    <button type="button" data-move="1,0">↓ method</button>
    <button type="button" data-close>close</button></header>
    <div class="px-stage">${["photo", "truth", "mask"].map(kind =>
    `<figure><canvas role="img" data-kind="${kind}"></canvas><figcaption></figcaption></figure>`).join("")}
    </div><div class="px-row" role="group" aria-label="all steps of this method"></div></div>`;
  document.body.append(element);
  element.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (event.target === element || button?.hasAttribute("data-close")) element.close();
    else if (button?.dataset.column) {
      current.place = [current.place[0], +button.dataset.column];
      show();
    } else if (button) move(...button.dataset.move.split(",").map(Number));
  });
  element.addEventListener("keydown", event => {
    const way = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!way) return;
    event.preventDefault();
    move(...way);
  });
  element.addEventListener("close", () => current?.opener.focus());
  return element;
}

// The place that is reached from a place of the grid; null: there is none.
function target(rows, [row, column], [down, right]) {
  const filled = (r, c) => rows[r]?.[c] ? [r, c] : null;
  for (let c = column + right; right && c >= 0 && c < rows[row].length; c += right) {
    if (filled(row, c)) return [row, c];
  }
  for (let r = row + down; down && r >= 0 && r < rows.length; r += down) {
    // A method may have no picture of this step: then its last one.
    const last = rows[r].findLastIndex(Boolean);
    if (last >= 0) return filled(r, column) ?? [r, last];
  }
  return null;
}

function move(down, right) {
  const place = target(current.grid.rows, current.place, [down, right]);
  if (!place) return;
  current.place = place;
  show();
}

function show() {
  const {grid, place, block, view, name} = current;
  const button = grid.rows[place[0]][place[1]];
  dialog.querySelector("h2").textContent = `${name}: ${button.dataset.title}`;
  for (const control of dialog.querySelectorAll("[data-move]")) {
    const way = control.dataset.move.split(",").map(Number);
    // Not `disabled`: a button that has the focus would lose it, and the keys with it.
    control.setAttribute("aria-disabled", !target(grid.rows, place, way));
  }
  for (const canvas of dialog.querySelectorAll(".px-stage canvas")) {
    const kind = canvas.dataset.kind, source = kind === "mask" ? button : grid[kind];
    const image = source.querySelector("img");
    const captions = source.closest("figure").querySelectorAll("figcaption span");
    const texts = [...captions].map(span => span.textContent);
    canvas.setAttribute("aria-label", image.alt);
    canvas.nextElementSibling.textContent = [source.dataset.title, ...texts].join(". ");
    draw(canvas, partsOf(grid, button), kind, view, block, +button.dataset.step, LARGE);
  }
  showRow();
}

// The whole row of the method below the large pictures, one small picture per step.
function showRow() {
  const {grid, place, block, view} = current, strip = dialog.querySelector(".px-row");
  const focused = strip.contains(document.activeElement);
  strip.replaceChildren(...grid.rows[place[0]].flatMap((button, column) => {
    if (!button) return [];
    const small = document.createElement("button"), canvas = document.createElement("canvas");
    small.type = "button";
    small.dataset.column = column;
    if (column === place[1]) small.setAttribute("aria-current", "true");
    canvas.setAttribute("aria-hidden", "true");
    small.append(canvas, `step ${button.dataset.step}`);
    draw(canvas, partsOf(grid, button), "mask", view, block, +button.dataset.step, LEAST);
    return [small];
  }));
  // The new button gets the focus of the one that it replaces, so that the keys go on.
  const now = strip.querySelector("[aria-current]");
  if (focused) now.focus();
  now.scrollIntoView({block: "nearest", inline: "nearest"});
}

function open(button, block, view) {
  const table = button.closest("table"), grid = readGrid(table);
  let place = null;
  grid.rows.forEach((row, r) => {
    if (row.includes(button)) place = [r, row.indexOf(button)];
  });
  if (!place) {  // image or truth: with the first picture that there is
    const r = grid.rows.findIndex(row => row.some(Boolean));
    if (r < 0) return;
    place = [r, grid.rows[r].findIndex(Boolean)];
  }
  const name = table.closest("details").querySelector("summary").textContent.trim();
  dialog ??= makeDialog();
  current = {grid, place, block, view, name, opener: button};
  show();
  dialog.showModal();
}

for (const element of document.querySelectorAll(".px")) {
  const block = readBlock(element), views = element.querySelector(".px-views");
  const view = () => element.dataset.view;
  const refresh = () => {
    for (const table of element.querySelectorAll(".px-grid")) drawGrid(table, block, view());
  };
  views.hidden = false;
  views.addEventListener("change", event => {
    element.dataset.view = event.target.value;
    refresh();
  });
  // A fold around the pictures may be opened, too: the event does not rise, it is caught.
  document.addEventListener("toggle", refresh, true);
  element.addEventListener("click", event => {
    const button = event.target.closest(".px-open");
    if (button) open(button, block, view());
  });
  refresh();
}
})();
