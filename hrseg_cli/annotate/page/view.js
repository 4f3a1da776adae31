// The image view: zoom, pan, and masks drawn from their own pixels, only for the visible part.

import { drawBrush, drawCorners, drawCross, drawDot, drawDraft, drawPending } from "./draw.js";

export const COLOURS = [
  [230, 57, 70], [29, 120, 220], [40, 160, 80], [240, 150, 20],
  [150, 80, 210], [0, 165, 175], [225, 80, 160], [130, 110, 40],
];

// How a mask is drawn. strength: of the fill, times the opacity. above: covers what lies below it.
const CHOSEN = { strength: 1, edge: 255, thickness: 2, above: true };
const OTHER = { strength: 0.7, edge: 170, thickness: 1, above: false };
const PREVIEW = { strength: 0, edge: 230, thickness: 1.5, above: true };

// One byte per pixel of the mask's box; runs alternate between background and object.
export function unpack({ box, runs }) {
  const [top, left, height, width] = box;
  const inside = new Uint8Array(height * width);
  let at = 0;
  runs.forEach((length, index) => {
    if (index % 2) inside.fill(1, at, at + length);
    at += length;
  });
  return { top, left, height, width, inside };
}

export class View {
  constructor(picture, overlay) {
    this.picture = picture;
    this.overlay = overlay;
    this.bitmap = null;
    this.size = [1, 1]; // rows, columns
    this.scale = 1; // screen pixels (CSS) per image pixel
    this.x = 0; // of the image's corner on the screen
    this.y = 0;
    this.cross = [0, 0]; // row, column, in image pixels; a whole number plus a half is a pixel's centre
    this.scene = { // outline: the polygons being edited. pending: what is not answered yet. preview: a click's mask
      objects: [], chosen: null, opacity: 0.45, draft: null, showCross: false, hidden: false,
      brush: null, outline: null, pending: [], preview: null,
    };
    this.shown = {}; // what picture and masks were last drawn from: each is drawn again only when that changes
    new ResizeObserver(() => this.resize()).observe(overlay);
    picture.addEventListener("contextrestored", () => this.resize());
  }

  // null: nothing
  show(bitmap, rows = 1, cols = 1) {
    this.bitmap?.close();
    this.bitmap = bitmap;
    this.size = [rows, cols];
    this.cross = [Math.floor(rows / 2) + 0.5, Math.floor(cols / 2) + 0.5];
    this.fit();
  }

  get width() { return this.overlay.clientWidth; }
  get height() { return this.overlay.clientHeight; }

  resize() {
    this.ratio = window.devicePixelRatio || 1;
    for (const canvas of [this.picture, this.overlay]) {
      canvas.width = Math.max(1, Math.round(this.width * this.ratio));
      canvas.height = Math.max(1, Math.round(this.height * this.ratio));
    }
    this.shown = {};
    if (this.fitted) this.fit();
    this.draw();
  }

  fit() {
    const [rows, cols] = this.size;
    this.zoomTo(Math.min((this.width - 24) / cols, (this.height - 24) / rows, 8));
    this.x = (this.width - cols * this.scale) / 2;
    this.y = (this.height - rows * this.scale) / 2;
    this.fitted = true;
    this.draw();
  }

  // Keeps the image point under (x, y) fixed.
  zoomTo(scale, x = this.width / 2, y = this.height / 2) {
    const [rows, cols] = this.size;
    const least = Math.min(0.5 * Math.min(this.width / cols, this.height / rows), 1);
    scale = Math.min(Math.max(scale, least), 64);
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.keep();
    this.draw();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.keep();
    this.draw();
  }

  // Keeps part of the image visible.
  keep() {
    const [rows, cols] = this.size;
    const edge = 40;
    this.x = Math.min(this.width - edge, Math.max(edge - cols * this.scale, this.x));
    this.y = Math.min(this.height - edge, Math.max(edge - rows * this.scale, this.y));
  }

  toImage(x, y) { return [(y - this.y) / this.scale, (x - this.x) / this.scale]; }
  toScreen(row, col) { return [col * this.scale + this.x, row * this.scale + this.y]; }
  holds(row, col) { return row >= 0 && col >= 0 && row < this.size[0] && col < this.size[1]; }

  moveCross(down, right) {
    const clamp = (value, end) => Math.min(Math.max(Math.floor(value) + 0.5, 0.5), end - 0.5);
    this.cross = [clamp(this.cross[0] + down, this.size[0]), clamp(this.cross[1] + right, this.size[1])];
    const [x, y] = this.toScreen(...this.cross);
    const edge = 30;
    const dx = Math.max(edge - x, 0) + Math.min(this.width - edge - x, 0);
    const dy = Math.max(edge - y, 0) + Math.min(this.height - edge - y, 0);
    if (dx || dy) this.pan(dx, dy);
    this.draw();
  }

  draw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.drawPicture();
      this.drawOverlay();
      // Position of the image on the screen, for tests and scripts.
      Object.assign(this.overlay.dataset, { scale: this.scale, x: this.x, y: this.y });
    });
  }

  // Whether any of these values is not what it was when last asked.
  isNew(what, values) {
    const before = this.shown[what];
    this.shown[what] = values;
    return before?.length !== values.length || values.some((value, index) => value !== before[index]);
  }

  drawPicture() {
    if (!this.isNew("picture", [this.bitmap, this.x, this.y, this.scale])) return;
    const pen = this.picture.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.picture.width, this.picture.height);
    if (!this.bitmap) return;
    const [rows, cols] = this.size;
    const [top, left] = this.toImage(0, 0).map((value) => Math.max(0, Math.floor(value)));
    const [bottom, right] = this.toImage(this.width, this.height);
    const height = Math.min(rows, Math.ceil(bottom)) - top, width = Math.min(cols, Math.ceil(right)) - left;
    if (height <= 0 || width <= 0) return;
    const [x, y] = this.toScreen(top, left);
    pen.scale(this.ratio, this.ratio);
    pen.imageSmoothingEnabled = this.scale * this.ratio < 2;
    pen.imageSmoothingQuality = "medium";
    pen.drawImage(this.bitmap, left, top, width, height, x, y, width * this.scale, height * this.scale);
  }

  drawOverlay() {
    const pen = this.overlay.getContext("2d");
    const { width, height } = this.overlay;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!this.bitmap) return;
    const { objects, chosen, hidden } = this.scene;
    const shown = hidden ? [] : objects.filter((one) => !one.hidden);
    this.drawMasks(pen, shown);
    pen.scale(this.ratio, this.ratio);
    if (shown.includes(chosen)) {
      chosen.clicks.forEach((click, index) => drawDot(pen, this, click, index === chosen.clicks.length - 1));
    }
    for (const one of this.scene.pending) drawPending(pen, this, one);
    if (this.scene.draft) drawDraft(pen, this, this.scene.draft);
    if (this.scene.brush) drawBrush(pen, this, this.scene.brush);
    if (this.scene.outline) drawCorners(pen, this, this.scene.outline);
    if (this.scene.showCross) drawCross(pen, this);
  }

  drawMasks(pen, shown) {
    const { chosen, preview, opacity } = this.scene;
    if (!shown.length && !preview) return;
    const values = [this.x, this.y, this.scale, opacity, chosen?.mask, preview, ...shown.flatMap((one) => [one.mask, one.colour])];
    if (this.isNew("masks", values)) {
      const sheet = this.sheet = pen.createImageData(this.overlay.width, this.overlay.height);
      for (const one of shown.toReversed()) if (one !== chosen) this.stain(sheet, one.mask, COLOURS[one.colour], OTHER);
      if (shown.includes(chosen)) this.stain(sheet, chosen.mask, COLOURS[chosen.colour], CHOSEN);
      if (preview) this.stain(sheet, preview.mask, [255, 255, 255], PREVIEW);
    }
    pen.putImageData(this.sheet, 0, 0);
  }

  // The visible part of a mask: a transparent colour, and an opaque line along the inside of its edge.
  stain(sheet, mask, [red, green, blue], { strength, edge, thickness, above }) {
    const { top, left, height, width, inside } = mask;
    if (!inside.length) return;
    const step = 1 / (this.scale * this.ratio);
    const thick = Math.round(thickness * this.ratio);
    const [x0, y0] = this.toScreen(top, left).map((value) => Math.floor(value * this.ratio));
    const [x1, y1] = this.toScreen(top + height, left + width).map((value) => Math.ceil(value * this.ratio));
    const first = [Math.max(0, x0), Math.max(0, y0)], last = [Math.min(sheet.width, x1), Math.min(sheet.height, y1)];
    const w = last[0] - first[0] + 2 * thick, h = last[1] - first[1] + 2 * thick;
    if (w <= 2 * thick || h <= 2 * thick) return;
    const columns = new Int32Array(w);
    for (let i = 0; i < w; i++) {
      const col = Math.floor((first[0] - thick + i + 0.5) * step - this.x / this.scale) - left;
      columns[i] = col >= 0 && col < width ? col : -1;
    }
    const seen = new Uint8Array(w * h);
    let before = -1;
    for (let j = 0, k = 0; j < h; j++, k += w) {
      const row = Math.floor((first[1] - thick + j + 0.5) * step - this.y / this.scale) - top;
      if (row < 0 || row >= height) continue;
      if (row === before) seen.copyWithin(k, k - w, k);
      else for (let i = 0, at = row * width; i < w; i++) if (columns[i] >= 0) seen[k + i] = inside[at + columns[i]];
      before = row;
    }
    const pixels = new Uint8ClampedArray([red, green, blue, 255 * this.scene.opacity * strength, red, green, blue, edge]);
    const [deepest, outline] = new Uint32Array(pixels.buffer);
    const data = sheet.data, whole = new Uint32Array(data.buffer);
    for (let j = thick; j < h - thick; j++) {
      let at = (first[1] + j - thick) * sheet.width + first[0];
      for (let i = thick, k = j * w + thick; i < w - thick; i++, k++, at++) {
        if (!seen[k]) continue;
        const deep = seen[k - thick] & seen[k + thick] & seen[k - thick * w] & seen[k + thick * w];
        const alpha = pixels[deep ? 3 : 7];
        if (alpha >= data[4 * at + 3] || (above && alpha)) whole[at] = deep ? deepest : outline;
      }
    }
  }
}
