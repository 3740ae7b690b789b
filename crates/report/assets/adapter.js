// @ts-check
// The page of an adapter: its layers as a map, the chosen one in figures, subspaces against another adapter, the sortable table.
"use strict";

/**
 * @typedef {{module: string, about: string, measures: Record<string, number>, singular_values: number[]}} Module
 * @typedef {{title: string, blocks: [string, number][], columns: string[], rows: {kind: string, cells: (number|null)[]}[]}} LayerMap
 * @typedef {{i: number[], j: number[], input: string, output: string, random_input: number, random_output: number, cosine: number|null}} LayerPhi
 * @typedef {{i: number[], j: number[], input: (number|null)[], output: (number|null)[], random_input: (number|null)[],
 *   random_output: (number|null)[]}} MeanPhi
 * @typedef {{this: string, other: string, mean: MeanPhi, layers: Record<string, LayerPhi>}} Subspaces
 * @typedef {{modules: Module[], maps: LayerMap[], subspaces: Subspaces|null}} Adapter
 */

/** What can be measured, in the order in which it is offered. @type {[string, string][]} */
const MEASURES = [
  ["share", "Share of the weight"],
  ["spectral", "Spectral norm"],
  ["frobenius", "Frobenius norm"],
  ["stable_rank", "Stable rank"],
  ["effective_rank", "Effective rank"],
  ["amplification", "Amplification"],
  ["phi_input", "φ input side"],
  ["phi_output", "φ output side"],
];

/** Of the adapter that is shown, and of what is chosen. */
class AdapterView {
  /** @param {Adapter} adapter */
  constructor(adapter) {
    this.adapter = adapter;
    this.measures = MEASURES.filter(([key]) => adapter.modules.some(({ measures }) => measures[key] !== undefined));
    this.measure = this.measures[0]?.[0] ?? "spectral";
    this.chosen = this.largest();
    this.isLog = false;
    this.isStretched = false;
    /** @type {Map<number, HTMLElement>} */
    this.cells = new Map();
  }

  /** The layer of the largest value. */
  largest() {
    const value = (/** @type {Module} */ { measures }) => measures[this.measure] ?? -1;
    return this.adapter.modules.reduce((best, module, i, all) => (value(module) > value(all[best]) ? i : best), 0);
  }

  start() {
    const controls = document.getElementById("map-controls");
    controls?.append(...chooser("measure", "Colour by", this.measures, (measure) => {
      this.measure = measure;
      this.drawMaps();
    }));
    this.drawMaps();
    const layers = this.adapter.modules.map(({ module }, i) => /** @type {[string, string]} */ ([String(i), module]));
    const [label, select] = chooser("chosen-layer", "Layer", layers, (index) => this.choose(Number(index)));
    this.select = select;
    this.about = make("p", { className: "note" });
    this.figures = make("dl", { className: "facts" });
    this.curve = make("div", { className: "curve-place" });
    const log = checkbox("log-values", "Log", (isOn) => {
      this.isLog = isOn;
      this.drawLayer();
    });
    document.getElementById("layer")?.append(
      make("div", { className: "bar layer-bar" }, make("h3", {}, label), select),
      make("div", { className: "columns" }, make("div", {}, this.about, this.figures),
        make("figure", { className: "singular-values" }, make("figcaption", { className: "bar" }, "Singular values, among those of all layers", log), this.curve)));
    if (this.adapter.subspaces) {
      document.getElementById("subspace-controls")?.append(checkbox("stretch", "Colours up to the largest value", (isOn) => {
        this.isStretched = isOn;
        this.drawSubspaces();
      }));
    }
    this.choose(this.chosen);
  }

  /** @param {number} index */
  choose(index) {
    this.cells.get(this.chosen)?.removeAttribute("aria-current");
    this.cells.get(index)?.setAttribute("aria-current", "true");
    this.chosen = index;
    this.select.value = String(index);
    this.drawLayer();
    if (this.adapter.subspaces) this.drawSubspaces();
  }

  drawMaps() {
    const values = this.adapter.modules.map(({ measures }) => measures[this.measure] ?? null);
    const max = /** @type {number} */ (values.reduce((most, value) => Math.max(most ?? 0, value ?? 0), 0));
    const title = MEASURES.find(([key]) => key === this.measure)?.[1] ?? "";
    this.cells.clear();
    const maps = this.adapter.maps.map((map) => this.layerMap(map, values, max, title));
    document.getElementById("maps")?.replaceChildren(colourLegend(max, title), ...maps);
    this.cells.get(this.chosen)?.setAttribute("aria-current", "true");
  }

  /** @param {LayerMap} map @param {(number|null)[]} values @param {number} max @param {string} title */
  layerMap(map, values, max, title) {
    const blocks = make("tr", {}, make("td"), ...map.blocks.map(([block, numColumns]) =>
      make(block ? "th" : "td", { scope: "colgroup", colSpan: numColumns }, block)));
    const columns = make("tr", {}, make("td"), ...map.columns.map((column) => make(column ? "th" : "td", { scope: "col" }, column)));
    /** @type {(HTMLElement|null)[][]} */
    const grid = map.rows.map(({ cells }) => cells.map((index) => (index === null ? null : this.cell(index, values[index], max, title))));
    const rows = map.rows.map(({ kind }, r) => make("tr", {}, make("th", { scope: "row" }, kind), ...grid[r].map((cell) => make("td", {}, ...(cell ? [cell] : [])))));
    const first = grid.flat().find((cell) => cell);
    if (first) first.tabIndex = 0;
    const table = make("table", { className: "map" }, make("caption", {}, map.title), make("thead", {}, blocks, columns), make("tbody", {}, ...rows));
    table.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => moveInGrid(event, grid));
    return make("div", { className: "map-scroll" }, table);
  }

  /** @param {number} index @param {number|null} value @param {number} max @param {string} title */
  cell(index, value, max, title) {
    const { module } = this.adapter.modules[index];
    const text = `${module}: ${title} ${figure(value)}`;
    const button = make("button", { type: "button", tabIndex: -1, title: text, "aria-label": text });
    if (value !== null) button.style.backgroundColor = `rgb(${scaleColour(max > 0 ? value / max : 0).join(" ")})`;
    button.addEventListener("click", () => this.choose(index));
    this.cells.set(index, button);
    return button;
  }

  drawLayer() {
    const { module, about, measures, singular_values } = this.adapter.modules[this.chosen];
    this.about.textContent = `${module}: ${about}`;
    const facts = [...MEASURES, /** @type {[string, string]} */ (["cosine", "Cosine of the changes"])].filter(([key]) => measures[key] !== undefined);
    this.figures.replaceChildren(...facts.map(([key, title]) => make("div", {}, make("dt", {}, title), make("dd", {}, figure(measures[key])))));
    const others = this.adapter.modules.filter((_, i) => i !== this.chosen).map(({ singular_values }) => singular_values);
    const [first, last] = [singular_values[0], singular_values[singular_values.length - 1]];
    const words = `${singular_values.length} singular values of ${module}, from ${figure(first)} to ${figure(last)}`;
    this.curve.replaceChildren(drawCurve(words, singular_values, others, this.isLog));
  }

  drawSubspaces() {
    const subspaces = /** @type {Subspaces} */ (this.adapter.subspaces);
    const place = document.getElementById("subspace-maps");
    const layer = subspaces.layers[this.chosen];
    const { module } = this.adapter.modules[this.chosen];
    const sides = ["input", "output"].map((side) => {
      const key = /** @type {"input"|"output"} */ (side);
      const random = /** @type {"random_input"|"random_output"} */ (`random_${side}`);
      const { i, j, [key]: means, [random]: randomMeans } = subspaces.mean;
      const maps = [
        { title: `${side} side, mean of all layers`, i, j, values: means },
        { title: "random subspaces of these sizes", i, j, values: randomMeans },
      ];
      if (layer) {
        const { i, j } = layer;
        const values = [...atob(layer[key])].map((char) => char.charCodeAt(0) / 255);
        const full = Math.max(i[i.length - 1], j[j.length - 1]);
        const expected = i.flatMap((row) => j.map((column) => (layer[random] * Math.max(row, column)) / full));
        maps.push({ title: `${side} side, chosen layer`, i, j, values }, { title: "random subspaces of its size", i, j, values: expected });
      }
      return maps;
    });
    const largest = Math.max(...sides.flat().flatMap(({ values }) => values.map((value) => value ?? 0)));
    const max = this.isStretched ? largest : 1;
    const row = (/** @type {typeof sides[0]} */ maps) => make("div", { className: "heat-row" }, ...maps.map(({ title, i, j, values }) => {
      const last = values[values.length - 1];
      return drawHeatMap({
        title, values, max, rows: i.map(String), columns: j.map(String), rowTitle: "i", columnTitle: "j",
        about: `φ(1, 1) is ${figure(values[0])}, φ of the whole ${figure(last)}.`,
      });
    }));
    const missing = layer ? [] : [make("p", { className: "note" }, `Only one of the two changes ${module}.`)];
    const names = make("p", { className: "note" }, `Rows i: directions of ${subspaces.this}. Columns j: directions of ${subspaces.other}. Chosen layer: ${module}.`);
    place?.replaceChildren(colourLegend(max, "φ(i, j)"), ...sides.map(row), names, ...missing);
  }
}

/** Arrow keys go to the next cell that there is. @param {KeyboardEvent} event @param {(HTMLElement|null)[][]} grid */
function moveInGrid(event, grid) {
  const by = /** @type {Record<string, number[]>} */ ({ ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] })[event.key];
  if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
  const row = grid.findIndex((cells) => cells.includes(/** @type {HTMLElement} */ (document.activeElement)));
  if (row < 0) return;
  event.preventDefault();
  const column = grid[row].indexOf(/** @type {HTMLElement} */ (document.activeElement));
  for (let [r, c] = [row + by[0], column + by[1]]; grid[r] && c >= 0 && c < grid[r].length; [r, c] = [r + by[0], c + by[1]]) {
    const next = grid[r][c];
    if (!next) continue;
    /** @type {HTMLElement} */ (grid[row][column]).tabIndex = -1;
    next.tabIndex = 0;
    return next.focus();
  }
}

/** Heads of the table become buttons that sort it; a second press turns the order round. @param {Module[]} modules */
function makeSortable(modules) {
  const table = document.getElementById("layer-table");
  const body = table?.querySelector("tbody");
  if (!table || !body) return;
  const rows = [...body.rows];
  const heads = /** @type {HTMLTableCellElement[]} */ ([...table.querySelectorAll("th[data-key]")]);
  for (const head of heads) {
    const key = head.dataset.key ?? "";
    const column = head.cellIndex;
    const isText = ["module", "kind"].includes(key);
    /** @type {(i: number) => any} */
    const valueOf = (i) => modules[i].measures[key] ?? (isText ? rows[i].cells[column].textContent : Number.parseFloat(rows[i].cells[column].textContent || "NaN"));
    const keys = rows.map((_, i) => valueOf(i));
    const button = make("button", { type: "button" }, head.textContent ?? "");
    button.addEventListener("click", () => {
      // Figures: the largest first. What has none is last whichever way.
      const isDown = head.ariaSort === null ? !isText : head.ariaSort === "ascending";
      heads.forEach((other) => (other.ariaSort = null));
      head.ariaSort = isDown ? "descending" : "ascending";
      const order = rows.map((_, i) => i).sort((a, b) => {
        if (Number.isNaN(keys[a]) || Number.isNaN(keys[b])) return Number(Number.isNaN(keys[a])) - Number(Number.isNaN(keys[b]));
        const least = isText ? keys[a].localeCompare(keys[b], "en", { numeric: true }) : keys[a] - keys[b];
        return isDown ? -least : least;
      });
      body.append(...order.map((i) => rows[i]));
    });
    head.replaceChildren(button);
  }
}

addEventListener("DOMContentLoaded", () => {
  document.getElementById("page-controls")?.append(themeButton(() => {}));
  /** @type {Adapter} */
  const adapter = JSON.parse(document.getElementById("adapter-data")?.textContent ?? "null");
  if (!adapter || adapter.modules.length === 0) return;
  new AdapterView(adapter).start();
  makeSortable(adapter.modules);
});
