// Opens the pages of adapters in a headless browser, checks them and takes pictures of them.
//
//   npm install && node adapter_pages.mjs INSPECTION.html COMPOSITION.html OUT_FOLDER
//
// Prints one line for each claim and ends with 1 if one is false.

import { mkdirSync } from "node:fs";
import path from "node:path";
import { addressOf, check, finish, open, overflow, reach, violations } from "./checked_browser.mjs";

const [inspection, composition, out] = process.argv.slice(2);
if (!inspection || !composition || !out) {
  console.error("usage: node adapter_pages.mjs INSPECTION.html COMPOSITION.html OUT_FOLDER");
  process.exit(2);
}
mkdirSync(out, { recursive: true });

for (const [kind, address] of [["inspection", addressOf(inspection)], ["composition", addressOf(composition)]]) {
  for (const scheme of ["light", "dark"]) {
    for (const [width, height] of [[1280, 900], [360, 740]]) {
      const name = `${kind}, ${scheme}, ${width} px`;
      const { context, page, said, asked } = await open(address, scheme, width, height);
      check(`${name}: no sideways scroll of the page`, (await overflow(page)) <= 0, `${await overflow(page)} px`);
      const found = await violations(page);
      check(`${name}: axe finds nothing`, found.length === 0, `\n  ${found.join("\n  ")}`);
      await page.screenshot({ path: path.join(out, `${kind}-${scheme}-${width}.png`), fullPage: true });
      const elsewhere = asked.filter((url) => !url.startsWith("data:") && url !== address);
      check(`${name}: no request but for the page`, elsewhere.length === 0, elsewhere.join(" "));
      check(`${name}: nothing to complain about in the console`, said.length === 0, said.join(" | "));
      const empty = await page.evaluate(() => [...document.querySelectorAll(".cells canvas")].filter((canvas) =>
        !new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer).some((pixel) => pixel !== 0)).length);
      check(`${name}: every heat map is drawn`, empty === 0 && (await page.locator(".cells canvas").count()) > 0, `${empty}`);
      check(`${name}: no text became markup`, (await page.locator("[onerror], [onload], img:not([src^='data:'])").count()) === 0);
      await context.close();
    }
  }
}

{
  const { context, page, said } = await open(addressOf(inspection), "light", 1280, 900);
  check("keyboard: Tab reaches the map", await reach(page, ".map button"));
  const focused = () => page.evaluate(() => document.activeElement?.getAttribute("aria-label"));
  const first = await focused();
  await page.keyboard.press("ArrowDown");
  check("keyboard: arrows move within the map", (await focused()) !== first && (await focused()) !== null);
  const layer = (await focused())?.split(":")[0];
  await page.keyboard.press("Enter");
  check("keyboard: Enter chooses the layer", (await page.locator("#layer .note").textContent())?.startsWith(`${layer}:`) === true);
  check("the chosen layer is in the list", (await page.locator("#chosen-layer option:checked").textContent()) === layer);
  await page.locator("#measure").selectOption("frobenius");
  check("another measure is another map", (await page.locator(".map button").first().getAttribute("aria-label"))?.includes("Frobenius") === true);
  check("keyboard: Tab reaches a heat map", await reach(page, ".cells"));
  await page.keyboard.press("ArrowRight");
  check("keyboard: arrows read values of a heat map", /^i 1, j 1: [\d.]+$/.test((await page.locator(".heat output").first().textContent()) ?? ""));
  const column = async (n) => (await page.locator(`#layer-table tbody tr td:nth-child(${n})`).allTextContents()).map(Number).filter((n) => !Number.isNaN(n));
  const head = page.locator("#layer-table th[data-key='spectral'] button");
  await head.click();
  const down = await column(6);
  check("a head sorts the table, the largest first", down.every((value, i) => i === 0 || value <= down[i - 1]) && down[0] > down.at(-1));
  await head.click();
  const up = await column(6);
  check("and the other way round", up.every((value, i) => i === 0 || value >= up[i - 1]));
  check("inspection: nothing to complain about in the console", said.length === 0, said.join(" | "));
  await context.close();
}

await finish();
