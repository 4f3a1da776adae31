// The export dialog: a zip of masks, for other programs.

import { ask, isHeld, sent } from "./server.js";
import { $, app, element } from "./state.js";

const KINDS = ["masks", "instances", "coco", "yolo", "yolo_boxes", "labelme"];

$("export-button").onclick = () => {
  $("export-text").textContent = "";
  $("export").showModal();
};

$("export-ok").onclick = async () => {
  const kinds = KINDS.filter((kind) => $("export").querySelector(`[name=${kind}]`).checked);
  if (!kinds.length) {
    $("export-text").textContent = "choose at least one";
    return;
  }
  $("export-ok").disabled = true;
  $("export-text").textContent = "packing";
  try {
    if (!await sent() || isHeld()) throw new Error("some actions are not saved yet");
    const done = Number($("export-done").checked);
    const zip = await ask(`export?kinds=${kinds}&done=${done}`, { kind: "blob" });
    const link = element("a", { href: URL.createObjectURL(zip), download: `${app.folder}.zip` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    $("export").close();
  } catch (error) {
    $("export-text").textContent = error.message;
  } finally {
    $("export-ok").disabled = false;
  }
};
