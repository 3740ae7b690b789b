// A headless browser and what every page is checked for. CHROMIUM names the browser, else /usr/bin/chromium.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

export const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});

let num_wrong = 0;

/** One line for each claim. */
export function check(claim, is_true, detail = "") {
  if (!is_true) num_wrong += 1;
  console.log(`${is_true ? "ok   " : "WRONG"} ${claim}${detail !== "" && !is_true ? `: ${detail}` : ""}`);
}

export const addressOf = (page_path) => pathToFileURL(path.resolve(page_path)).href;

/** A page of its own, with what it says and asks for. */
export async function open(address, colorScheme, width, height, reducedMotion = "reduce") {
  const context = await browser.newContext({ colorScheme, viewport: { width, height }, reducedMotion, bypassCSP: false });
  const page = await context.newPage();
  const said = [];
  const asked = [];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  page.on("dialog", (dialog) => (said.push(`dialog ${dialog.message()}`), dialog.dismiss()));
  page.on("request", (request) => asked.push(request.url()));
  await page.goto(address);
  await page.waitForTimeout(300);
  return { context, page, said, asked };
}

export const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

/** Violations of WCAG and axe's own rules. A script that the page's policy does not know is put in by the debugger. */
export async function violations(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return violations.flatMap(({ id, nodes }) => nodes.map(({ html, any }) => `${id} ${html.slice(0, 120)} ${any[0]?.message ?? ""}`));
}

/** Tab until an element has the focus. */
export async function reach(page, selector) {
  await page.evaluate(() => document.activeElement?.blur());
  for (let i = 0; i < 120; i++) {
    await page.keyboard.press("Tab");
    if (await page.evaluate((selector) => document.activeElement?.matches(selector) ?? false, selector)) return true;
  }
  return false;
}

/** Ends with 1 if a claim was false. */
export async function finish() {
  await browser.close();
  console.log(num_wrong === 0 ? "all as it should be" : `${num_wrong} wrong`);
  process.exit(num_wrong === 0 ? 0 : 1);
}
