// The outline of a mask as polygons: corners are dragged, added and deleted, and the mask is filled from them.

import { options, showState } from "./objects.js";
import { setTool } from "./pointer.js";
import { act } from "./server.js";
import { $, app, scene, showMessage, view } from "./state.js";

const MOST = 5000; // corners, as the server allows

// ---- from a mask to polygons, corners (row, col) on the grid between the pixels

export function trace({ top, left, height, width, inside }) {
  const at = (row, col) => row >= 0 && col >= 0 && row < height && col < width && inside[row * width + col];
  const across = width + 1;
  const edges = new Map(); // a corner -> the corners that edges from it lead to; the object is on their right
  const add = (row, col, toRow, toCol) => {
    const from = row * across + col, to = toRow * across + toCol;
    if (edges.has(from)) edges.get(from).push(to); else edges.set(from, [to]);
  };
  for (let row = 0; row < height; row++) {
    for (let col = 0; col < width; col++) {
      if (!inside[row * width + col]) continue;
      if (!at(row - 1, col)) add(row, col, row, col + 1);
      if (!at(row, col + 1)) add(row, col + 1, row + 1, col + 1);
      if (!at(row + 1, col)) add(row + 1, col + 1, row + 1, col);
      if (!at(row, col - 1)) add(row + 1, col, row, col);
    }
  }
  const rings = [];
  for (const start of edges.keys()) {
    while (edges.get(start)?.length) {
      const ring = [];
      let corner = start, way = 0;
      do {
        const to = edges.get(corner).pop();
        if (to - corner !== way) ring.push(corner); // straight on is no corner
        way = to - corner;
        corner = to;
      } while (corner !== start);
      rings.push(ring.map((one) => [top + Math.floor(one / across), left + (one % across)]));
    }
  }
  return rings;
}

// Corners that lie within the tolerance of the line between those kept are left out.
export function simplify(ring, tolerance) {
  if (!tolerance || ring.length < 4) return ring;
  let half = 0, most = 0;
  ring.forEach((point, index) => {
    const away = Math.hypot(point[0] - ring[0][0], point[1] - ring[0][1]);
    if (away > most) [half, most] = [index, away];
  });
  const closed = [...ring, ring[0]];
  const kept = new Set([0, half]);
  const parts = [[0, half], [half, ring.length]];
  while (parts.length) {
    const [first, last] = parts.pop();
    let worst = -1, far = tolerance;
    for (let index = first + 1; index < last; index++) {
      const away = distance(closed[index], closed[first], closed[last]).away;
      if (away > far) [worst, far] = [index, away];
    }
    if (worst < 0) continue;
    kept.add(worst);
    parts.push([first, worst], [worst, last]);
  }
  return [...kept].sort((a, b) => a - b).map((index) => ring[index]);
}

// Of a point from a side, and its place along it.
function distance([row, col], [y, x], [v, u]) {
  const length = (v - y) ** 2 + (u - x) ** 2;
  const along = length ? Math.min(Math.max(((row - y) * (v - y) + (col - x) * (u - x)) / length, 0), 1) : 0;
  return { away: Math.hypot(row - y - along * (v - y), col - x - along * (u - x)), along };
}

// ---- editing

let raw = []; // before they were simplified
let object = null;

export function startOutline() {
  object = scene.chosen;
  if (!object?.area) {
    showMessage("select an object with a mask to edit its outline");
    return false;
  }
  if (object.locked) {
    showMessage(`'${object.name}' is locked; unlock it to change it`);
    return false;
  }
  raw = trace(object.mask);
  scene.outline = { rings: [], chosen: null, changed: false };
  showTolerance();
  return true;
}

export const outlineChanged = () => Boolean(scene.outline?.changed);

function showTolerance() {
  const tolerance = Number($("tolerance").value);
  scene.outline.rings = raw.map((ring) => simplify(ring, tolerance)).filter((ring) => ring.length > 2);
  scene.outline.chosen = null;
  const corners = scene.outline.rings.reduce((sum, ring) => sum + ring.length, 0);
  $("tolerance-text").textContent = `${tolerance} px, ${corners} corners`;
  view.draw();
}

// Sends what was changed, unless it is given up.
export function closeOutline(apply = true) {
  const { outline } = scene;
  if (!outline) return;
  scene.outline = null;
  showState();
  view.draw();
  if (!apply || !outline.changed) return;
  const clamp = (value, end) => Math.round(100 * Math.min(Math.max(value, 0), end)) / 100;
  const rings = outline.rings.map((ring) => ring.map(([row, col]) => [clamp(row, view.size[0]), clamp(col, view.size[1])]));
  if (rings.reduce((sum, ring) => sum + ring.length, 0) > MOST) {
    showMessage(`an outline may have ${MOST} corners; simplify it more, and move them again`);
    return;
  }
  act({ do: "outline", rings, ...options() }, { object: { key: object.key }, mark: { rings } });
}

// The object may be another one now, or have another mask.
export function followOutline() {
  if (!scene.outline || scene.chosen === object) return;
  if (scene.chosen?.key === object.key && scene.chosen.area && !scene.outline.changed) startOutline();
  else setTool("click");
}

function changed() {
  scene.outline.changed = true;
  raw = scene.outline.rings;
  showState();
  view.draw();
}

function nearest(at, reach) {
  const { rings } = scene.outline;
  let corner = null, side = null, closest = reach, closestSide = reach;
  rings.forEach((ring, number) => ring.forEach((point, index) => {
    const away = Math.hypot(point[0] - at[0], point[1] - at[1]) * view.scale;
    if (away < closest) [corner, closest] = [[number, index], away];
    const off = distance(at, point, ring[(index + 1) % ring.length]).away * view.scale;
    if (off < closestSide) [side, closestSide] = [[number, index], off];
  }));
  return { corner, side };
}

// The corner under the pointer, a new one on the side under it, or null. erase: deletes it instead.
export function take(at, erase, reach = 5) {
  const { outline } = scene;
  const { corner, side } = nearest(at, reach + 4);
  outline.chosen = corner;
  if (erase) {
    if (corner) removeCorner();
    return null;
  }
  if (!corner && side) {
    const [number, index] = side;
    outline.rings[number] = outline.rings[number].toSpliced(index + 1, 0, at);
    outline.chosen = [number, index + 1];
    changed();
  }
  return outline.chosen;
}

export function drag(corner, at) {
  if (!corner) return;
  const [number, index] = corner;
  scene.outline.rings[number] = scene.outline.rings[number].with(index, at);
  changed();
}

export function removeCorner() {
  const { outline } = scene;
  if (!outline?.chosen) return;
  const [number, index] = outline.chosen;
  const ring = outline.rings[number].toSpliced(index, 1);
  if (ring.length < 3) outline.rings = outline.rings.toSpliced(number, 1);
  else outline.rings[number] = ring;
  outline.chosen = null;
  changed();
}

// By keyboard: the next corner, and moving the chosen one.
export function stepCorner(by) {
  const { outline } = scene;
  const all = outline.rings.flatMap((ring, number) => ring.map((_, index) => [number, index]));
  if (!all.length) return;
  const is = ([number, index]) => outline.chosen?.[0] === number && outline.chosen?.[1] === index;
  const now = all.findIndex(is);
  outline.chosen = all[now < 0 ? 0 : (now + by + all.length) % all.length];
  view.draw();
}

export function nudge(down, right, fine) {
  const { outline } = scene;
  if (!outline?.chosen) return false;
  const [number, index] = outline.chosen;
  const [row, col] = outline.rings[number][index];
  const far = fine ? 1 : Math.max(1, Math.round(6 / view.scale));
  drag(outline.chosen, [row + down * far, col + right * far]);
  return true;
}

$("tolerance").oninput = showTolerance;
$("outline-apply").onclick = () => setTool("click");
$("outline-cancel").onclick = cancelOutline;
$("outline-remove").onclick = removeCorner;

export function cancelOutline() {
  closeOutline(false);
  setTool("click");
}
