// What is drawn over the masks: clicks, what is not answered yet, what is being drawn, and the crosshair.

import { COLOURS } from "./view.js";

const SIDES = { true: "#2fae5b", false: "#d8343f" }; // the object's, the background's

// In black below white, to be seen on any picture.
function twice(pen, path, wide, dash = []) {
  for (const [colour, width, gaps] of [["#000", wide + 2, []], ["#fff", wide, dash]]) {
    pen.setLineDash(gaps);
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.beginPath();
    path();
    pen.stroke();
  }
  pen.setLineDash([]);
}

// Not by colour alone: a plus on the object, a minus on the background.
function sign(pen, x, y, radius, positive) {
  pen.beginPath();
  pen.moveTo(x - radius / 2, y);
  pen.lineTo(x + radius / 2, y);
  if (positive) {
    pen.moveTo(x, y - radius / 2);
    pen.lineTo(x, y + radius / 2);
  }
  pen.stroke();
}

export function drawDot(pen, view, [row, col, positive], last) {
  const [x, y] = view.toScreen(row + 0.5, col + 0.5);
  const radius = last ? 6 : 4.5;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.fillStyle = SIDES[Boolean(positive)];
  pen.fill();
  pen.lineWidth = 1.5;
  pen.strokeStyle = "#fff";
  pen.stroke();
  sign(pen, x, y, radius, positive);
}

// A click is hollow until it is answered; strokes, boxes and outlines stay as they were drawn.
export function drawPending(pen, view, mark) {
  if (mark.rings) drawRings(pen, view, mark.rings);
  if (!mark.click) return drawDraft(pen, view, mark);
  const [row, col, positive] = mark.click;
  const [x, y] = view.toScreen(row + 0.5, col + 0.5);
  const radius = 7;
  for (const [colour, wide] of [["#fff", 5], [SIDES[positive], 2.5]]) {
    pen.lineWidth = wide;
    pen.strokeStyle = colour;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.stroke();
  }
  pen.lineWidth = 1.5;
  sign(pen, x, y, radius, positive);
}

// A box, a brush stroke or a scribble.
export function drawDraft(pen, view, draft) {
  if (draft.box) {
    const [x0, y0] = view.toScreen(...draft.box[0]), [x1, y1] = view.toScreen(...draft.box[1]);
    twice(pen, () => pen.rect(x0, y0, x1 - x0, y1 - y0), 1.5, [5, 5]);
  }
  if (!draft.stroke) return;
  pen.lineCap = pen.lineJoin = "round";
  const path = () => draft.stroke.forEach(([row, col], index) => {
    const [x, y] = view.toScreen(row, col);
    if (index) pen.lineTo(x, y); else { pen.moveTo(x, y); pen.lineTo(x + 0.01, y); }
  });
  if (draft.scribble) {
    for (const [colour, wide] of [["#fff", 5], [SIDES[draft.positive], 3]]) {
      pen.lineWidth = wide;
      pen.strokeStyle = colour;
      pen.beginPath();
      path();
      pen.stroke();
    }
  } else {
    pen.lineWidth = 2 * draft.radius * view.scale;
    pen.strokeStyle = draft.positive ? `rgba(${COLOURS[draft.colour]}, .6)` : "rgba(255, 255, 255, .55)";
    pen.beginPath();
    path();
    pen.stroke();
  }
}

export function drawBrush(pen, view, { at, radius }) {
  const [x, y] = view.toScreen(...at);
  twice(pen, () => pen.arc(x, y, Math.max(radius * view.scale, 1.5), 0, 7), 1);
}

function drawRings(pen, view, rings) {
  twice(pen, () => {
    for (const ring of rings) {
      ring.forEach((corner, index) => {
        const [x, y] = view.toScreen(...corner);
        if (index) pen.lineTo(x, y); else pen.moveTo(x, y);
      });
      pen.closePath();
    }
  }, 1.5);
}

export function drawCorners(pen, view, { rings, chosen }) {
  drawRings(pen, view, rings);
  rings.forEach((ring, number) => ring.forEach((corner, index) => {
    const [x, y] = view.toScreen(...corner);
    if (x < -9 || y < -9 || x > view.width + 9 || y > view.height + 9) return;
    const picked = chosen?.[0] === number && chosen[1] === index;
    const half = picked ? 6 : 3.5;
    pen.fillStyle = picked ? "#1f5fbf" : "#fff";
    pen.strokeStyle = picked ? "#fff" : "#000";
    pen.lineWidth = picked ? 2 : 1;
    pen.fillRect(x - half, y - half, 2 * half, 2 * half);
    pen.strokeRect(x - half, y - half, 2 * half, 2 * half);
  }));
}

export function drawCross(pen, view) {
  const [x, y] = view.toScreen(...view.cross);
  twice(pen, () => {
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      pen.moveTo(x + 5 * dx, y + 5 * dy);
      pen.lineTo(x + 22 * dx, y + 22 * dy);
    }
  }, 1);
}
