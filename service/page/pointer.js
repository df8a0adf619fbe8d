// Input for the drawing canvas: mouse, touch, pen and keyboard.

const STEP = 1 / 28; // fraction of a side per press of an arrow key
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Draw with mouse, touch or pen. */
export function drawWithPointer(canvas) {
  const surface = canvas.paint;
  let activePointer = null;

  const position = (event) => {
    const box = surface.getBoundingClientRect();
    return {
      x: (event.clientX - box.left) / box.width,
      y: (event.clientY - box.top) / box.height,
      pressure: event.pointerType === "pen" ? event.pressure : 0.5,
    };
  };

  surface.addEventListener("pointerdown", (event) => {
    if (activePointer !== null || event.button !== 0) return;
    activePointer = event.pointerId;
    surface.setPointerCapture(activePointer);
    canvas.begin(position(event));
  });
  surface.addEventListener("pointermove", (event) => {
    if (event.pointerId !== activePointer) return;
    // Browsers merge fast movements into one event; the merged ones make a smoother line.
    const merged = event.getCoalescedEvents?.() ?? [];
    for (const each of merged.length ? merged : [event]) canvas.extend(position(each));
  });
  for (const type of ["pointerup", "pointercancel"]) {
    surface.addEventListener(type, (event) => {
      if (event.pointerId !== activePointer) return;
      activePointer = null;
      canvas.finish();
    });
  }
}

/** Draw with the keyboard: arrow keys move the brush, space lowers or lifts it. `cursor` marks its position. */
export function drawWithKeyboard(canvas, cursor) {
  const surface = canvas.paint;
  const point = { x: 0.5, y: 0.5, pressure: 0.5 };
  let down = false;

  const showCursor = () => {
    cursor.setAttribute("data-down", down);
    // The content policy forbids style attributes in markup, not from scripts.
    cursor.style.left = `${point.x * 100}%`;
    cursor.style.top = `${point.y * 100}%`;
  };
  const lift = () => {
    if (down) canvas.finish();
    down = false;
  };

  surface.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const direction = ARROWS[event.key];
    if (direction) {
      point.x = Math.min(1, Math.max(0, point.x + direction[0] * STEP));
      point.y = Math.min(1, Math.max(0, point.y + direction[1] * STEP));
      if (down) canvas.extend({ ...point });
    } else if (event.key === " ") {
      if (down) lift();
      else {
        down = true;
        canvas.begin({ ...point });
      }
    } else return;
    event.preventDefault();
    cursor.hidden = false;
    showCursor();
  });
  for (const type of ["blur", "pointerdown"]) {
    surface.addEventListener(type, () => {
      lift();
      cursor.hidden = true;
    });
  }
}
