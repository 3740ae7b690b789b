// @ts-check
// Heat maps and line charts of the pages of adapters. They follow page.js.
"use strict";

// ---- colours ----

/** Viridis (van der Walt and Smith 2015, CC0) at nine places: as bright as the value is high, for all kinds of eyes and in grey. */
const VIRIDIS = [
  [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37],
];

/** @param {number} share 0 to 1 @returns {number[]} red, green, blue */
function scaleColour(share) {
  const place = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  const below = Math.min(VIRIDIS.length - 2, Math.floor(place));
  return VIRIDIS[below].map((low, i) => Math.round(low + (VIRIDIS[below + 1][i] - low) * (place - below)));
}

/** The scale with its numbers. @param {number} max @param {string} title */
function colourLegend(max, title) {
  const canvas = make("canvas", { width: 128, height: 1, "aria-hidden": "true" });
  paint(canvas, Array.from({ length: 128 }, (_, i) => i / 127), 1);
  const numbers = make("div", { className: "ends" }, ...[0, max / 2, max].map((value) => make("span", {}, figure(value))));
  return make("div", { className: "scale" }, make("span", { className: "note" }, title), make("div", {}, canvas, numbers));
}

/** A pixel a value; what is no number stays empty. @param {HTMLCanvasElement} canvas @param {(number|null)[]} values @param {number} max */
function paint(canvas, values, max) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(canvas.width, canvas.height);
  values.forEach((value, i) => {
    if (value !== null && Number.isFinite(value)) image.data.set([...scaleColour(max > 0 ? value / max : 0), 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
}

// ---- heat maps ----

/**
 * Values by rows and columns. `about` is for those who do not see the picture.
 * @typedef {{title: string, about: string, rows: string[], columns: string[], rowTitle: string, columnTitle: string,
 *   values: (number|null)[], max: number, isWide?: boolean}} HeatMap
 */

/** A heat map whose values are read by pointer or by arrow keys. @param {HeatMap} map */
function drawHeatMap(map) {
  const [numRows, numColumns] = [map.rows.length, map.columns.length];
  const canvas = make("canvas", { width: numColumns, height: numRows });
  paint(canvas, map.values, map.max);
  const mark = make("div", { className: "mark", hidden: true });
  const plot = make("div", { className: "cells", tabIndex: 0, role: "img", "aria-label": `${map.title}: ${map.about} Arrow keys read values.` }, canvas, mark);
  if (map.isWide) {
    plot.style.height = `${22 * numRows}px`;
    plot.style.minWidth = `${3 * numColumns}px`;
  } else plot.style.aspectRatio = `1 / ${Math.min(1, Math.max(0.4, numRows / numColumns))}`;

  const at = make("output", { htmlFor: "" });
  let [row, column] = [-1, -1];
  const show = (/** @type {number} */ toRow, /** @type {number} */ toColumn) => {
    [row, column] = [Math.min(numRows - 1, Math.max(0, toRow)), Math.min(numColumns - 1, Math.max(0, toColumn))];
    const place = { left: column / numColumns, top: row / numRows, width: 1 / numColumns, height: 1 / numRows };
    for (const [name, share] of Object.entries(place)) mark.style.setProperty(name, `${100 * share}%`);
    mark.hidden = false;
    at.textContent = `${map.rowTitle} ${map.rows[row]}, ${map.columnTitle} ${map.columns[column]}: ${figure(map.values[row * numColumns + column])}`;
  };
  const hide = () => {
    mark.hidden = true;
    at.textContent = "";
  };
  plot.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    const box = plot.getBoundingClientRect();
    show(Math.floor(((event.clientY - box.top) / box.height) * numRows), Math.floor(((event.clientX - box.left) / box.width) * numColumns));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const by = /** @type {Record<string, number[]>} */ ({ ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] })[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    show(mark.hidden ? 0 : row + by[0], mark.hidden ? 0 : column + by[1]);
  });

  const axis = (/** @type {string} */ side, /** @type {string[]} */ labels, /** @type {string} */ title) => {
    const ends = labels.length > 1 ? [labels[0], title, labels[labels.length - 1]] : [labels[0]];
    const shown = map.isWide && side === "rows" ? labels : ends;
    return make("div", { className: `axis ${side}`, "aria-hidden": "true" }, ...shown.map((label) => make("span", {}, label)));
  };
  const grid = make("div", { className: "plot-grid" }, axis("rows", map.rows, map.rowTitle), plot, axis("columns", map.columns, map.columnTitle));
  const element = make("figure", { className: map.isWide ? "heat wide" : "heat" }, make("figcaption", {}, map.title), grid, at);
  if (map.isWide) element.style.maxWidth = `${80 + 60 * numColumns}px`; // a few columns are not as wide as the page
  return element;
}

// ---- lines ----

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} name @param {Record<string, string|number>} attributes @param {...(Node|string)} children */
function makeSvg(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  element.append(...children);
  return element;
}

/**
 * One curve among others of its kind, from 1 on. @param {string} about for those who do not see it
 * @param {number[]} chosen @param {number[][]} others @param {boolean} isLog
 */
function drawCurve(about, chosen, others, isLog) {
  const [width, height, left, bottom, top] = [460, 220, 46, 22, 8];
  const all = [chosen, ...others].flat().filter((value) => Number.isFinite(value) && value > 0);
  const high = Math.max(...all, 0) || 1;
  const low = isLog ? Math.max(Math.min(...all), high * 1e-5) : 0;
  const length = Math.max(2, ...[chosen, ...others].map((curve) => curve.length));
  const x = (/** @type {number} */ k) => left + ((width - left - 8) * k) / (length - 1);
  const share = (/** @type {number} */ value) => (isLog ? Math.log(Math.max(value, low) / low) / (Math.log(high / low) || 1) : value / high);
  const y = (/** @type {number} */ value) => height - bottom - (height - bottom - top) * share(value);
  const path = (/** @type {number[]} */ curve) => curve.map((value, k) => `${k ? "L" : "M"}${x(k).toFixed(1)} ${y(value ?? 0).toFixed(1)}`).join("");
  const ticks = isLog ? [low, Math.sqrt(low * high), high] : [0, high / 2, high];
  const lines = ticks.flatMap((tick) => [
    makeSvg("line", { class: "grid", x1: left, x2: width - 8, y1: y(tick), y2: y(tick) }),
    makeSvg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, figure(Number(tick.toPrecision(3)))),
  ]);
  const numbers = [...new Set([1, Math.ceil(length / 2), length])];
  const labels = numbers.map((k) => makeSvg("text", { x: x(k - 1), y: height - 6, "text-anchor": k === length ? "end" : "middle" }, String(k)));
  const dots = chosen.map((value, k) => {
    const dot = makeSvg("circle", { class: "chosen", cx: x(k), cy: y(value ?? 0), r: chosen.length > 40 ? 1.5 : 3 });
    dot.append(makeSvg("title", {}, `${k + 1}: ${figure(value)}`));
    return dot;
  });
  return makeSvg("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": about }, ...lines, ...labels,
    makeSvg("path", { class: "others", d: others.map(path).join("") }), makeSvg("path", { class: "chosen", d: path(chosen) }), ...dots);
}

// ---- choices ----

/** @param {string} id @param {string} title @param {[string, string][]} options value and text @param {(value: string) => void} onChange */
function chooser(id, title, options, onChange) {
  const select = make("select", { id }, ...options.map(([value, text]) => make("option", { value }, text)));
  select.addEventListener("change", () => onChange(select.value));
  return [make("label", { htmlFor: id }, title), select];
}

/** @param {string} id @param {string} title @param {(isOn: boolean) => void} onChange */
function checkbox(id, title, onChange) {
  const box = make("input", { type: "checkbox", id });
  box.addEventListener("change", () => onChange(box.checked));
  return make("label", { className: "check", htmlFor: id }, box, title);
}
