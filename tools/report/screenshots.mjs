// Opens a run's page in a headless browser, checks it and takes pictures of it.
//
//   npm install && node screenshots.mjs PAGE.html OUT_FOLDER
//
// Prints one line for each claim and ends with 1 if one is false.

import { mkdirSync } from "node:fs";
import path from "node:path";
import { addressOf, browser, check, finish, open as openPage, overflow, reach as reachIn, violations } from "./checked_browser.mjs";

const [page_path, out] = process.argv.slice(2);
if (!page_path || !out) {
  console.error("usage: node screenshots.mjs PAGE.html OUT_FOLDER");
  process.exit(2);
}
mkdirSync(out, { recursive: true });
const address = addressOf(page_path);
const folder = new URL(".", address).href;
const open = (...view) => openPage(address, ...view);

/** Canvases of which at least one pixel is not empty, and all of them. */
const drawn = (page) =>
  page.evaluate(() => {
    const canvases = [...document.querySelectorAll(".plot canvas")];
    const is_drawn = (canvas) => new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer).some((pixel) => pixel !== 0);
    return [canvases.filter(is_drawn).length, canvases.length];
  });

for (const scheme of ["light", "dark"]) {
  for (const [width, height] of [[1280, 900], [360, 740]]) {
    const name = `${scheme}, ${width} px`;
    const { context, page, said, asked } = await open(scheme, width, height);
    const [num_drawn, num_charts] = await drawn(page);
    check(`${name}: all ${num_charts} charts are drawn`, num_charts > 0 && num_drawn === num_charts, `${num_drawn}`);
    check(`${name}: no sideways scroll of the page`, (await overflow(page)) <= 0, `${await overflow(page)} px`);
    const found = await violations(page);
    check(`${name}: axe finds nothing`, found.length === 0, `\n  ${found.join("\n  ")}`);
    await page.screenshot({ path: path.join(out, `${scheme}-${width}.png`), fullPage: true });
    if (await page.locator("#sample-table button").count()) {
      await page.locator("#sample-table button").last().click();
      await page.waitForTimeout(200);
      await page.screenshot({ path: path.join(out, `${scheme}-${width}-viewer.png`) });
      const found = await violations(page);
      check(`${name}: axe finds nothing in the viewer`, found.length === 0, `\n  ${found.join("\n  ")}`);
      check(`${name}: the viewer fits`, await page.locator("#viewer").evaluate((dialog) => dialog.scrollWidth <= dialog.clientWidth && dialog.getBoundingClientRect().right <= innerWidth + 1));
    }
    const elsewhere = asked.filter((url) => !url.startsWith("data:") && url !== address && !(url.startsWith(folder) && /\.png$/.test(url)));
    check(`${name}: no request but for the page and its pictures`, elsewhere.length === 0, elsewhere.join(" "));
    check(`${name}: nothing to complain about in the console`, said.length === 0, said.join(" | "));
    await context.close();
  }
}

{
  const { context, page, said } = await open("light", 1280, 900);
  const reach = (id) => reachIn(page, `#${id}`);
  const has = async (id) => (await page.locator(`#${id}`).count()) > 0;
  const outline = () => page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);

  check("keyboard: Tab reaches the theme button", await reach("theme"));
  check("keyboard: the focus is seen", (await outline()) === "solid", await outline());
  const paper = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await paper();
  await page.keyboard.press("Enter");
  await page.keyboard.press("Enter");
  check("keyboard: Enter changes the theme", (await paper()) !== light);
  await page.reload();
  check("the theme stays over a reload", (await paper()) !== light);
  await page.locator("#theme").click();

  if (await has("smoothing")) {
    check("keyboard: Tab reaches the smoothing slider", await reach("smoothing"));
    const pixels = () => page.evaluate(() => document.querySelector("#plot-loss canvas").toDataURL());
    const before = await pixels();
    await page.keyboard.press("ArrowRight");
    await page.waitForTimeout(100);
    check("keyboard: arrows smooth the curve", (await pixels()) !== before);
    const value = await page.locator("#smoothing").inputValue();
    await page.evaluate(() => scrollTo(0, 400));
    await page.reload();
    await page.waitForTimeout(200);
    check("the slider stays over a reload", (await page.locator("#smoothing").inputValue()) === value);
    check("the scroll stays over a reload", (await page.evaluate(() => scrollY)) === 400, await page.evaluate(() => scrollY));
    check("keyboard: Tab reaches a chart", await reach("plot-loss"));
    await page.keyboard.press("ArrowLeft");
    check("keyboard: arrows read values of a chart", /^at [\d,]+$/.test(await page.locator("#chart-loss .at").textContent()));
    await page.locator("#table-loss summary").focus();
    await page.keyboard.press("Enter");
    await page.waitForTimeout(100);
    const rows = await page.locator("#table-loss tbody tr").count();
    check("keyboard: the table of a chart opens", rows > 1 && rows <= 101, `${rows}`);
  }

  if (await has("sample-step")) {
    check("keyboard: Tab reaches the step slider", await reach("sample-step"));
    await page.keyboard.press("Home");
    const top = await page.locator(".sample-scroll").evaluate((scroller) => scroller.scrollTop);
    await page.keyboard.press("End");
    const bottom = await page.locator(".sample-scroll").evaluate((scroller) => scroller.scrollTop);
    check("keyboard: the step slider moves the table", top === 0 && bottom > 0, `${top} ${bottom}`);
    const pinned = await page.evaluate(() => {
      const scroller = document.querySelector(".sample-scroll").getBoundingClientRect();
      const first = document.querySelector(".sample-scroll tr.first td").getBoundingClientRect();
      return first.top >= scroller.top && first.bottom < scroller.bottom;
    });
    check("the first row stays in sight", pinned);
  }

  const buttons = page.locator("#sample-table button");
  if (await buttons.count()) {
    const step = () => page.locator("#viewer strong").textContent();
    const prompt = () => page.locator("#viewer .prompt").textContent();
    const is_open = () => page.locator("#viewer").evaluate((dialog) => dialog.open);
    await buttons.last().focus();
    await page.keyboard.press("Enter");
    check("keyboard: Enter opens the viewer", await is_open());
    await page.waitForTimeout(200);
    check("the viewer shows the file itself", (await page.locator("#viewer-picture").getAttribute("src")).includes("samples/"), await page.locator("#viewer-picture").getAttribute("src"));
    const [last_step, last_prompt] = [await step(), await prompt()];
    await page.keyboard.press("ArrowUp");
    check("viewer: up is another step of the same prompt", (await step()) !== last_step && (await prompt()) === last_prompt);
    await page.keyboard.press("ArrowDown");
    check("viewer: down comes back", (await step()) === last_step);
    await page.keyboard.press("ArrowLeft");
    check("viewer: left is another prompt of the same step", (await step()) === last_step && (await prompt()) !== last_prompt);
    await page.keyboard.press("ArrowRight");
    check("viewer: right comes back", (await prompt()) === last_prompt);
    await page.keyboard.press("Home");
    check("viewer: Home is the first step", (await step()) === "Step 0", await step());
    await page.keyboard.press("Escape");
    await page.waitForTimeout(100);
    check("viewer: Escape closes", !(await is_open()));
    check("viewer: the focus is back on the picture", await page.evaluate(() => document.activeElement.id.startsWith("sample-0-")));
  }
  check("keyboard: nothing to complain about in the console", said.length === 0, said.join(" | "));
  await context.close();
}

// What is drawn from text is text.
{
  const { context, page } = await open("light", 1280, 900);
  const strange = await page.evaluate(() => document.querySelectorAll("[onerror], [onload], img:not([src^='data:']):not([src^='./']):not([src=''])").length);
  check("no text became markup", strange === 0 || (await page.locator("#viewer-picture:not([src])").count()) === strange, `${strange}`);
  await context.close();
}

// While the run goes on the page comes again by itself, but not under an open viewer.
{
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 } });
  const page = await context.newPage();
  await page.clock.install();
  await page.goto(address);
  const goes_on = await page.evaluate(() => JSON.parse(document.getElementById("run-data").textContent).reload_s);
  let num_loads = 0;
  page.on("load", () => (num_loads += 1));
  if (goes_on && (await page.locator("#sample-table button").count())) {
    await page.locator("#sample-table button").last().click();
    await page.clock.runFor(40_000);
    await page.waitForTimeout(300);
    check("an open viewer is left alone", num_loads === 0, `${num_loads}`);
    await page.keyboard.press("Escape");
    await page.clock.runFor(3_000);
    await page.waitForTimeout(500);
    check("afterwards the page comes again", num_loads === 1, `${num_loads}`);
  } else {
    await page.clock.runFor(120_000);
    await page.waitForTimeout(300);
    check("a run that has ended is not loaded again", goes_on !== null || num_loads === 0, `${num_loads}`);
  }
  await context.close();
}

await finish();
