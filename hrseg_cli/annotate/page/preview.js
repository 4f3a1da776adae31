// What a click at the pointer would give, shown when the pointer rests and the model is quick enough.

import { ask, waiting } from "./server.js";
import { $, app, scene, view } from "./state.js";
import { unpack } from "./view.js";

const REST = 150; // ms
const IN_TIME = 0.25; // seconds of the model's last answer

let timer = 0;
let asked = null;
let quick = false;

export function tookTime(seconds) { quick = seconds <= IN_TIME; }

export function dropPreview() {
  clearTimeout(timer);
  asked?.abort();
  asked = null;
  if (!scene.preview) return;
  scene.preview = null;
  view.draw();
}

export function rest(at, positive) {
  const [row, col] = at.map(Math.floor);
  if (scene.preview?.row === row && scene.preview.col === col && scene.preview.positive === positive) return;
  dropPreview();
  if (!quick || !$("preview").checked || !app.picture || !view.holds(row, col) || scene.chosen?.locked) return;
  timer = setTimeout(() => show(row, col, positive), REST);
}

async function show(row, col, positive) {
  if (waiting() || !app.picture || app.draft) return;
  const turn = asked = new AbortController();
  const wish = new URLSearchParams({ row, col, positive: Number(positive), revision: app.picture.revision });
  if (app.target.key !== null) wish.set("object", app.target.key);
  const began = performance.now();
  try {
    const mask = await ask(`images/${app.current}/preview?${wish}`, { signal: turn.signal });
    if (turn !== asked) return;
    scene.preview = { row, col, positive, mask: unpack(mask), colour: scene.chosen?.colour };
    view.draw();
    if (performance.now() - began > 4000 * IN_TIME) quick = false;
  } catch {
    // Only a preview: the click itself will tell.
  }
}
