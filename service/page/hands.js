// Hands on the easel: mouse, touch, pen, and the arrow keys.

const STEP = 1 / 28; // of a side, for one press of an arrow key
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Draw with whatever points. */
export function pointers(easel) {
  const surface = easel.paint;
  let drawing = null;

  const place = (event) => {
    const box = surface.getBoundingClientRect();
    return {
      x: (event.clientX - box.left) / box.width,
      y: (event.clientY - box.top) / box.height,
      pressure: event.pointerType === "pen" ? event.pressure : 0.5,
    };
  };

  surface.addEventListener("pointerdown", (event) => {
    if (drawing !== null || event.button !== 0) return;
    drawing = event.pointerId;
    surface.setPointerCapture(drawing);
    easel.begin(place(event));
  });
  surface.addEventListener("pointermove", (event) => {
    if (event.pointerId !== drawing) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const each of passed.length ? passed : [event]) easel.extend(place(each));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    surface.addEventListener(end, (event) => {
      if (event.pointerId !== drawing) return;
      drawing = null;
      easel.finish();
    });
  }
}

/** Draw with the keyboard: arrows move, space puts the brush down or lifts it. */
export function keys(easel, pointer) {
  const surface = easel.paint;
  const at = { x: 0.5, y: 0.5, pressure: 0.5 };
  let down = false;

  const mark = () => {
    pointer.setAttribute("data-down", down);
    // Style attributes are forbidden to the page's markup, not to its script.
    pointer.style.left = `${at.x * 100}%`;
    pointer.style.top = `${at.y * 100}%`;
  };
  const lift = () => {
    if (down) easel.finish();
    down = false;
  };

  surface.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const way = ARROWS[event.key];
    if (way) {
      at.x = Math.min(1, Math.max(0, at.x + way[0] * STEP));
      at.y = Math.min(1, Math.max(0, at.y + way[1] * STEP));
      if (down) easel.extend({ ...at });
    } else if (event.key === " ") {
      if (down) lift();
      else {
        down = true;
        easel.begin({ ...at });
      }
    } else return;
    event.preventDefault();
    pointer.hidden = false;
    mark();
  });
  for (const other of ["blur", "pointerdown"]) {
    surface.addEventListener(other, () => {
      lift();
      pointer.hidden = true;
    });
  }
}
