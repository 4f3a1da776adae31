// The images of the folder: the list, opening one, and what is done.

import { showObjects, showScene } from "./objects.js";
import { closeOutline } from "./outline.js";
import { dropPreview } from "./preview.js";
import { act, ask, hold, sent, startClock, waiting } from "./server.js";
import { $, app, element, hideMessage, remember, scene, showMessage, view } from "./state.js";
import { unpack } from "./view.js";

const STATES = { todo: "to do", work: "in progress", done: "done" };
let opening = new AbortController();
let before = async () => {}; // sends what is not sent yet, before another image is opened

export function beforeOpening(task) { before = task; }

async function load(id, signal, withPixels) {
  const pixels = async () => createImageBitmap(await ask(`images/${id}/pixels`, { signal, kind: "blob" }));
  let [found, bitmap] = await Promise.all([ask(`images/${id}`, { signal }), withPixels ? pixels() : null]);
  if (!withPixels && found.file !== app.picture?.file) bitmap = await pixels(); // its file was replaced
  return [found, bitmap];
}

// again: reload the same image, keeping zoom and position
export async function open(id, again = false) {
  dropPreview();
  if (!again) {
    closeOutline();
    await before();
    if (!await sent()) return; // the actions that wait belong to the image they were made on
    app.current = id;
    app.picture = app.draft = scene.draft = null;
    scene.objects = [];
    app.target = { key: null };
    view.show(null);
    showCurrent();
    showScene();
    showEmpty("loading");
  }
  opening.abort();
  const turn = opening = new AbortController();
  try {
    const [found, bitmap] = await load(id, turn.signal, !again);
    if (turn !== opening) return bitmap?.close();
    app.picture = { revision: found.revision, finished: found.finished, file: found.file };
    scene.objects = found.objects.map((one) => ({ ...one, mask: unpack(one.mask) }));
    if (app.target.key === null) app.target = { key: scene.objects.at(-1)?.key ?? null };
    if (bitmap) view.show(bitmap, ...found.size);
    showEmpty("");
    startClock();
    const broken = found.objects.find((one) => one.error);
    if (broken) showMessage(broken.error);
  } catch (error) {
    if (turn !== opening || error.name === "AbortError") return;
    if (again && error.status === 0) return hold(error); // what is shown stays
    app.picture = null;
    scene.objects = [];
    view.show(null);
    showEmpty(error.message ?? "cannot be shown");
  }
  showScene();
}

export function showEmpty(text) {
  $("empty").hidden = !text;
  $("empty").textContent = text;
}

// Another tab may have changed the image.
export async function lookAgain() {
  if (!app.picture || waiting()) return;
  const id = app.current;
  try {
    const { revision } = await ask(`images/${id}/revision`);
    if (id !== app.current || !app.picture || waiting() || revision === app.picture.revision) return;
    await open(id, true);
    showMessage("this image was changed in another tab; its new state is shown");
  } catch (error) {
    if (error.status === 0 || error.status === 401) hold(error);
    else showMessage(error.message);
  }
}

// ---- the list

export function showImages() {
  $("images").replaceChildren(...app.images.map((image) => {
    const button = element("button", { title: image.name, onclick: () => { closeList(); open(image.id); } });
    button.append(element("span", { className: "name", textContent: image.name.replace(/^images\//, "") }), element("span"));
    image.button = button;
    image.line = element("li", {}, button);
    showImage(image);
    return image.line;
  }));
  showFilter();
}

export function showImage(image) {
  const dot = image.button.lastChild;
  dot.className = `state ${image.state}`;
  dot.setAttribute("role", "img");
  dot.setAttribute("aria-label", STATES[image.state]);
  dot.title = STATES[image.state];
}

export function showProgress() {
  const done = app.images.filter((one) => one.state === "done").length;
  $("count").textContent = `${done} of ${app.images.length} done`;
  $("done").max = app.images.length || 1;
  $("done").value = done;
  let objects = 0, spent = 0;
  for (const image of app.images) {
    if (!image.spent) continue;
    objects += image.labels.length;
    spent += image.spent;
  }
  $("pace").textContent = objects ? `${spanText(spent / objects)}/object` : "";
}

export const spanText = (seconds) => (seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`);

function showCurrent() {
  for (const image of app.images) image.button.setAttribute("aria-current", String(image.id === app.current));
  applyFilter();
  const { name, button } = app.images[app.current];
  button.scrollIntoView({ block: "nearest" });
  $("title").textContent = name;
  document.title = `${name} - hrseg`;
  hideMessage();
  $("time").textContent = "";
  $("place").textContent = "";
  remember(`${app.place} last`, app.current);
}

// ---- which of them

export function showFilter() {
  const chosen = $("filter").value || "all";
  const choices = { all: "all", todo: "to do", work: "in progress", done: "done", open: "not done" };
  for (const label of app.labels) choices[`label ${label}`] = `with ${label}`;
  $("filter").replaceChildren(...Object.entries(choices).map(([value, text]) => element("option", { value, textContent: text })));
  $("filter").value = choices[chosen] ? chosen : "all";
}

function passes(image) {
  const wanted = $("filter").value;
  if (wanted.startsWith("label ")) return image.labels.includes(wanted.slice(6));
  return wanted === "all" || image.state === wanted || (wanted === "open" && image.state !== "done");
}

export function applyFilter() {
  for (const image of app.images) image.line.hidden = !passes(image);
}

// The next or previous image of those in the list.
export function turn(by) {
  let id = app.current ?? -1;
  do id += by; while (app.images[id] && !passes(app.images[id]));
  if (app.images[id]) open(id);
}

// Marks the image as done and opens the next one that is not; or takes the mark back.
export async function finish() {
  if (!app.picture) return;
  const finished = !app.picture.finished;
  const id = app.current;
  await before();
  act({ do: "finish", finished }, { object: { key: null } });
  if (!finished || !await sent() || app.current !== id || !app.picture?.finished) return;
  const others = [...app.images.slice(id + 1), ...app.images.slice(0, id)];
  const next = others.find((image) => image.state !== "done");
  if (next) open(next.id);
  else showMessage("all images are done");
}

// After a change of the image shown.
export function showChange() {
  const image = app.images[app.current];
  if (app.picture) {
    const worked = scene.objects.length ? "work" : "todo";
    image.state = app.picture.finished ? "done" : worked;
    image.labels = scene.objects.map((one) => one.name);
    image.spent = scene.objects.reduce((sum, one) => sum + one.spent, 0);
  }
  showImage(image);
  showProgress();
  showObjects();
}

// ---- on small screens the list lies over the page

function closeList() {
  document.body.classList.remove("files");
  $("files-open").setAttribute("aria-expanded", "false");
}
$("files-open").onclick = () => {
  const open = document.body.classList.toggle("files");
  $("files-open").setAttribute("aria-expanded", String(open));
  if (open) $("files-close").focus();
};
$("files-close").onclick = () => {
  closeList();
  $("files-open").focus();
};
$("filter").onchange = applyFilter;
$("previous").onclick = () => turn(-1);
$("next").onclick = () => turn(1);
$("finish").onclick = finish;
