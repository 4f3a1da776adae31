// All keys, and the list of them.

import { finish, turn } from "./images.js";
import { giveLabel } from "./labels.js";
import * as objects from "./objects.js";
import { cancelOutline, removeCorner, stepCorner } from "./outline.js";
import { enter, giveUp, holdSpace, moveCross, setSide, setTool, zoom } from "./pointer.js";
import { $, app, element, hideMessage, overlay, scene, view } from "./state.js";

const KEYS = { // a bar separates keys for the alternatives in the text
  "Click": [
    ["arrows", "move the crosshair; with Shift by one pixel"],
    ["Enter", "click on the object"],
    ["Shift Enter", "click on the background"],
    ["left|right", "mouse: object / background"],
    ["Shift left", "background; also with Ctrl or Alt"],
    ["Q", "left means object, or background"],
    ["drag", "draw a box around the object"],
  ],
  "Correct": [
    ["Z|Y", "undo / redo"],
    ["V|X|S", "click / box / scribble"],
    ["B|E|P", "brush / eraser / outline"],
    ["Enter", "start a box or stroke; again to end it"],
    [",|.", "smaller / larger brush"],
    ["T|Shift T", "threshold up / down"],
    [">|<", "grow / shrink by one pixel"],
    ["F", "refine the mask, if the protocol has a refiner"],
    ["Shift F|Shift K", "fill holes / keep the largest part"],
  ],
  "Outline": [
    ["drag", "move a corner; on a side: add one"],
    [",|.", "previous / next corner"],
    ["arrows", "move the chosen corner"],
    ["Del", "delete it; also right-click"],
    ["Enter|Esc", "apply / cancel"],
  ],
  "Objects": [
    ["N", "new object"],
    ["[|]", "previous / next object"],
    ["{|}", "to the front / back"],
    ["R|C", "label / next colour"],
    ["Shift 1 … 9", "one of the first nine labels"],
    ["K|Shift H", "lock / hide the object"],
    ["M", "copy its mask to the next image"],
    ["Del", "delete"],
  ],
  "See": [
    ["+|-", "zoom in / out; also the mouse wheel"],
    ["0|1", "fit the whole image / actual pixels"],
    ["Space drag", "move the image; also the middle button"],
    ["Shift WASD", "move the image"],
    ["O|Shift O", "opacity up / down"],
    ["H", "hide or show all masks"],
  ],
  "Images": [
    ["PgDn|PgUp", "next / previous image"],
    ["D", "done, and on to the next one; or not done"],
    ["Esc", "cancel; back to the image"],
    ["?", "this list"],
  ],
};

function slide(id, by) {
  const slider = $(id);
  if (slider.disabled) return;
  slider.value = Number(slider.value) + by;
  slider.dispatchEvent(new Event("input"));
}

const outlined = () => app.tool === "outline";
const smaller = () => (outlined() ? stepCorner(-1) : slide("size", -4));
const larger = () => (outlined() ? stepCorner(1) : slide("size", 4));
const erase = () => (outlined() ? removeCorner() : objects.remove(scene.chosen));

const REPEATED = { // while the key is held down
  ArrowUp: (e) => moveCross(-1, 0, e.shiftKey), ArrowDown: (e) => moveCross(1, 0, e.shiftKey),
  ArrowLeft: (e) => moveCross(0, -1, e.shiftKey), ArrowRight: (e) => moveCross(0, 1, e.shiftKey),
  z: () => objects.again("undo"), y: () => objects.again("redo"),
  ",": smaller, ".": larger,
  t: () => slide("threshold", 0.05), T: () => slide("threshold", -0.05),
  o: () => slide("opacity", 0.1), O: () => slide("opacity", -0.1),
  "[": () => objects.step(-1), "]": () => objects.step(1),
  "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8),
  W: () => view.pan(0, 80), S: () => view.pan(0, -80), A: () => view.pan(80, 0), D: () => view.pan(-80, 0),
  PageDown: () => turn(1), PageUp: () => turn(-1),
};
const PRESSED = {
  Enter: (e) => enter(!e.shiftKey),
  v: () => setTool("click"), x: () => setTool("box"), s: () => setTool("scribble"),
  b: () => setTool("brush"), e: () => setTool("eraser"), p: () => setTool(outlined() ? "click" : "outline"),
  q: () => setSide(!app.positive),
  ">": () => objects.shape("grow"), "<": () => objects.shape("shrink"),
  f: () => { if (!$("refine").hidden) objects.again("refine"); }, F: () => objects.shape("fill"), K: () => objects.shape("largest"),
  n: objects.add, r: () => objects.rename(scene.chosen), c: () => objects.recolour(scene.chosen),
  k: () => objects.lock(scene.chosen), H: () => objects.hide(scene.chosen), m: objects.copyOn,
  "{": () => objects.move(scene.chosen, -1), "}": () => objects.move(scene.chosen, 1),
  Delete: erase, Backspace: erase,
  0: () => view.fit(), 1: () => zoom(1 / (view.scale * view.ratio)),
  h: () => { scene.hidden = !scene.hidden; view.draw(); },
  d: finish,
  "?": () => $("help").showModal(),
  Escape: () => {
    if (outlined()) cancelOutline();
    giveUp();
    hideMessage();
    overlay.focus();
  },
};

// Keys that write something else on some keyboards keep that meaning: an AZERTY keyboard writes 1 with Shift.
function doesOf(event) {
  const { key } = event;
  const does = { ...PRESSED, ...REPEATED };
  const found = does[key] ?? (event.shiftKey ? undefined : does[key.toLowerCase()]);
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  if (!found && event.shiftKey && digit) return () => giveLabel(Number(digit[1]) - 1);
  return event.repeat && !Object.values(REPEATED).includes(found) ? undefined : found;
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const on = event.target;
  const types = on instanceof HTMLInputElement && !["checkbox", "range"].includes(on.type);
  if ((types || on instanceof HTMLSelectElement) && event.key !== "Escape") return;
  if (on instanceof HTMLInputElement && /^(Arrow|Page|Home|End| $)/.test(event.key)) return;
  if (on instanceof HTMLElement && on.matches("button, summary") && (event.key === "Enter" || event.key === " ")) return;
  if (event.key === " ") {
    holdSpace(true);
    event.preventDefault();
    return;
  }
  const writes = event.getModifierState("AltGraph"); // brackets, on many keyboards
  if ((event.ctrlKey || event.metaKey || event.altKey) && !writes) {
    const wish = event.key.toLowerCase() === "y" || (event.key === "Z" && event.shiftKey) ? "redo" : "undo";
    if (!event.altKey && ["z", "y"].includes(event.key.toLowerCase())) {
      event.preventDefault();
      objects.again(wish);
    }
    return;
  }
  const does = doesOf(event);
  if (!does) return;
  event.preventDefault();
  does(event);
});

document.addEventListener("keyup", (event) => { if (event.key === " ") holdSpace(false); });
window.addEventListener("blur", () => holdSpace(false));

$("help-button").onclick = () => $("help").showModal();
$("help-close").onclick = () => $("help").close();

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
