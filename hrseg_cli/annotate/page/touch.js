// Two fingers zoom and move the image.

import { view } from "./state.js";

const fingers = new Map(); // pointer -> [x, y] on the stage
let pinching = false; // until the last finger is lifted, so that it does not click

const centre = () => {
  const [[x, y], [u, v]] = [...fingers.values()];
  return [(x + u) / 2, (y + v) / 2, Math.hypot(x - u, y - v)];
};

export const pinch = {
  // Each tells whether the event is part of a gesture of several fingers.
  down(event) {
    if (event.pointerType !== "touch") return false;
    if (event.isPrimary) {
      fingers.clear();
      pinching = false;
    }
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    pinching ||= fingers.size > 1;
    return pinching;
  },
  move(event) {
    if (!fingers.has(event.pointerId)) return false;
    if (fingers.size !== 2) {
      fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
      return pinching;
    }
    const [x, y, apart] = centre();
    fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
    const [u, v, wider] = centre();
    if (view.bitmap) {
      view.pan(u - x, v - y);
      if (apart > 0 && wider > 0) view.zoomTo((view.scale * wider) / apart, u, v);
    }
    return true;
  },
  up(event) {
    fingers.delete(event.pointerId);
  },
};
