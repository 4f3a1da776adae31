// What the page knows, and what every part of it needs. The server holds all state that matters.

import { View } from "./view.js";

export const $ = (id) => document.getElementById(id);
export const overlay = $("overlay");
export const view = new View($("picture"), overlay);
export const scene = view.scene;

export const app = {
  place: "", // tells the folder from others
  images: [], // {id, name, state, labels, spent}
  labels: [],
  fixed: false, // whether labels.txt lists them
  current: null, // id of the image shown
  picture: null, // {revision, finished, file} of the image shown; null while it loads
  target: { key: null }, // the object of the next action; a new one gets its key from the server
  label: null, // of new objects, where the folder has a list of labels
  tool: "click",
  positive: true, // what a left click or a tap means
  draft: null, // the box, stroke or corner being drawn, by pointer or keyboard
  hidden: new Set(), // "image key" of hidden objects
};

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

let timer = 0;
export function showMessage(text) {
  $("message").textContent = text;
  $("message").hidden = false;
  clearTimeout(timer);
  timer = setTimeout(hideMessage, 12000);
}
export function hideMessage() { $("message").hidden = true; }

// Kept by the browser for this address; it may be full or switched off.
export function remember(name, value) {
  try { localStorage.setItem(`hrseg ${name}`, value); } catch { /* then not */ }
}
export function remembered(name) {
  try { return localStorage.getItem(`hrseg ${name}`); } catch { return null; }
}
