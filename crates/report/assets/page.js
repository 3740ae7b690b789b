// @ts-check
// What all pages share: making elements, numbers as people read them, the theme. It runs before a page's own script, and like it makes no
// markup of a string.
"use strict";

// ---- elements ----

/**
 * @param {string} name
 * @param {Record<string, any>} [properties] of the element; `aria-` and `data-` names become attributes
 * @param {...(Node|string)} children
 * @returns {any}
 */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) element.setAttribute(key, value);
    else /** @type {any} */ (element)[key] = value;
  }
  element.append(...children);
  return element;
}

/** A colour of run.css as the canvas wants it. @param {string} name @param {number} [opacity] */
function colour(name, opacity = 1) {
  const probe = make("span", { hidden: true });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const rgb = (getComputedStyle(probe).color.match(/[\d.]+/g) ?? ["0", "0", "0"]).slice(0, 3);
  probe.remove();
  return `rgb(${rgb.join(" ")} / ${opacity})`;
}

/** Four significant digits. @param {number|null|undefined} value */
function figure(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return size >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

// ---- theme ----

const THEMES = ["system", "light", "dark"];

function storedTheme() {
  try {
    return localStorage.getItem("loralei theme") ?? "system";
  } catch {
    return "system";
  }
}

/** @param {string} theme */
function applyTheme(theme) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

/** @param {() => void} onChange */
function themeButton(onChange) {
  let theme = storedTheme();
  const button = make("button", { id: "theme", type: "button" });
  const label = () => (button.textContent = `Theme: ${theme}`);
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try {
      localStorage.setItem("loralei theme", theme);
    } catch {
      // kept for this page alone
    }
    applyTheme(theme);
    label();
    onChange();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
  label();
  return button;
}

applyTheme(storedTheme()); // before anything is painted
