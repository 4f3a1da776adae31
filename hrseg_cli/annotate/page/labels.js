// Labels: from the folder's labels.txt or used before; chosen by key, by button or by name.

import { applyFilter, showFilter } from "./images.js";
import { act } from "./server.js";
import { $, app, element, overlay, scene, showMessage } from "./state.js";
import { COLOURS } from "./view.js";

const KEYED = 9; // labels with a key of their own, as many as there are digits

export function setLabels(labels, fixed) {
  app.labels = labels;
  app.fixed = fixed;
  $("known-labels").replaceChildren(...labels.map((value) => element("option", { value })));
  showLabels();
  showFilter();
}

// A name that was not used before becomes a label.
export function learn(name) {
  if (/^object( \d+)?$/.test(name) || app.labels.includes(name)) return;
  setLabels([...app.labels, name], app.fixed);
  applyFilter();
}

export function showLabels() {
  const name = scene.chosen?.name ?? app.label;
  $("labels-section").hidden = !app.labels.length;
  $("labels").replaceChildren(...app.labels.map((label, index) => {
    const swatch = element("span", { className: "swatch" });
    const colour = app.fixed ? index % COLOURS.length : scene.objects.find((one) => one.name === label)?.colour;
    if (colour !== undefined) swatch.style.background = `rgb(${COLOURS[colour]})`;
    const button = element("button", { onclick: () => giveLabel(index) }, swatch, label);
    if (index < KEYED) {
      const key = element("kbd", { textContent: index + 1 });
      key.setAttribute("aria-hidden", "true");
      button.append(key);
      button.title = `Shift ${index + 1}`;
    }
    button.dataset.focus = `label ${index}`;
    button.setAttribute("aria-pressed", String(label === name));
    return button;
  }));
}

// To the chosen object, and to those made next if the folder has a list.
export function giveLabel(index) {
  const name = app.labels[index];
  if (name === undefined) return;
  if (app.fixed || !scene.chosen) app.label = name;
  if (scene.chosen?.name === name) return;
  if (scene.chosen) act({ do: "rename", name }, { object: scene.chosen });
  else {
    showMessage(`the next object is a new ${name}`);
    showLabels();
  }
}

export function askLabel(one) {
  $("rename-text").value = one.name;
  $("rename").returnValue = "";
  $("rename").onclose = () => {
    const name = $("rename-text").value.trim();
    if ($("rename").returnValue === "ok" && name && name !== one.name) {
      if (app.fixed && app.labels.includes(name)) app.label = name;
      act({ do: "rename", name }, { object: one });
    }
    overlay.focus();
  };
  $("rename").showModal();
  $("rename-text").select();
}
