// @ts-check
// The page of a run. Reading (`readRun`) is apart from drawing (`drawChart`, `drawSampleTable`, `Viewer`), so that a page with a
// server can draw the same from elsewhere. All text goes in as text: nothing here makes markup of a string.
"use strict";

/**
 * At most 2000 points; `min` and `max` only where a point stands for several steps.
 * @typedef {{step: number[], mean: (number|null)[], min?: (number|null)[], max?: (number|null)[]}} Curve
 * @typedef {{loss: Curve|null, train_loss: Curve|null, best_step: number|null, bins: {timestep: number, loss: Curve}[],
 *   leak_with_trigger: Curve|null, leak_without_trigger: Curve|null}} Validation
 * @typedef {{prompt: string, seed: string, width_px: number, height_px: number}} Column
 * @typedef {{file: string, thumbnail: string|null}} Cell
 * @typedef {{columns: Column[], rows: {step: number, cells: (Cell|null)[]}[]}} SampleTable
 * @typedef {{reload_s: number|null, loss: Curve|null, learning_rate: Curve|null, grad_norm: Curve|null, d: Curve|null,
 *   num_scaled: Curve|null, validation: Validation, samples: SampleTable}} Run
 *
 * One line of a chart. `colour` is a number of the palette in run.css. A noisy line is drawn faint, with its smoothed self over it.
 * @typedef {{name: string, curve: Curve, colour: number, dash?: number[], isNoisy?: boolean, mark?: number|null}} Line
 * @typedef {{id: string, title: string, lines: Line[], isLog?: boolean, height_px: number}} Chart
 */

// ---- the reader's choices: kept while the page is open, over its reloads ----

const memory = {
  key: `loralei ${location.pathname}`,
  /** @type {Record<string, any>} */
  values: {},
  load() {
    try {
      this.values = JSON.parse(sessionStorage.getItem(this.key) ?? "{}");
    } catch {
      this.values = {}; // storage is forbidden: then nothing is kept
    }
  },
  save() {
    try {
      sessionStorage.setItem(this.key, JSON.stringify(this.values));
    } catch {
      // as above
    }
  },
};

// ---- charts ----

/** Steps over which a curve can be smoothed. */
const WINDOWS = [0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000];

/**
 * Exponential mean: a value weighs 1/e after `window` steps. The weights are divided out, so the beginning is not pulled to zero, and
 * they go by steps, so a reduced curve is smoothed like the full one.
 * @param {Curve} curve @param {number} window
 */
function smoothed(curve, window) {
  if (window === 0) return curve.mean;
  let sum = 0;
  let weight = 0;
  let last = curve.step[0];
  return curve.mean.map((value, i) => {
    if (value === null) return null;
    const kept = Math.exp(-(curve.step[i] - last) / window);
    last = curve.step[i];
    sum = sum * kept + value;
    weight = weight * kept + 1;
    return sum / weight;
  });
}

/** Whether a number has one significant digit. @param {number} value */
const isRound = (value) => Math.abs(Number(value.toPrecision(1)) / value - 1) < 1e-9;

/** @param {number[]} sorted @param {number} share */
const quantile = (sorted, share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];

/**
 * Limits of the vertical axis for what is in sight. Outliers of a noisy line, the outer hundredth, may leave it.
 * @param {any} plot @param {Chart} chart @param {number|null} low @param {number|null} high
 */
function verticalRange(plot, chart, low, high) {
  if (low === null || high === null) return [chart.isLog ? 0.1 : 0, 1];
  if (chart.lines[0].isNoisy) {
    const [steps, raw, mean, most = raw, least = raw] = plot.data;
    const { min, max } = plot.scales.x; // not known at first
    const isInSight = (/** @type {number} */ step) => step >= (min ?? -Infinity) && step <= (max ?? Infinity);
    const inSight = (/** @type {number[]} */ column) =>
      column.filter((value, i) => value !== null && isInSight(steps[i])).sort((a, b) => a - b);
    const [highest, lowest, means] = [most, least, mean].map(inSight);
    if (means.length > 20) {
      low = Math.min(quantile(lowest, 0.005), means[0]);
      high = Math.max(quantile(highest, 0.995), means[means.length - 1]);
    }
  }
  if (chart.isLog) return low < high ? [low / 1.1, high * 1.1] : [low / 2, high * 2];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  // Zero is shown where it is near: half a curve's height is no truth about it.
  return [low >= 0 && low < 0.6 * high ? 0 : low - room, high + room];
}

/** The columns that uPlot draws. @param {Chart} chart @param {number} window */
function chartData(chart, window) {
  const positive = (/** @type {(number|null)[]} */ values) =>
    chart.isLog ? values.map((v) => (v !== null && v > 0 ? v : null)) : values;
  /** @type {any[]} */
  const data = [chart.lines[0].curve.step];
  for (const { curve, isNoisy } of chart.lines) {
    data.push(positive(curve.mean));
    if (!isNoisy) continue;
    data.push(positive(smoothed(curve, window)));
    if (curve.min && curve.max) data.push(positive(curve.max), positive(curve.min));
  }
  return data;
}

/** The series and bands of uPlot, in the order of `chartData`. @param {Chart} chart */
function chartSeries(chart) {
  /** @type {any[]} */
  const series = [{}];
  const bands = [];
  for (const line of chart.lines) {
    const name = `--series-${line.colour}`;
    const count = line.curve.step.length;
    const dots = { show: count === 1 || (count <= 12 && !line.isNoisy), size: 5, fill: colour(name) };
    const plain = { label: line.name, width: 1.5, dash: line.dash, points: dots, spanGaps: true };
    if (!line.isNoisy) {
      const marked = line.curve.step.indexOf(line.mark ?? NaN);
      const points = { show: true, size: 9, width: 2, fill: colour("--paper"), filter: () => [marked] };
      series.push({ ...plain, stroke: colour(name), points: marked >= 0 ? points : plain.points });
      continue;
    }
    series.push({ label: line.name, width: 1, stroke: colour(name, 0.28), points: { show: false } });
    series.push({ ...plain, width: 2, stroke: colour(name) });
    if (line.curve.min && line.curve.max) {
      const edge = { width: 0, stroke: "transparent", points: { show: false } };
      bands.push({ series: [series.length, series.length + 1], fill: colour(name, 0.14) });
      series.push(edge, edge);
    }
  }
  return { series, bands };
}

/** A short line in a line's colour and dashes. @param {Line} line */
function swatch(line) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  for (const [key, value] of Object.entries({ width: "22", height: "8", "aria-hidden": "true", class: `series-${line.colour}` })) {
    svg.setAttribute(key, value);
  }
  const stroke = document.createElementNS(namespace, "path");
  stroke.setAttribute("d", "M0 4H22");
  stroke.setAttribute("stroke-dasharray", (line.dash ?? []).join(" "));
  svg.append(stroke);
  return svg;
}

/**
 * Draws a chart with its legend and its table.
 * @param {HTMLElement} parent @param {Chart} chart @param {{window: number, syncKey: string}} options
 * @returns {{setWindow: (window: number) => void, destroy: () => void}}
 */
function drawChart(parent, chart, { window, syncKey }) {
  const values = chart.lines.map(() => make("output", { htmlFor: "" }));
  const at = make("span", { className: "at" });
  const beyond = make("li");
  const legend = make("ul", { className: "legend" });
  chart.lines.forEach((line, i) => legend.append(make("li", {}, swatch(line), make("span", {}, line.name), values[i])));
  if (chart.lines.some(({ isNoisy }) => isNoisy)) legend.append(beyond);
  const lastOf = (/** @type {(number|null)[]} */ column) => column.findLast((value) => value !== null);
  const ends = chart.lines.map(({ name, curve }) => `${name} ${figure(lastOf(curve.mean))}`).join(", ");
  const place = make("div", {
    className: "plot", id: `plot-${chart.id}`, tabIndex: 0, role: "img",
    "aria-label": `${chart.title} by step. Last: ${ends}. Arrow keys read values, the table has all.`,
  });
  place.style.height = `${chart.height_px}px`; // at once: the chart itself comes a moment later
  const figureElement = make("figure", { className: "chart", id: `chart-${chart.id}` },
    make("figcaption", {}, make("h3", {}, chart.title, at), legend), place, chartTable(chart));
  parent.append(figureElement);

  const columnOf = chartColumns(chart);
  const { series, bands } = chartSeries(chart);
  const axis = {
    stroke: colour("--quiet"), font: "11px system-ui, sans-serif",
    grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false },
  };
  const showValues = (/** @type {any} */ plot) => {
    const index = plot.cursor.idx ?? -1;
    at.textContent = index < 0 ? "" : `at ${figure(plot.data[0][index])}`;
    columnOf.forEach((column, i) => {
      values[i].textContent = figure(index < 0 ? lastOf(plot.data[column]) : plot.data[column][index]);
    });
  };
  // What the vertical axis leaves out is said.
  const showBeyond = (/** @type {any} */ plot) => {
    const { x, y } = plot.scales;
    const [, raw, , most = raw] = plot.data;
    const isBeyond = (/** @type {number|null} */ value, /** @type {number} */ i) =>
      value !== null && value > y.max && plot.data[0][i] >= x.min && plot.data[0][i] <= x.max;
    const count = most.filter(isBeyond).length;
    beyond.textContent = count > 0 ? `${count.toLocaleString("en")} ${count === 1 ? "peak" : "peaks"} beyond the axis` : "";
  };
  const size = () => ({ width: Math.max(120, place.clientWidth), height: chart.height_px });
  // @ts-expect-error uPlot is a script of its own
  const plot = new uPlot({
    ...size(), series, bands, pxAlign: 0,
    legend: { show: false },
    scales: {
      x: { time: false },
      y: { distr: chart.isLog ? 3 : 1, range: (/** @type {any} */ u, /** @type {any} */ low, /** @type {any} */ high) => verticalRange(u, chart, low, high) },
    },
    axes: [
      { ...axis, size: 24, gap: 4, space: 70, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((tick) => tick.toLocaleString("en")) },
      {
        ...axis, gap: 4, space: 32,
        size: (/** @type {any} */ _, /** @type {string[]|null} */ labels) => 14 + 6.3 * Math.max(2, ...(labels ?? []).map((label) => label.length)),
        values: (/** @type {any} */ _, /** @type {(number|null)[]} */ ticks) => ticks.map((tick) => (tick === null || (chart.isLog && !isRound(tick)) ? "" : figure(tick))),
      },
    ],
    cursor: { y: false, points: { size: 7 }, drag: { x: true, y: false }, sync: { key: syncKey, setSeries: false } },
    hooks: { setCursor: [showValues], ready: [showValues], draw: [showBeyond] },
  }, chartData(chart, window), place);

  keyboardCursor(place, plot);
  const watcher = new ResizeObserver(() => {
    if (size().width !== plot.width) plot.setSize(size());
  });
  watcher.observe(place);
  return {
    setWindow: (next) => {
      plot.setData(chartData(chart, next), false);
      plot.redraw();
      showValues(plot);
    },
    destroy: () => {
      watcher.disconnect();
      plot.destroy();
      figureElement.remove();
    },
  };
}

/** For each line the column of its value in `chartData`. @param {Chart} chart */
function chartColumns(chart) {
  let column = 1;
  return chart.lines.map(({ curve, isNoisy }) => {
    const own = isNoisy ? column + 1 : column; // the smoothed one
    column += isNoisy ? (curve.min && curve.max ? 4 : 2) : 1;
    return own;
  });
}

/** Arrow keys walk over a chart's points. @param {HTMLElement} place @param {any} plot */
function keyboardCursor(place, plot) {
  place.addEventListener("keydown", (event) => {
    const count = plot.data[0].length;
    const stride = event.shiftKey ? Math.max(1, Math.round(count / 20)) : 1;
    const index = plot.cursor.idx ?? count - 1;
    const next = { ArrowLeft: index - stride, ArrowRight: index + stride, Home: 0, End: count - 1 }[event.key];
    if (event.key === "Escape") plot.setCursor({ left: -10, top: -10 });
    if (next === undefined) return;
    event.preventDefault();
    const within = Math.min(count - 1, Math.max(0, next));
    plot.setCursor({ left: plot.valToPos(plot.data[0][within], "x"), top: plot.bbox.height / devicePixelRatio / 2 });
  });
  place.addEventListener("blur", () => plot.setCursor({ left: -10, top: -10 }));
}

/** Most rows of a table beside a chart. */
const TABLE_ROWS = 100;

/** The numbers of a chart as a table, made when it is opened. @param {Chart} chart */
function chartTable(chart) {
  const details = make("details", { id: `table-${chart.id}` }, make("summary", {}, "Table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const steps = chart.lines[0].curve.step;
    const stride = Math.ceil(steps.length / TABLE_ROWS);
    const head = make("tr", {}, make("th", { scope: "col" }, "Step"));
    chart.lines.forEach(({ name }) => head.append(make("th", { scope: "col", className: "number" }, name)));
    const body = make("tbody");
    for (let i = 0; i < steps.length; i++) {
      if (i % stride !== 0 && i !== steps.length - 1) continue;
      const row = make("tr", {}, make("th", { scope: "row" }, figure(steps[i])));
      chart.lines.forEach(({ curve }) => row.append(make("td", { className: "number" }, figure(curve.mean[i]))));
      body.append(row);
    }
    const caption = make("caption", {}, stride > 1 ? `${chart.title}, every ${stride}th point` : chart.title);
    details.append(make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `${chart.title}, table` },
      make("table", {}, caption, make("thead", {}, head), body)));
  });
  return details;
}

/** What is drawn of a run: the large charts and the small ones. @param {Run} run @returns {{large: Chart[], small: Chart[]}} */
function chartsOf(run) {
  /** @param {string} id @param {string} title @param {(Line|false|null)[]} lines @param {number} height_px */
  const chart = (id, title, lines, height_px) => ({ id, title, lines: /** @type {Line[]} */ (lines.filter(Boolean)), height_px });
  /** @param {string} name @param {Curve|null} curve @param {number} colour @param {Partial<Line>} [more] @returns {Line|null} */
  const line = (name, curve, colour, more) => curve && { name, curve, colour, ...more };
  const { validation } = run;
  const dashes = [[], [6, 3], [2, 2], [8, 3, 2, 3]];
  const large = [
    chart("loss", "Loss", [line("training", run.loss, 1, { isNoisy: true })], 250),
    chart("validation", "Validation loss", [
      line("held out", validation.loss, 2, { mark: validation.best_step }),
      line("training images", validation.train_loss, 1, { dash: [5, 3] }),
    ], 250),
  ];
  if (!validation.train_loss && large[1].lines[0]) large[1].lines[0].name = "fixed images";
  if (validation.best_step !== null && large[1].lines[0]) large[1].lines[0].name += `, best at ${validation.best_step.toLocaleString("en")}`;
  const small = [
    chart("bins", "Validation by timestep", validation.bins.map(({ timestep, loss }, i) =>
      line(`t ${figure(timestep)}`, loss, (i % 6) + 1, { dash: dashes[i % dashes.length] })), 150),
    chart("leak", "Change of predictions", [
      line("with trigger", validation.leak_with_trigger, 3),
      line("without: leak", validation.leak_without_trigger, 2, { dash: [5, 3] }),
    ], 150),
    chart("learning-rate", "Learning rate", [line("learning rate", run.learning_rate, 4)], 150),
    chart("grad-norm", "Gradient norm", [line("gradient norm", run.grad_norm, 5, { isNoisy: true })], 150),
    chart("d", "Prodigy's step size", [line("d", run.d, 6)], 150),
    chart("num-scaled", "Modules cut to the largest norm", [line("modules", run.num_scaled, 6)], 150),
  ];
  const drawn = (/** @type {Chart[]} */ charts) => charts.filter(({ lines }) => lines.length > 0);
  return { large: drawn(large), small: drawn(small) };
}

/** Charts and their controls. @param {Run} run @returns {() => void} draws them again, in the colours of now */
function showCurves(run) {
  const parent = document.getElementById("charts");
  const controls = document.getElementById("curve-controls");
  if (!parent || !controls) return () => {};
  const numSteps = run.loss?.step.at(-1) ?? 0;
  const windows = WINDOWS.filter((window) => window <= Math.max(5, numSteps / 3));
  const usual = windows.findLastIndex((window) => window <= Math.max(5, numSteps / 25));
  const chosen = () => Math.min(windows.length - 1, memory.values.smoothing ?? usual);

  const slider = make("input", { type: "range", id: "smoothing", min: 0, max: windows.length - 1, step: 1, value: chosen() });
  const value = make("output", { htmlFor: "smoothing" });
  const isLog = make("input", { type: "checkbox", id: "log", checked: memory.values.isLog ?? false });
  controls.append(make("label", { htmlFor: "smoothing" }, "Smoothed over"), slider, value,
    make("label", { htmlFor: "log", className: "check" }, isLog, "Log scale"));
  const label = () => {
    const window = windows[chosen()];
    value.textContent = window === 0 ? "nothing" : `${window.toLocaleString("en")} steps`;
    slider.setAttribute("aria-valuetext", value.textContent);
  };

  /** @type {ReturnType<typeof drawChart>[]} */
  let drawn = [];
  const draw = () => {
    drawn.forEach((chart) => chart.destroy());
    const { large, small } = chartsOf(run);
    const options = { window: windows[chosen()], syncKey: "step" };
    drawn = [];
    for (const [name, charts] of Object.entries({ large, small })) {
      const row = parent.querySelector(`.${name}`) ?? parent.appendChild(make("div", { className: `row ${name}` }));
      for (const chart of charts) {
        const canLog = !["learning-rate", "num-scaled"].includes(chart.id);
        drawn.push(drawChart(row, { ...chart, isLog: isLog.checked && canLog }, options));
      }
    }
  };
  slider.addEventListener("input", () => {
    memory.values.smoothing = Number(slider.value);
    label();
    drawn.forEach((chart) => chart.setWindow(windows[chosen()]));
  });
  isLog.addEventListener("change", () => {
    memory.values.isLog = isLog.checked;
    draw();
  });
  label();
  draw();
  return draw;
}

// ---- samples ----

/** @param {{width_px: number, height_px: number}} size */
const sizeText = ({ width_px, height_px }) => `${width_px} × ${height_px}`;

/**
 * Draws the table of samples: a row a step, a column a prompt. The first row stays in sight for comparison.
 * @param {HTMLElement} parent @param {SampleTable} samples @param {(row: number, column: number) => void} onOpen
 */
function drawSampleTable(parent, samples, onOpen) {
  const head = make("tr", {}, make("th", { scope: "col", className: "corner" }, "Step"));
  for (const column of samples.columns) {
    head.append(make("th", { scope: "col" }, make("span", { className: "prompt", title: column.prompt }, column.prompt),
      make("span", { className: "note" }, `seed ${column.seed} · ${sizeText(column)}`)));
  }
  const rows = samples.rows.map(({ step, cells }, r) => {
    const row = make("tr", { className: r === 0 ? "first" : "" }, make("th", { scope: "row" }, step.toLocaleString("en")));
    cells.forEach((cell, c) => {
      if (!cell) return row.append(make("td", { className: "absent" }, "–"));
      const { prompt, width_px, height_px } = samples.columns[c];
      const loading = cell.thumbnail ? "eager" : "lazy"; // a file is fetched when it comes into sight
      const picture = make("img", { loading, src: cell.thumbnail ?? cell.file, alt: "", width: width_px, height: height_px });
      picture.classList.toggle("small", Math.max(width_px, height_px) < 128);
      const button = make("button", { type: "button", id: `sample-${step}-${c}`, "aria-label": `Step ${step}: ${prompt}` }, picture);
      button.addEventListener("click", () => onOpen(r, c));
      return row.append(make("td", {}, button));
    });
    return row;
  });
  const table = make("table", {}, make("caption", { className: "unseen" }, "Samples by step and prompt"), make("thead", {}, head), make("tbody", {}, ...rows));
  const scroller = make("div", { className: "sample-scroll", tabIndex: 0, role: "region", "aria-label": "Samples by step and prompt" }, table);
  scroller.style.setProperty("--columns", String(samples.columns.length));
  parent.append(scroller);
  // The first row sticks below the heads, however high they are.
  new ResizeObserver(() => table.style.setProperty("--head-height", `${head.offsetHeight}px`)).observe(head);

  /** Brings a row below the first one. @param {number} index */
  const showRow = (index) => {
    rows.forEach((row, r) => row.classList.toggle("current", r === index));
    const pinned = head.offsetHeight + (index > 0 ? rows[0].offsetHeight : 0);
    scroller.scrollTop = rows[index].offsetTop - pinned;
  };
  return { scroller, showRow };
}

/** One picture at its full size. Up and down: the same prompt at another step; left and right: another prompt. */
class Viewer {
  /** @param {SampleTable} samples */
  constructor(samples) {
    this.samples = samples;
    this.row = 0;
    this.column = 0;
    this.picture = make("img", { id: "viewer-picture", alt: "" });
    this.step = make("strong");
    this.prompt = make("p", { className: "prompt" });
    this.note = make("span", { className: "note" });
    const move = (/** @type {string} */ text, /** @type {string} */ label, /** @type {number} */ rows, /** @type {number} */ columns) => {
      const button = make("button", { type: "button", "aria-label": label, title: label }, text);
      button.addEventListener("click", () => this.move(rows, columns));
      return button;
    };
    const close = make("button", { type: "button", id: "viewer-close" }, "Close");
    close.addEventListener("click", () => this.dialog.close());
    const bar = make("div", { className: "bar" }, this.step, this.note, make("div", { className: "controls" },
      move("↑", "Earlier step", -1, 0), move("↓", "Later step", 1, 0), move("←", "Prompt before", 0, -1), move("→", "Next prompt", 0, 1), close));
    this.dialog = make("dialog", { id: "viewer", "aria-label": "Sample" },
      bar, make("div", { className: "stage" }, this.picture), make("div", { "aria-live": "polite" }, this.prompt));
    this.dialog.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.key(event));
    this.dialog.addEventListener("click", (/** @type {Event} */ event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => document.getElementById(`sample-${this.samples.rows[this.row].step}-${this.column}`)?.focus());
    document.body.append(this.dialog);
  }

  get isOpen() {
    return this.dialog.open;
  }

  /** @param {number} row @param {number} column */
  open(row, column) {
    this.show(row, column);
    this.dialog.showModal();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [-Infinity, 0], End: [Infinity, 0] };
    const by = /** @type {Record<string, number[]>} */ (moves)[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.move(by[0], by[1]);
  }

  /** To the next place that has a picture, if there is one. @param {number} rows @param {number} columns */
  move(rows, columns) {
    const { rows: all } = this.samples;
    if (!Number.isFinite(rows)) {
      const filled = all.map((row, r) => (row.cells[this.column] ? r : -1)).filter((r) => r >= 0);
      return this.show(rows < 0 ? filled[0] : filled[filled.length - 1], this.column);
    }
    let [row, column] = [this.row + rows, this.column + columns];
    while (all[row] && column >= 0 && column < this.samples.columns.length) {
      if (all[row].cells[column]) return this.show(row, column);
      [row, column] = [row + rows, column + columns];
    }
  }

  /** @param {number} row @param {number} column */
  show(row, column) {
    const { step, cells } = this.samples.rows[row];
    const cell = cells[column];
    const of = this.samples.columns[column];
    if (!cell) return;
    [this.row, this.column] = [row, column];
    // The thumbnail at once, the file when it has come; if the page travelled alone it never does.
    this.picture.src = cell.thumbnail ?? cell.file;
    const full = new Image();
    full.onload = () => {
      if (this.row === row && this.column === column) this.picture.src = full.src;
    };
    full.src = cell.file;
    const times = Math.max(1, Math.floor(512 / Math.max(of.width_px, of.height_px)));
    [this.picture.width, this.picture.height] = [of.width_px * times, of.height_px * times];
    this.picture.classList.toggle("small", times > 2);
    this.picture.alt = `Step ${step}: ${of.prompt}`;
    this.step.textContent = `Step ${step.toLocaleString("en")}`;
    this.note.textContent = `prompt ${column + 1} of ${this.samples.columns.length} · seed ${of.seed} · ${sizeText(of)} px`;
    this.prompt.textContent = of.prompt;
  }
}

/** Samples, their slider and their viewer. @param {Run} run @returns {Viewer|null} */
function showSamples(run) {
  const parent = document.getElementById("sample-table");
  const controls = document.getElementById("sample-controls");
  if (!parent || !controls) return null;
  const { samples } = run;
  const viewer = new Viewer(samples);
  const { scroller, showRow } = drawSampleTable(parent, samples, (row, column) => viewer.open(row, column));

  // Unless another step was chosen, the newest is shown, also when the page comes again with a newer one.
  const newest = samples.rows.length - 1;
  const kept = samples.rows.findIndex(({ step }) => step === memory.values.sampleStep);
  const slider = make("input", { type: "range", id: "sample-step", min: 0, max: newest, step: 1, value: kept >= 0 ? kept : newest });
  const value = make("output", { htmlFor: "sample-step" });
  const show = () => {
    value.textContent = samples.rows[slider.value].step.toLocaleString("en");
    slider.setAttribute("aria-valuetext", `step ${value.textContent}`);
    showRow(Number(slider.value));
  };
  slider.addEventListener("input", () => {
    const row = Number(slider.value);
    memory.values.sampleStep = row === newest ? undefined : samples.rows[row].step;
    show();
  });
  if (samples.rows.length > 1) controls.append(make("label", { htmlFor: "sample-step" }, "Step"), slider, value);
  show();
  if (kept >= 0 && memory.values.sampleTop !== undefined) scroller.scrollTop = memory.values.sampleTop;
  scroller.scrollLeft = memory.values.sampleLeft ?? 0;
  scroller.addEventListener("scroll", () => {
    [memory.values.sampleTop, memory.values.sampleLeft] = [scroller.scrollTop, scroller.scrollLeft];
  });
  return viewer;
}

// ---- the page ----

/** Where the data come from; nothing else knows. @returns {Run|null} */
function readRun() {
  const element = document.getElementById("run-data");
  return element ? JSON.parse(element.textContent ?? "null") : null;
}

/** A button that copies the command. */
function showCopyButton() {
  const code = document.getElementById("command");
  if (!code) return;
  const button = make("button", { type: "button", id: "copy" }, "Copy");
  const said = make("span", { className: "unseen", role: "status" });
  button.addEventListener("click", async () => {
    let done = true;
    try {
      await navigator.clipboard.writeText(code.textContent ?? "");
    } catch {
      getSelection()?.selectAllChildren(code);
      done = document.execCommand("copy"); // where pages from files may not use the clipboard
    }
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    said.textContent = button.textContent;
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  code.closest(".command")?.append(button, said);
}

/** Brings the page as it is now, but not under the reader's hands. @param {number} seconds @param {Viewer|null} viewer */
function reloadEvery(seconds, viewer) {
  const isBusy = () =>
    viewer?.isOpen || document.hidden || document.querySelector(":active") !== null || !(getSelection()?.isCollapsed ?? true);
  setTimeout(function reload() {
    if (isBusy()) setTimeout(reload, 1000);
    else location.reload();
  }, seconds * 1000);
}

/** What the reader left open and where. */
function restoreView() {
  for (const id of memory.values.open ?? []) {
    const details = document.getElementById(id);
    if (details instanceof HTMLDetailsElement) details.open = true;
  }
  if (memory.values.scrollY === undefined) return;
  scrollTo(0, memory.values.scrollY);
  document.getElementById(memory.values.focus ?? "")?.focus({ preventScroll: true });
}

function start() {
  const run = readRun();
  if (!run) return;
  memory.load();
  const drawCurves = showCurves(run);
  const viewer = showSamples(run);
  showCopyButton();
  document.getElementById("page-controls")?.append(themeButton(drawCurves));
  restoreView();
  addEventListener("pagehide", () => {
    memory.values.scrollY = scrollY;
    memory.values.focus = document.activeElement?.id;
    memory.values.open = [...document.querySelectorAll("details[open][id]")].map(({ id }) => id);
    memory.save();
  });
  if (run.reload_s) reloadEvery(run.reload_s, viewer);
}

history.scrollRestoration = "manual"; // the charts are not there yet when the browser would do it
addEventListener("DOMContentLoaded", start);
