// Starts the page, and connects its parts. Actions go to the server one at a time; it answers with what has changed.

import "./export.js";
import { applyFilter, beforeOpening, lookAgain, open, showEmpty, showImages, showProgress } from "./images.js";
import "./keys.js";
import { setLabels } from "./labels.js";
import { alsoUnsaved, isUnsaved, showState, take } from "./objects.js";
import { followOutline } from "./outline.js";
import { radius, showBrush } from "./pointer.js";
import { tookTime } from "./preview.js";
import { act, announce, ask, listen } from "./server.js";
import { $, app, overlay, remember, remembered, scene, showMessage, view } from "./state.js";

const timeText = (seconds, whole) => `model ${seconds.toFixed(2)} s, screen ${(whole / 1000).toFixed(2)} s`;

listen({
  answered(answer, { wish, asked }) {
    take(answer);
    followOutline();
    const clicked = wish.do === "click" || wish.do === "scribble";
    if (clicked) tookTime(answer.object.seconds);
    $("time").textContent = clicked ? timeText(answer.object.seconds, performance.now() - asked) : "";
  },
  async dropped(error) { // null: given up by the annotator
    if (!error || error.saved || [404, 409].includes(error.status) || error.status >= 500) await open(app.current, true);
    if (error) showMessage(error.message);
  },
  changed: showState,
});

// ---- sliders

let later = null; // a threshold, sent once the slider stops moving
function sendThreshold() {
  if (!later) return;
  const { one, threshold, timer } = later;
  clearTimeout(timer);
  later = null;
  act({ do: "threshold", threshold, apart: $("apart").checked }, { object: one });
}
beforeOpening(sendThreshold);
alsoUnsaved(() => later !== null);

$("threshold").oninput = () => {
  const threshold = Number($("threshold").value), one = scene.chosen;
  $("threshold-text").textContent = threshold.toFixed(2);
  clearTimeout(later?.timer);
  later = one && { one, threshold, timer: setTimeout(sendThreshold, 120) };
  showState();
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

const LIGHT = ["brightness", "contrast"];
function showLight() {
  for (const name of LIGHT) $(`${name}-text`).textContent = `${$(name).value} %`;
  $("picture").style.filter = LIGHT.map((name) => `${name}(${$(name).value}%)`).join(" ");
}
for (const name of LIGHT) $(name).oninput = showLight;
$("light-reset").onclick = () => {
  for (const name of LIGHT) $(name).value = 100;
  showLight();
};

for (const name of ["apart", "preview"]) {
  if (remembered(name)) $(name).checked = remembered(name) === "true";
  $(name).onchange = () => remember(name, $(name).checked);
}
for (const button of document.querySelectorAll(".cancel")) button.onclick = () => button.closest("dialog").close();

// ---- start

async function start() {
  $("opacity").oninput();
  $("size").oninput();
  showLight();
  try {
    const folder = await ask("folder");
    Object.assign(app, { images: folder.images, place: folder.place, folder: folder.folder });
    $("folder").textContent = $("folder").title = folder.folder;
    $("model").textContent = `${folder.model}, ${folder.protocol}`;
    $("refine").hidden = !folder.refiner;
    $("hint-files").textContent = `Every change is saved to ${folder.files} in ${folder.folder}.`;
    showImages();
    setLabels(folder.labels, folder.fixed);
    applyFilter();
    showProgress();
    announce();
    const undone = Math.max(0, app.images.findIndex((image) => image.state !== "done"));
    const wanted = [sessionStorage.getItem("image"), remembered(`${app.place} last`), folder.last];
    await open(Number(wanted.find((one) => one !== null && app.images[one]) ?? undone));
    overlay.focus({ focusVisible: false });
  } catch (error) {
    showEmpty(error.message);
  }
}

window.addEventListener("focus", lookAgain);
document.addEventListener("visibilitychange", () => { if (!document.hidden) lookAgain(); });
window.addEventListener("pagehide", () => { if (app.current !== null) sessionStorage.setItem("image", app.current); });
window.addEventListener("beforeunload", (event) => {
  sendThreshold();
  if (isUnsaved()) event.preventDefault();
});
start();
