// Requests, and the outbox: the annotator's actions, sent one at a time. What the server has not saved stays in it.

import { $, app, hideMessage, scene, showMessage, view } from "./state.js";

let token = location.hash.slice(1);

export class Refusal extends Error {
  constructor(status, { error, saved = false }) {
    super(error);
    Object.assign(this, { status, saved });
  }
}

export async function ask(path, { wish, signal, kind = "json" } = {}) {
  const options = { headers: { Authorization: `Bearer ${token}` }, signal };
  if (wish) Object.assign(options, { method: "POST", body: JSON.stringify(wish) });
  let answer;
  try {
    answer = await fetch(`api/${path}`, options);
    if (answer.ok) return await answer[kind]();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, { error: "hrseg does not respond. Is it still running in the terminal?" });
  }
  throw new Refusal(answer.status, await answer.json().catch(() => ({ error: `the server returned ${answer.status}` })));
}

const outbox = []; // {image, wish, object, ident, mark, asked}
const listeners = { answered: null, dropped: null, changed: null };
let sending = null; // while the outbox is being sent
let dropping = false; // while the server's state is loaded again
let held = null; // the error that keeps the outbox from being sent
let late = 0; // of the next retry
let since = performance.now(); // of the last action: the annotator's time on the next one

export function listen(some) { Object.assign(listeners, some); }
export const waiting = () => outbox.length + Number(dropping);
export const isHeld = () => held !== null;
export function startClock() { since = performance.now(); }

// mark: what is drawn until the answer is there.
export function act(wish, { object = app.target, mark = null } = {}) {
  if (!app.picture) return;
  const now = performance.now();
  const spent = Math.round(Math.min(now - since, 60_000) / 100) / 10; // a longer pause was a break
  since = now;
  const ident = [...crypto.getRandomValues(new Uint32Array(3))].map((part) => part.toString(36)).join("-");
  outbox.push({ image: app.current, wish: { ...wish, spent, ident }, object, mark, asked: now });
  show();
  if (!held) send();
}

function show() {
  scene.pending = outbox.filter((one) => one.image === app.current && one.mark).map((one) => one.mark);
  $("held").hidden = !held;
  if (held) {
    const actions = outbox.length === 1 ? "1 action is" : `${outbox.length} actions are`;
    const text = `${held.message} ${outbox.length ? `${actions} not saved yet.` : ""}`;
    if ($("held-text").textContent !== text) $("held-text").textContent = text; // read aloud once, not at each retry
    $("discard").hidden = !outbox.length;
  }
  listeners.changed();
  view.draw();
}

export function send() {
  sending ??= sendAll().finally(() => { sending = null; });
  return sending;
}

async function sendAll() {
  clearTimeout(late);
  do {
    const one = outbox[0];
    try {
      if (!one) await ask("folder"); // a retry without an action: is it back?
      else {
        const wish = { ...one.wish, object: one.object.key, revision: app.picture.revision };
        const answer = await ask(`images/${one.image}`, { wish });
        outbox.shift();
        if (answer.object) one.object.key = answer.object.key;
        held = null;
        hideMessage();
        listeners.answered(answer, one);
        if (answer.note) showMessage(answer.note);
      }
      held = null;
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (keeps(error)) {
        hold(error);
        return;
      }
      // The other actions were meant for what the annotator saw, which is no longer the current state.
      outbox.length = 0;
      held = null;
      dropping = true;
      await listeners.dropped(error).finally(() => { dropping = false; });
    }
    show();
  } while (outbox.length);
}

// Whether the action may still be saved later: the server is away, was started anew, or has no room.
const keeps = ({ status, saved }) => !saved && [0, 401, 502, 503, 504, 507].includes(status);

export function hold(error) {
  held = error;
  clearTimeout(late);
  late = setTimeout(send, 3000);
  show();
}

// Until all is sent; false if something cannot be.
export async function sent() {
  while (sending) await sending;
  return !outbox.length;
}

$("retry").onclick = send;
$("discard").onclick = async () => {
  if (!confirm(`Discard what is not saved (${outbox.length})?`)) return;
  clearTimeout(late);
  while (sending) await sending;
  outbox.length = 0;
  held = null;
  show();
  await listeners.dropped(null);
};

// A server that was started again has another token. Its address may be opened in this tab or in another one.
const tabs = new BroadcastChannel("hrseg");
export function announce() { tabs.postMessage({ place: app.place, token }); }
tabs.onmessage = ({ data }) => {
  if (data.place !== app.place || data.token === token) return;
  token = data.token;
  history.replaceState(null, "", `#${token}`);
  if (held) send();
};
window.addEventListener("hashchange", async () => {
  token = location.hash.slice(1);
  try {
    const { place } = await ask("folder");
    if (place !== app.place) location.reload();
    else if (held) send();
  } catch (error) {
    showMessage(error.message);
  }
});
