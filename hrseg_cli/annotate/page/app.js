// Sends the annotator's actions one at a time and shows the answers. The server holds all state that matters.

import { COLOURS, unpack, View } from "./view.js";

const KEYS = { // a bar separates keys for the alternatives in the text
  "Click": [
    ["arrows", "move the crosshair; with Shift by one pixel"],
    ["Enter", "click on the object"],
    ["Shift Enter", "click on the background"],
    ["left|right", "mouse: object / background"],
    ["Shift left", "background; also with Ctrl or Alt"],
    ["drag", "draw a box around the object"],
  ],
  "Correct": [
    ["Z|Y", "undo / redo"],
    ["V|X|B|E", "click / box / brush / eraser"],
    ["Enter", "start a box or stroke; again to end it"],
    [",|.", "smaller / larger brush"],
    ["T|Shift T", "threshold up / down"],
    ["F", "refine the mask, if the protocol has a refiner"],
  ],
  "Objects": [
    ["N", "new object"],
    ["[|]", "previous / next object"],
    ["R|C", "rename / next colour"],
    ["Del", "delete"],
  ],
  "See": [
    ["+|-", "zoom in / out; also the mouse wheel"],
    ["0|1", "fit the whole image / actual pixels"],
    ["Space drag", "move the image; also the middle button"],
    ["Shift WASD", "move the image"],
    ["O|Shift O", "opacity up / down"],
    ["H", "hide or show the masks"],
  ],
  "Images": [
    ["PgDn|PgUp", "next / previous image"],
    ["D", "mark the image as done, or not done"],
    ["Esc", "cancel; back to the image"],
    ["?", "this list"],
  ],
};
const DRAG = 5; // screen pixels from which a click becomes a box

const $ = (id) => document.getElementById(id);
const token = location.hash.slice(1);
const overlay = $("overlay");
const view = new View($("picture"), overlay);
const scene = view.scene;

let images = []; // {id, name, state}
let current = null; // id of the image shown
let picture = null; // {revision, finished} of the image shown; null while it loads
let target = { key: null }; // the object of the next action; a new one gets its key from the server
let tool = "click";
let queue = Promise.resolve();
let waiting = 0;
let failures = 0;
let opening = new AbortController();
let draft = null; // the box or stroke being drawn, by pointer or keyboard
let space = false;

// ---- server

class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function ask(path, wish, signal) {
  const options = { headers: { Authorization: `Bearer ${token}` }, signal };
  if (wish) Object.assign(options, { method: "POST", body: JSON.stringify(wish) });
  let answer;
  try {
    answer = await fetch(`api/${path}`, options);
  } catch {
    throw new Refusal(0, "hrseg does not respond. Is it still running in the terminal?");
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({ error: `the server returned ${answer.status}` }));
  throw new Refusal(answer.status, error);
}

// Actions are queued: each sends the revision that results from the previous one. If one fails, the queued ones are
// dropped: they were meant for what the annotator saw, which is no longer the current state.
function act(wish, object = target) {
  if (!picture) return queue;
  const id = current, asked = performance.now(), failed = failures;
  waiting += 1;
  showState();
  queue = queue.then(async () => {
    if (failed !== failures) return;
    try {
      const answer = await (await ask(`images/${id}`, { ...wish, object: object.key, revision: picture.revision })).json();
      if (answer.object) object.key = answer.object.key;
      take(answer);
      $("time").textContent = wish.do === "click" ? timeText(answer.object.seconds, performance.now() - asked) : "";
      hideMessage();
    } catch (error) {
      failures += 1;
      if (error.status === 404 || error.status === 409 || error.status >= 500) await open(id, true);
      showMessage(error.message);
    }
  }).finally(() => {
    waiting -= 1;
    showState();
  });
  return queue;
}

function take(answer) {
  Object.assign(picture, { revision: answer.revision, finished: answer.finished });
  if (answer.object) {
    const index = scene.objects.findIndex((one) => one.key === answer.object.key);
    const old = scene.objects[index];
    const one = { ...answer.object, mask: answer.object.mask ? unpack(answer.object.mask) : old.mask };
    if (old) scene.objects[index] = one; else scene.objects.push(one);
  }
  scene.objects = answer.order.map((key) => scene.objects.find((one) => one.key === key)).filter(Boolean);
  showScene();
}

// After any change of the objects. A deleted object is no longer the target; one still being created is.
function showScene() {
  const find = () => scene.objects.find((one) => one.key === target.key) ?? null;
  if (target.key !== null && !find()) target = { key: scene.objects.at(-1)?.key ?? null };
  scene.chosen = find();
  const image = images[current];
  if (picture) image.state = picture.finished ? "done" : scene.objects.length ? "work" : "todo";
  showImage(image);
  showObjects();
  view.draw();
}

// again: reload the same image, keeping zoom and position
async function open(id, again = false) {
  if (!again) {
    sendThreshold();
    while (waiting) await queue; // queued actions belong to the image they were made on
    current = id;
    picture = draft = scene.draft = null;
    scene.objects = [];
    target = { key: null };
    view.show(null);
    showPlace(view.cross);
    showCurrent();
    showScene();
    $("empty").hidden = false;
    $("empty").textContent = "loading";
  }
  opening.abort();
  const turn = opening = new AbortController();
  const pixels = async () => createImageBitmap(await (await ask(`images/${id}/pixels`, null, turn.signal)).blob());
  try {
    let [found, bitmap] = await Promise.all([
      ask(`images/${id}`, null, turn.signal).then((answer) => answer.json()),
      again ? null : pixels(),
    ]);
    if (again && found.file !== picture?.file) bitmap = await pixels(); // its file was replaced
    if (turn !== opening) return bitmap?.close();
    picture = { revision: found.revision, finished: found.finished, file: found.file };
    scene.objects = found.objects.map((one) => ({ ...one, mask: unpack(one.mask) }));
    if (target.key === null) target = { key: scene.objects.at(-1)?.key ?? null };
    if (bitmap) view.show(bitmap, ...found.size);
    $("empty").hidden = true;
    const broken = found.objects.find((one) => one.error);
    if (broken) showMessage(broken.error);
  } catch (error) {
    if (turn !== opening) return;
    picture = null;
    scene.objects = [];
    view.show(null);
    $("empty").hidden = false;
    $("empty").textContent = error.message ?? "cannot be shown";
  }
  showScene();
}

async function lookAgain() {
  if (!picture || waiting) return;
  const id = current;
  try {
    const { revision } = await (await ask(`images/${id}/revision`)).json();
    if (id !== current || !picture || waiting || revision === picture.revision) return;
    await open(id, true);
    showMessage("this image was changed in another tab; its new state is shown");
  } catch (error) {
    showMessage(error.message);
  }
}

// ---- showing

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const STATES = { todo: "to do", work: "in progress", done: "done" };

function showImages() {
  $("images").replaceChildren(...images.map((image) => {
    const button = element("button", { title: image.name, onclick: () => open(image.id) });
    button.append(element("span", { className: "name", textContent: image.name.replace(/^images\//, "") }), element("span"));
    image.button = button;
    showImage(image);
    return element("li", {}, button);
  }));
}

function showImage(image) {
  const dot = image.button.lastChild;
  dot.className = `state ${image.state}`;
  dot.setAttribute("role", "img");
  dot.setAttribute("aria-label", STATES[image.state]);
  dot.title = STATES[image.state];
  $("count").textContent = `${images.filter((one) => one.state === "done").length} of ${images.length} done`;
}

function showCurrent() {
  for (const image of images) image.button.setAttribute("aria-current", String(image.id === current));
  images[current].button.scrollIntoView({ block: "nearest" });
  $("title").textContent = images[current].name;
  document.title = `${images[current].name} - hrseg`;
  hideMessage();
  $("time").textContent = "";
}

function showObjects() {
  const focused = document.activeElement?.dataset?.focus;
  $("objects").replaceChildren(...scene.objects.map((one) => {
    const chosen = one === scene.chosen;
    const swatch = element("span");
    swatch.style.background = `rgb(${COLOURS[one.colour]})`;
    const colour = element("button", { className: "colour", title: "next colour (C)", onclick: () => recolour(one) }, swatch);
    colour.setAttribute("aria-label", `colour of ${one.name}`);
    const name = element("button", {
      className: `name${one.error ? " error" : ""}`,
      textContent: one.name,
      title: one.error ?? one.name,
      onclick: () => choose(one),
      ondblclick: () => rename(one),
    });
    name.setAttribute("aria-pressed", String(chosen));
    name.setAttribute("aria-label", `${one.name}, ${clicksText(one)}`);
    name.style.background = "none";
    name.style.color = "inherit";
    name.style.fontWeight = chosen ? "600" : "";
    const clicks = element("span", { className: "clicks", textContent: one.clicks.length || "", title: "clicks" });
    const edit = element("button", { className: "tool rename", textContent: "name", title: "rename (R)", onclick: () => rename(one) });
    edit.setAttribute("aria-label", `rename ${one.name}`);
    const drop = element("button", { className: "tool", textContent: "×", title: "delete (Del)", onclick: () => remove(one) });
    drop.setAttribute("aria-label", `delete ${one.name}`);
    [colour, name, edit, drop].forEach((button, index) => { button.dataset.focus = `${one.key} ${index}`; });
    return element("li", { className: chosen ? "chosen" : "" }, colour, name, edit, drop, clicks);
  }));
  if (focused) [...$("objects").querySelectorAll("button")].find((button) => button.dataset.focus === focused)?.focus();
  showState();
}

function showState() {
  const one = scene.chosen;
  $("undo").disabled = !one?.undo;
  $("redo").disabled = !one?.redo;
  $("refine").disabled = !one;
  $("finish").setAttribute("aria-pressed", String(picture?.finished ?? false));
  if (document.activeElement !== $("threshold") || !waiting) {
    $("threshold").disabled = !one;
    $("threshold").value = one?.threshold ?? 0.5;
    $("threshold-text").textContent = one ? one.threshold.toFixed(2) : "";
  }
  $("saved").textContent = waiting ? "working" : picture?.revision ? "saved" : "";
  document.body.dataset.busy = waiting;
}

const timeText = (seconds, whole) => `model ${seconds.toFixed(2)} s, screen ${(whole / 1000).toFixed(2)} s`;
const clicksText = ({ clicks: { length } }) => `${length} ${length === 1 ? "click" : "clicks"}`;

function showPlace(at) {
  const [row, col] = at.map(Math.floor);
  $("place").textContent = view.bitmap && view.holds(row, col) ? `row ${row}, col ${col}` : "";
  $("zoom").textContent = view.bitmap ? `${Math.round(view.scale * view.ratio * 100)} %` : "";
}

let messageTimer = 0;
function showMessage(text) {
  $("message").textContent = text;
  $("message").hidden = false;
  clearTimeout(messageTimer);
  messageTimer = setTimeout(hideMessage, 12000);
}
function hideMessage() { $("message").hidden = true; }

function showBrush(at) {
  scene.brush = tool === "brush" || tool === "eraser" ? { at, radius: radius() } : null;
}

// ---- doing

const radius = () => 0.5 * 1000 ** (Number($("size").value) / 100);

function setTool(name) {
  tool = name;
  draft = scene.draft = null;
  for (const button of $("tools").children) button.setAttribute("aria-pressed", String(button.dataset.tool === name));
  showBrush(view.cross);
  view.draw();
}

function again(which) { if (scene.chosen) act({ do: which }); }

function choose(one) {
  target = { key: one.key };
  showScene();
}

function step(by) {
  const { objects, chosen } = scene;
  if (objects.length) choose(objects[(objects.indexOf(chosen) + by + objects.length) % objects.length]);
}

function recolour(one) { if (one) act({ do: "colour", colour: (one.colour + 1) % COLOURS.length }, one); }

function add() {
  if (!picture) return;
  target = { key: null };
  act({ do: "add" });
}

function rename(one) {
  if (!one) return;
  choose(one);
  $("rename-text").value = one.name;
  $("rename").returnValue = "";
  $("rename").onclose = () => {
    const name = $("rename-text").value.trim();
    if ($("rename").returnValue === "ok" && name && name !== one.name) act({ do: "rename", name }, one);
    overlay.focus();
  };
  $("rename").showModal();
  $("rename-text").select();
}

function remove(one) {
  if (!one) return;
  choose(one);
  $("delete-text").textContent = `${one.name}, ${clicksText(one)}. Its mask is deleted too.`;
  $("delete").returnValue = "";
  $("delete").onclose = () => {
    if ($("delete").returnValue === "ok") act({ do: "delete" }, one);
    overlay.focus();
  };
  $("delete").showModal();
}

function click(at, positive) {
  const [row, col] = at.map(Math.floor);
  if (view.bitmap && view.holds(row, col)) act({ do: "click", row, col, positive });
}

// A box becomes a click at its centre; the server uses only the box to answer it.
function clickBox([from, to]) {
  const end = (axis) => view.size[axis] - 1;
  const span = (axis) => [from[axis], to[axis]].sort((a, b) => a - b)
    .map((value) => Math.min(Math.max(Math.floor(value), 0), end(axis)));
  const [top, bottom] = span(0), [left, right] = span(1);
  if (bottom - top < 2 || right - left < 2) return;
  act({
    do: "click", positive: true, box: [top, bottom, left, right],
    row: Math.floor((top + bottom) / 2), col: Math.floor((left + right) / 2),
  });
}

function paint({ stroke, radius, positive }) {
  const clamp = (value, end) => Math.min(Math.max(value, 0), end);
  const points = stroke.map(([row, col]) => [clamp(row, view.size[0]), clamp(col, view.size[1])]);
  act({ do: "stroke", points: points.slice(0, 5000), radius: Math.min(radius, 2000), positive });
}

function startDraft(at, positive) {
  if (tool === "brush" || tool === "eraser") {
    return { stroke: [at], radius: radius(), positive: (tool === "brush") === positive, colour: scene.chosen?.colour ?? newColour() };
  }
  return { box: [at, at], positive };
}

// The same choice as the server's: the first of the least used colours.
function newColour() {
  const used = COLOURS.map((_, colour) => scene.objects.filter((one) => one.colour === colour).length);
  return used.indexOf(Math.min(...used));
}

function growDraft(at) {
  if (draft.box) draft.box = [draft.box[0], at];
  else if (draft.stroke.length < 5000) draft.stroke.push(at);
  scene.draft = draft;
}

function endDraft() {
  const done = draft;
  draft = scene.draft = null;
  if (done.stroke) paint(done); else clickBox(done.box);
  if (tool === "box") setTool("click");
  view.draw();
}

// ---- pointer

overlay.addEventListener("contextmenu", (event) => event.preventDefault());

overlay.addEventListener("pointerdown", (event) => {
  overlay.focus({ focusVisible: false });
  scene.showCross = false;
  if (!view.bitmap || draft) return;
  const at = view.toImage(event.offsetX, event.offsetY);
  const from = [event.offsetX, event.offsetY];
  if (event.button === 1 || (event.button === 0 && space)) {
    draft = { pan: from };
    overlay.classList.add("pan");
  } else if (event.button === 0 || event.button === 2) {
    const positive = event.button === 0 && !(event.shiftKey || event.ctrlKey || event.altKey || event.metaKey);
    draft = startDraft(at, positive);
    draft.from = from;
    if (draft.stroke) scene.draft = draft;
  } else return;
  draft.pointer = event.pointerId;
  overlay.setPointerCapture(event.pointerId);
  event.preventDefault();
  view.draw();
});

overlay.addEventListener("pointermove", (event) => {
  const at = view.toImage(event.offsetX, event.offsetY);
  if (draft?.pointer === event.pointerId) {
    if (draft.pan) {
      view.pan(event.offsetX - draft.pan[0], event.offsetY - draft.pan[1]);
      draft.pan = [event.offsetX, event.offsetY];
    } else if (draft.stroke) growDraft(at);
    else if (draft.positive && (scene.draft || Math.hypot(event.offsetX - draft.from[0], event.offsetY - draft.from[1]) > DRAG)) growDraft(at);
  }
  if (!scene.showCross && view.bitmap) view.cross = at;
  showPlace(at);
  showBrush(at);
  if (draft || scene.brush) view.draw();
});

overlay.addEventListener("pointerup", (event) => {
  if (draft?.pointer !== event.pointerId) return;
  if (draft.pan) {
    draft = null;
    overlay.classList.remove("pan");
  } else if (draft.stroke || scene.draft) endDraft();
  else {
    const { box: [at], positive } = draft;
    draft = null;
    if (tool === "click") click(at, positive);
  }
  view.draw();
});

overlay.addEventListener("pointercancel", giveUp);

function giveUp() {
  draft = scene.draft = null;
  overlay.classList.remove("pan");
  view.draw();
}

overlay.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (!view.bitmap) return;
  const lines = event.deltaMode ? 33 : 1;
  const strength = event.ctrlKey ? 0.01 : 0.0015; // a trackpad pinch arrives as a small wheel event with Ctrl
  view.zoomTo(view.scale * Math.exp(-event.deltaY * lines * strength), event.offsetX, event.offsetY);
  showPlace(view.toImage(event.offsetX, event.offsetY));
}, { passive: false });

// ---- keyboard

function move(down, right, fine) {
  if (!view.bitmap) return;
  const far = fine ? 1 : Math.max(1, Math.round(12 / view.scale));
  scene.showCross = true;
  view.moveCross(down * far, right * far);
  if (draft && !draft.pointer) growDraft([...view.cross]);
  showPlace(view.cross);
  showBrush(view.cross);
  view.draw();
}

function enter(positive) {
  if (!view.bitmap) return;
  scene.showCross = true;
  const at = [...view.cross];
  if (draft) {
    if (!draft.pointer) endDraft();
  } else if (tool === "click") click(at, positive);
  else {
    draft = scene.draft = startDraft(at, positive);
    view.draw();
  }
}

function slide(id, by) {
  const slider = $(id);
  if (slider.disabled) return;
  slider.value = Number(slider.value) + by;
  slider.dispatchEvent(new Event("input"));
}

function turn(by) {
  const next = current === null ? 0 : current + by;
  if (next >= 0 && next < images.length) open(next);
}

const PRESSED = {
  ArrowUp: (e) => move(-1, 0, e.shiftKey), ArrowDown: (e) => move(1, 0, e.shiftKey),
  ArrowLeft: (e) => move(0, -1, e.shiftKey), ArrowRight: (e) => move(0, 1, e.shiftKey),
  Enter: (e) => enter(!e.shiftKey),
  z: () => again("undo"), y: () => again("redo"), f: () => { if (!$("refine").hidden) again("refine"); },
  v: () => setTool("click"), x: () => setTool("box"), b: () => setTool("brush"), e: () => setTool("eraser"),
  ",": () => slide("size", -4), ".": () => slide("size", 4),
  t: () => slide("threshold", 0.05), T: () => slide("threshold", -0.05),
  o: () => slide("opacity", 0.1), O: () => slide("opacity", -0.1),
  n: add, r: () => rename(scene.chosen), c: () => recolour(scene.chosen),
  Delete: () => remove(scene.chosen), Backspace: () => remove(scene.chosen),
  "[": () => step(-1), "]": () => step(1),
  "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8),
  0: () => view.fit(), 1: () => zoom(1 / (view.scale * view.ratio)),
  W: () => view.pan(0, 80), S: () => view.pan(0, -80), A: () => view.pan(80, 0), D: () => view.pan(-80, 0),
  h: () => { scene.hidden = !scene.hidden; view.draw(); },
  d: () => act({ do: "finish", finished: !picture?.finished }, { key: null }),
  PageDown: () => turn(1), PageUp: () => turn(-1),
  "?": () => $("help").showModal(),
  Escape: () => { giveUp(); hideMessage(); overlay.focus(); },
};

function zoom(by) {
  const at = scene.showCross ? view.toScreen(...view.cross) : undefined;
  view.zoomTo(view.scale * by, ...(at ?? []));
  showPlace(view.cross);
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const on = event.target;
  if (on instanceof HTMLInputElement && event.key !== "Escape") return;
  if (on instanceof HTMLButtonElement && (event.key === "Enter" || event.key === " ")) return;
  if (event.key === " ") {
    space = true;
    overlay.classList.add("pan");
    event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) {
    const wish = event.key.toLowerCase() === "y" || (event.key === "Z" && event.shiftKey) ? "redo" : "undo";
    if (!event.altKey && ["z", "y"].includes(event.key.toLowerCase())) {
      event.preventDefault();
      again(wish);
    }
    return;
  }
  const does = PRESSED[event.key] ?? (event.shiftKey ? undefined : PRESSED[event.key.toLowerCase()]);
  if (!does) return;
  event.preventDefault();
  does(event);
});

document.addEventListener("keyup", (event) => {
  if (event.key !== " ") return;
  space = false;
  if (!draft?.pan) overlay.classList.remove("pan");
});

// ---- buttons and sliders

for (const button of $("tools").children) button.onclick = () => setTool(button.dataset.tool);
$("undo").onclick = () => again("undo");
$("redo").onclick = () => again("redo");
$("refine").onclick = () => again("refine");
$("finish").onclick = () => PRESSED.d();
$("add").onclick = add;
$("help-button").onclick = () => $("help").showModal();
$("help-close").onclick = () => $("help").close();
for (const button of document.querySelectorAll(".cancel")) button.onclick = () => button.closest("dialog").close();

let later = null; // a threshold, sent once the slider stops moving
function sendThreshold() {
  if (!later) return;
  const { one, threshold, timer } = later;
  clearTimeout(timer);
  later = null;
  act({ do: "threshold", threshold }, one);
}
$("threshold").oninput = () => {
  const threshold = Number($("threshold").value), one = scene.chosen;
  $("threshold-text").textContent = threshold.toFixed(2);
  clearTimeout(later?.timer);
  later = one && { one, threshold, timer: setTimeout(sendThreshold, 120) };
};
$("opacity").oninput = () => {
  scene.opacity = Number($("opacity").value);
  $("opacity-text").textContent = `${Math.round(100 * scene.opacity)} %`;
  view.draw();
};
$("size").oninput = () => {
  const wide = 2 * radius();
  $("size-text").textContent = `${wide < 10 ? wide.toFixed(1) : Math.round(wide)} px`;
  showBrush(view.cross);
  view.draw();
};

$("keys").append(...Object.entries(KEYS).map(([group, lines]) => {
  const list = element("dl");
  for (const [keys, text] of lines) {
    const term = element("dt");
    for (const one of keys.split("|")) {
      const parts = one.split(" ").map((key) => element("kbd", { textContent: key }));
      term.append(element("span", {}, ...parts));
    }
    list.append(term, element("dd", { textContent: text }));
  }
  return element("section", {}, element("h3", { textContent: group }), list);
}));

window.addEventListener("focus", lookAgain);
document.addEventListener("visibilitychange", () => { if (!document.hidden) lookAgain(); });

// ---- start

async function start() {
  $("opacity").oninput();
  $("size").oninput();
  try {
    const folder = await (await ask("folder")).json();
    images = folder.images;
    $("folder").textContent = folder.folder;
    $("folder").title = folder.folder;
    $("model").textContent = `${folder.model}, ${folder.protocol}`;
    $("refine").hidden = !folder.refiner;
    showImages();
    const wanted = Number(sessionStorage.getItem("image") ?? NaN);
    await open(images[wanted] ? wanted : Math.max(0, images.findIndex((image) => image.state !== "done")));
    overlay.focus({ focusVisible: false });
  } catch (error) {
    $("empty").hidden = false;
    $("empty").textContent = error.message;
  }
}

window.addEventListener("pagehide", () => { if (current !== null) sessionStorage.setItem("image", current); });
start();
