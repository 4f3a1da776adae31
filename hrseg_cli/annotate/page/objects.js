// The objects of the image: the list, and what is done with a whole object.

import { open, showChange, spanText } from "./images.js";
import { askLabel, learn, showLabels } from "./labels.js";
import { outlineChanged } from "./outline.js";
import { act, isHeld, sent, waiting } from "./server.js";
import { $, app, element, overlay, scene, showMessage, view } from "./state.js";
import { COLOURS, unpack } from "./view.js";

export const clicksText = ({ clicks: { length } }) => `${length} ${length === 1 ? "click" : "clicks"}`;

export function take(answer) {
  Object.assign(app.picture, { revision: answer.revision, finished: answer.finished });
  if (answer.object) {
    const index = scene.objects.findIndex((one) => one.key === answer.object.key);
    const old = scene.objects[index];
    const one = { ...answer.object, mask: answer.object.mask ? unpack(answer.object.mask) : old.mask };
    if (old) scene.objects[index] = one; else scene.objects.push(one);
    learn(one.name);
    if (!old && !app.fixed) app.label = null;
  }
  scene.objects = answer.order.map((key) => scene.objects.find((one) => one.key === key)).filter(Boolean);
  showScene();
}

// After any change of the objects. A deleted object is no longer the target; one still being created is.
export function showScene() {
  const find = () => scene.objects.find((one) => one.key === app.target.key) ?? null;
  if (app.target.key !== null && !find()) app.target = { key: scene.objects.at(-1)?.key ?? null };
  scene.chosen = find();
  for (const one of scene.objects) one.hidden = app.hidden.has(`${app.current} ${one.key}`);
  showChange();
  view.draw();
}

const TOOLS = { // of the chosen object: text, title, action, state
  hide: (one) => [one.hidden ? "show" : "hide", "hide or show (Shift H)", hide, one.hidden],
  lock: (one) => [one.locked ? "unlock" : "lock", "allow no changes (K)", lock, one.locked],
  up: () => ["↑", "to the front ({)", (one) => move(one, -1)],
  down: () => ["↓", "to the back (})", (one) => move(one, 1)],
  rename: () => ["label", "rename, choose a label (R)", rename],
  delete: () => ["×", "delete (Del)", remove],
};

function objectTools(one, index) {
  return Object.entries(TOOLS).map(([name, of]) => {
    const [text, title, does, pressed] = of(one);
    const button = element("button", { className: `tool ${name}`, textContent: text, title, onclick: () => does(one) });
    button.setAttribute("aria-label", `${name} ${one.name}`);
    if (pressed !== undefined) {
      button.setAttribute("aria-pressed", String(pressed));
      button.setAttribute("aria-label", `${name === "hide" ? "hidden" : "locked"}: ${one.name}`);
    }
    if (name === "up") button.disabled = index === 0;
    if (name === "down") button.disabled = index === scene.objects.length - 1;
    button.dataset.focus = `${one.key} ${name}`;
    return button;
  });
}

export function showObjects() {
  const focused = document.activeElement?.dataset?.focus;
  $("objects").replaceChildren(...scene.objects.map((one, index) => {
    const chosen = one === scene.chosen;
    const swatch = element("span");
    swatch.style.background = `rgb(${COLOURS[one.colour]})`;
    const colour = element("button", { className: "colour", title: "next colour (C)", onclick: () => recolour(one) }, swatch);
    colour.setAttribute("aria-label", `colour of ${one.name}`);
    colour.dataset.focus = `${one.key} colour`;
    const name = element("button", {
      className: `name${one.error ? " error" : ""}`,
      textContent: one.name,
      title: one.error ?? `${one.name}, ${clicksText(one)}, ${spanText(one.spent)} of your time`,
      onclick: () => choose(one),
      ondblclick: () => rename(one),
    });
    name.setAttribute("aria-pressed", String(chosen));
    const flags = [one.hidden && "hidden", one.locked && "locked"].filter(Boolean);
    name.setAttribute("aria-label", [one.name, clicksText(one), ...flags].join(", "));
    name.dataset.focus = `${one.key} name`;
    const first = element("div", {}, colour, name);
    if (flags.length) first.append(element("span", { className: "flags", textContent: flags.join(", ") }));
    first.append(element("span", { className: "clicks", textContent: one.clicks.length || "", title: "clicks" }));
    const line = element("li", { className: chosen ? "chosen" : "" }, first);
    if (chosen) line.append(element("div", { className: "tools" }, ...objectTools(one, index)));
    return line;
  }));
  $("hint").hidden = scene.objects.length > 0;
  showLabels();
  if (focused) [...document.querySelectorAll("[data-focus]")].find((button) => button.dataset.focus === focused)?.focus();
  showState();
}

let unsent = () => false; // a threshold that is still being moved
export function alsoUnsaved(test) { unsent = test; }
export const isUnsaved = () => waiting() > 0 || unsent() || outlineChanged();

export function showState() {
  const one = scene.chosen;
  $("undo").disabled = !one?.undo;
  $("redo").disabled = !one?.redo;
  $("refine").disabled = !one;
  $("finish").setAttribute("aria-pressed", String(app.picture?.finished ?? false));
  if (document.activeElement !== $("threshold") || !isUnsaved()) {
    $("threshold").disabled = !one;
    $("threshold").value = one?.threshold ?? 0.5;
    $("threshold-text").textContent = one ? one.threshold.toFixed(2) : "";
  }
  for (const button of $("mask-tools").querySelectorAll("button")) button.disabled = !one;
  const pending = isHeld() || outlineChanged() ? "not saved" : "working";
  $("saved").textContent = isUnsaved() ? pending : app.picture?.revision ? "saved" : "";
  document.body.dataset.busy = waiting();
}

// ---- doing

export function again(which) { if (scene.chosen) act({ do: which }); }

export function choose(one) {
  app.target = { key: one.key };
  showScene();
}

export function step(by) {
  const { objects, chosen } = scene;
  if (objects.length) choose(objects[(objects.indexOf(chosen) + by + objects.length) % objects.length]);
}

export function recolour(one) { if (one) act({ do: "colour", colour: (one.colour + 1) % COLOURS.length }, { object: one }); }

export function add() {
  if (!app.picture) return;
  app.target = { key: null };
  act({ do: "add", ...options() });
}

// What a new mask needs to know. label: of a new object.
export function options() {
  return { apart: $("apart").checked, ...(app.label ? { label: app.label } : {}) };
}

export function hide(one) {
  if (!one) return;
  const key = `${app.current} ${one.key}`;
  if (!app.hidden.delete(key)) app.hidden.add(key);
  showScene();
}

export function lock(one) { if (one) act({ do: "lock", locked: !one.locked }, { object: one }); }

export function move(one, by) {
  const to = scene.objects.indexOf(one) + by;
  if (one && to >= 0 && to < scene.objects.length) act({ do: "move", to }, { object: one });
}

export function shape(how) {
  if (scene.chosen) act({ do: "shape", how, apart: $("apart").checked });
}

// The chosen object's mask becomes a new object of the next image.
export async function copyOn() {
  const { chosen } = scene, from = app.current, to = app.current + 1;
  if (!chosen) return;
  if (!chosen.area) return showMessage("this object has no pixels to copy");
  if (!app.images[to]) return showMessage("this is the last image");
  await open(to);
  if (app.current !== to || !app.picture) return;
  app.target = { key: null };
  act({ do: "copy", image: from, source: chosen.key, apart: $("apart").checked });
  await sent();
}

export function rename(one) {
  if (!one) return;
  choose(one);
  askLabel(one);
}

export function remove(one) {
  if (!one) return;
  choose(one);
  $("delete-text").textContent = `${one.name}, ${clicksText(one)}. Its mask is deleted too.`;
  $("delete").returnValue = "";
  $("delete").onclose = () => {
    if ($("delete").returnValue === "ok") act({ do: "delete" }, { object: one });
    overlay.focus();
  };
  $("delete").showModal();
}

$("undo").onclick = () => again("undo");
$("redo").onclick = () => again("redo");
$("refine").onclick = () => again("refine");
$("add").onclick = add;
$("copy").onclick = copyOn;
for (const button of document.querySelectorAll("[data-shape]")) button.onclick = () => shape(button.dataset.shape);

