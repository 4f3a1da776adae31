// Clicks, boxes and strokes, by mouse, pen, finger, or the crosshair of the keyboard.

import * as outline from "./outline.js";
import { options } from "./objects.js";
import { dropPreview, rest } from "./preview.js";
import { act } from "./server.js";
import { $, app, overlay, scene, view } from "./state.js";
import { pinch } from "./touch.js";
import { COLOURS } from "./view.js";

const DRAG = { mouse: 5, pen: 8, touch: 12 }; // screen pixels from which a click becomes a box
const DOUBLE = 400; // ms within which a second click at the same place is the end of a double click
const POINTS = 5000; // of a stroke, as the server allows

export const radius = () => 0.5 * 1000 ** (Number($("size").value) / 100);

export function setTool(name) {
  if (app.tool === "outline") outline.closeOutline();
  app.draft = scene.draft = null;
  app.tool = name === "outline" && !outline.startOutline() ? "click" : name;
  for (const button of $("tools").children) button.setAttribute("aria-pressed", String(button.dataset.tool === app.tool));
  $("outline-tools").hidden = app.tool !== "outline";
  overlay.dataset.tool = app.tool;
  dropPreview();
  showBrush(view.cross);
  view.draw();
}

export function setSide(positive) {
  app.positive = positive;
  $("on-object").setAttribute("aria-pressed", String(positive));
  $("on-background").setAttribute("aria-pressed", String(!positive));
  dropPreview();
}

const withKey = (event) => event.shiftKey || event.ctrlKey || event.altKey || event.metaKey;
const isPositive = (event) => app.positive && event.button !== 2 && !withKey(event);

export function showBrush(at) {
  scene.brush = app.tool === "brush" || app.tool === "eraser" ? { at, radius: radius() } : null;
}

export function showPlace(at) {
  const [row, col] = at.map(Math.floor);
  $("place").textContent = view.bitmap && view.holds(row, col) ? `row ${row}, col ${col}` : "";
  $("zoom").textContent = view.bitmap ? `${Math.round(view.scale * view.ratio * 100)} %` : "";
}

// ---- doing

export function click(at, positive) {
  const [row, col] = at.map(Math.floor);
  if (!view.bitmap || !view.holds(row, col)) return;
  dropPreview();
  act({ do: "click", row, col, positive, ...options() }, { mark: { click: [row, col, positive] } });
}

let last = { time: -Infinity, place: [0, 0] };
function clickOnce(at, positive, place) {
  const time = performance.now();
  const twice = time - last.time < DOUBLE && Math.hypot(place[0] - last.place[0], place[1] - last.place[1]) < DRAG.mouse;
  last = { time, place };
  if (!twice) click(at, positive);
}

// A box becomes a click at its centre, answered inside the box and a margin.
function clickBox(box) {
  const [from, to] = box;
  const end = (axis) => view.size[axis] - 1;
  const span = (axis) => [from[axis], to[axis]].sort((a, b) => a - b)
    .map((value) => Math.min(Math.max(Math.floor(value), 0), end(axis)));
  const [top, bottom] = span(0), [left, right] = span(1);
  if (bottom - top < 2 || right - left < 2) return;
  act({
    do: "click", positive: true, box: [top, bottom, left, right],
    row: Math.floor((top + bottom) / 2), col: Math.floor((left + right) / 2), ...options(),
  }, { mark: { box } });
}

function sendStroke(draft) {
  const clamp = (value, end) => Math.round(100 * Math.min(Math.max(value, 0), end)) / 100;
  const points = draft.stroke.map(([row, col]) => [clamp(row, view.size[0]), clamp(col, view.size[1])]);
  const { positive, scribble } = draft;
  const wish = scribble ? { do: "scribble" } : { do: "stroke", radius: Math.min(draft.radius, 2000) };
  act({ ...wish, points: points.slice(0, POINTS), positive, ...options() }, { mark: draft });
}

function startDraft(at, positive) {
  if (app.tool === "scribble") return { stroke: [at], scribble: true, radius: 2 / view.scale, positive };
  if (app.tool === "brush" || app.tool === "eraser") {
    const colour = scene.chosen?.colour ?? newColour();
    return { stroke: [at], radius: radius(), positive: (app.tool === "brush") === positive, colour };
  }
  return { box: [at, at], positive };
}

// The same choice as the server's: the first of the least used colours.
function newColour() {
  if (app.fixed && app.label) return app.labels.indexOf(app.label) % COLOURS.length;
  const used = COLOURS.map((_, colour) => scene.objects.filter((one) => one.colour === colour).length);
  return used.indexOf(Math.min(...used));
}

function growDraft(at) {
  const { draft } = app;
  if (draft.box) draft.box = [draft.box[0], at];
  else if (draft.stroke.length < POINTS) draft.stroke.push(at);
  scene.draft = draft;
}

function endDraft() {
  const done = app.draft;
  app.draft = scene.draft = null;
  if (done.stroke) sendStroke(done); else clickBox(done.box);
  if (app.tool === "box") setTool("click");
  view.draw();
}

export function giveUp() {
  app.draft = scene.draft = null;
  overlay.classList.remove("pan");
  view.draw();
}

// ---- pointer

let space = false;
export function holdSpace(held) {
  space = held;
  if (held || !app.draft?.pan) overlay.classList.toggle("pan", held);
}

overlay.addEventListener("contextmenu", (event) => event.preventDefault());

overlay.addEventListener("pointerdown", (event) => {
  overlay.focus({ focusVisible: false });
  scene.showCross = false;
  dropPreview();
  if (pinch.down(event)) return giveUp();
  if (!view.bitmap || app.draft) return;
  const at = view.toImage(event.offsetX, event.offsetY);
  const from = [event.offsetX, event.offsetY];
  if (event.button === 1 || (event.button === 0 && space)) {
    app.draft = { pan: from };
    overlay.classList.add("pan");
  } else if (event.button === 0 || event.button === 2) {
    if (app.tool === "outline") app.draft = { corner: outline.take(at, event.button === 2 || withKey(event), DRAG[event.pointerType]) };
    else app.draft = startDraft(at, isPositive(event));
    app.draft.from = from;
    if (app.draft.stroke) scene.draft = app.draft;
  } else return;
  app.draft.pointer = event.pointerId;
  overlay.setPointerCapture(event.pointerId);
  event.preventDefault();
  view.draw();
});

overlay.addEventListener("pointermove", (event) => {
  if (pinch.move(event)) return showPlace(view.cross);
  const at = view.toImage(event.offsetX, event.offsetY);
  const { draft } = app;
  if (draft?.pointer === event.pointerId) {
    if (draft.pan) {
      view.pan(event.offsetX - draft.pan[0], event.offsetY - draft.pan[1]);
      draft.pan = [event.offsetX, event.offsetY];
    } else if ("corner" in draft) outline.drag(draft.corner, at);
    else if (draft.stroke) growDraft(at);
    else if (draft.positive && (scene.draft || far(event, draft.from))) growDraft(at);
  }
  if (!scene.showCross && view.bitmap) view.cross = at;
  showPlace(at);
  showBrush(at);
  if (app.draft || scene.brush) view.draw();
  else if (app.tool === "click" && event.pointerType !== "touch") rest(at, app.positive && !withKey(event));
});

const far = (event, [x, y]) => Math.hypot(event.offsetX - x, event.offsetY - y) > (DRAG[event.pointerType] ?? DRAG.mouse);

overlay.addEventListener("pointerup", (event) => {
  pinch.up(event);
  const { draft } = app;
  if (draft?.pointer !== event.pointerId) return;
  if (draft.pan) {
    app.draft = null;
    overlay.classList.remove("pan");
  } else if ("corner" in draft) app.draft = null;
  else if (draft.scribble && !draft.stroke.some(([row, col]) => far(event, view.toScreen(row, col)))) {
    giveUp();
    clickOnce(draft.stroke[0], draft.positive, draft.from);
  } else if (draft.stroke || scene.draft) endDraft();
  else {
    app.draft = null;
    if (app.tool === "click") clickOnce(draft.box[0], draft.positive, draft.from);
  }
  view.draw();
});

overlay.addEventListener("pointercancel", (event) => {
  pinch.up(event);
  giveUp();
});
overlay.addEventListener("pointerleave", dropPreview);

overlay.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (!view.bitmap) return;
  dropPreview();
  const lines = event.deltaMode ? 33 : 1;
  const strength = event.ctrlKey ? 0.01 : 0.0015; // a trackpad pinch arrives as a small wheel event with Ctrl
  view.zoomTo(view.scale * Math.exp(-event.deltaY * lines * strength), event.offsetX, event.offsetY);
  showPlace(view.toImage(event.offsetX, event.offsetY));
}, { passive: false });

// ---- the crosshair

export function moveCross(down, right, fine) {
  if (!view.bitmap) return;
  if (app.tool === "outline" && outline.nudge(down, right, fine)) return view.draw();
  const step = fine ? 1 : Math.max(1, Math.round(12 / view.scale));
  scene.showCross = true;
  dropPreview();
  view.moveCross(down * step, right * step);
  if (app.draft && !app.draft.pointer) growDraft([...view.cross]);
  showPlace(view.cross);
  showBrush(view.cross);
  view.draw();
}

export function enter(positive) {
  if (!view.bitmap) return;
  if (app.tool === "outline") return setTool("click");
  scene.showCross = true;
  const at = [...view.cross];
  if (app.draft) {
    if (!app.draft.pointer) endDraft();
  } else if (app.tool === "click") click(at, positive && app.positive);
  else {
    app.draft = scene.draft = startDraft(at, positive && app.positive);
    view.draw();
  }
}

export function zoom(by) {
  const at = scene.showCross ? view.toScreen(...view.cross) : undefined;
  view.zoomTo(view.scale * by, ...(at ?? []));
  showPlace(view.cross);
}

for (const button of $("tools").children) button.onclick = () => setTool(button.dataset.tool);
$("on-object").onclick = () => setSide(true);
$("on-background").onclick = () => setSide(false);
$("zoom-in").onclick = () => zoom(1.5);
$("zoom-out").onclick = () => zoom(1 / 1.5);
$("zoom-fit").onclick = () => { view.fit(); showPlace(view.cross); };
