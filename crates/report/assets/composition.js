// @ts-check
// The page of a composition: rho by method and layer.
"use strict";

/** @typedef {{methods: string[], parts: {title: string, layers: string[], values: (number|null)[]}[]}} RhoMap */

/** @param {RhoMap} map */
function drawRho({ methods, parts }) {
  const max = Math.max(1, ...parts.flatMap(({ values }) => values.map((value) => value ?? 0)));
  const maps = parts.map(({ title, layers, values }) => {
    const worst = methods.map((method, row) => {
      const own = values.slice(row * layers.length, (row + 1) * layers.length).filter((value) => value !== null);
      return `${method} at most ${figure(Math.max(.../** @type {number[]} */ (own)))}`;
    });
    return drawHeatMap({
      title, rows: methods, columns: layers, values, max, rowTitle: "", columnTitle: "in", isWide: true,
      about: `ρ of ${layers.length} layers in the order of the network. ${worst.join(", ")}.`,
    });
  });
  document.getElementById("rho-map")?.append(colourLegend(max, "ρ"), ...maps);
}

addEventListener("DOMContentLoaded", () => {
  document.getElementById("page-controls")?.append(themeButton(() => {}));
  const map = JSON.parse(document.getElementById("composition-data")?.textContent ?? "null");
  if (map) drawRho(map);
});
