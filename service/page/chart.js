// A line chart in SVG: shares of the range over steps, on a logarithmic axis.

import { formatShare } from "./verdict.js";

const HEIGHT = 220;
const DIGIT = 7; // about the width of one
const MARGIN = { left: 46, right: 12, top: 12, bottom: 26 };

/** Create an SVG element. */
function element(tag, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

/**
 * Draw how far each step is from the first, how far it moved, and how far another picture would be.
 *
 * @param {SVGSVGElement} svg
 * @param {{step: number, from: number, by: number | null}[]} points ascending; from and by as shares of the range
 * @param {{steps: number, other: number}} axes number of steps; distance between two pictures
 */
export function drawChart(svg, points, { steps, other }) {
  const width = Math.max(280, svg.clientWidth);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  const top = 1.15 * Math.max(other, ...points.map((point) => point.from), 0.01);
  const [innerWidth, innerHeight] = [width - MARGIN.left - MARGIN.right, HEIGHT - MARGIN.top - MARGIN.bottom];
  const x = (step) => MARGIN.left + (innerWidth * Math.log(step + 1)) / Math.log(steps + 1);
  const y = (share) => MARGIN.top + innerHeight * (1 - share / top);
  const right = width - MARGIN.right;
  const parts = [];
  for (const share of [0, top / 2.3, top / 1.15]) {
    parts.push(element("path", { class: "grid", d: `M${MARGIN.left} ${y(share)}H${right}` }));
    const label = share ? formatShare(share) : "0";
    parts.push(element("text", { x: MARGIN.left - 6, y: y(share) + 4, "text-anchor": "end" }, label));
  }
  let free = width + DIGIT; // where the label to the right begins
  for (const step of [1000, 300, 100, 30, 10, 3, 1, 0].filter((tick) => tick <= steps)) {
    const label = step.toLocaleString("en");
    const size = DIGIT * label.length;
    const centre = Math.min(x(step), width - size / 2);
    if (centre + size / 2 + DIGIT > free) continue;
    free = centre - size / 2;
    parts.push(element("text", { x: centre, y: HEIGHT - 8, "text-anchor": "middle" }, label));
  }
  if (other) parts.push(element("path", { class: "other", d: `M${MARGIN.left} ${y(other)}H${right}` }));
  const line = (name) => points.filter((point) => point[name] !== null).map((point) => `${x(point.step)} ${y(point[name])}`);
  for (const name of ["by", "from"]) {
    if (line(name).length > 1) parts.push(element("path", { class: name, d: `M${line(name).join("L")}` }));
  }
  const last = points.at(-1);
  if (last) parts.push(element("circle", { class: "from", cx: x(last.step), cy: y(last.from), r: 4 }));
  svg.replaceChildren(...parts);
}
