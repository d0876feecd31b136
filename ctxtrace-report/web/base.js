// Functions that all parts of the page use. Text is put into the page only as `textContent`, because names come from the traced program
// and could contain markup.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

// Makes an element with attributes and children. A string among the children becomes a text node.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "style") for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const note = (text) => make("p", { class: "note" }, text);
const missing = (text) => make("p", { class: "missing" }, text);

// Formats nanoseconds with three significant digits, as the program itself does in its tables.
function duration(ns) {
  for (const [unit, name] of [[1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (ns >= unit * 0.9995) return `${significant(ns / unit)} ${name}`;
  }
  return `${Math.round(ns)} ns`;
}

function significant(value) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 999.5) return Math.round(value).toLocaleString("en-US");
  const text = value.toPrecision(3);
  return text.includes("e") ? String(Number(text)) : text;
}

const thousands = (value) => value.toLocaleString("en-US");

function percent(share) {
  if (share > 0 && share < 0.0001) return "under 0.01 %";
  if (share > 0.9999 && share < 1) return "over 99.99 %";
  return `${significant(100 * share)} %`;
}

// Returns a colour of the style sheet in the current theme.
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// Functions that draw on a canvas again after the theme or the width of the page changed.
const redraws = [];
function onRedraw(redraw) {
  redraws.push(redraw);
}

function setTheme(theme) {
  document.documentElement.setAttribute("data-theme", theme);
  const button = byId("theme");
  button.setAttribute("aria-pressed", String(theme === "dark"));
  button.textContent = theme === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", theme === "dark" ? "Switch to light colours" : "Switch to dark colours");
  button.removeAttribute("aria-pressed");
  for (const redraw of redraws) redraw();
}

function initTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = false;
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => {
    if (!chosen) setTheme(dark.matches ? "dark" : "light");
  });
  byId("theme").addEventListener("click", () => {
    chosen = true;
    setTheme(document.documentElement.getAttribute("data-theme") === "dark" ? "light" : "dark");
  });
  let width = innerWidth;
  let pending = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(() => redraws.forEach((redraw) => redraw()));
  });
}

// Decodes a base64 text into bytes.
function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// Reads numbers that are encoded with seven bits per byte, the lowest bits first. The top bit of a byte is set if more bytes follow.
class Numbers {
  constructor(text) {
    this.bytes = bytesOf(text);
    this.at = 0;
  }
  get more() {
    return this.at < this.bytes.length;
  }
  next() {
    let value = 0;
    let unit = 1;
    for (;;) {
      const byte = this.bytes[this.at++];
      value += (byte & 0x7f) * unit;
      if (byte < 0x80) return value;
      unit *= 128;
    }
  }
}

// Calls `start` when the element comes near the visible part of the page, so that parts that are never visible cost no time.
function whenSeen(element, start) {
  const observer = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) {
      observer.disconnect();
      start();
    }
  }, { rootMargin: "600px" });
  observer.observe(element);
}

// Makes a group of buttons of which exactly one is pressed.
function choice(label, options, chosen, onChoose) {
  const group = make("div", { class: "joined", role: "group", "aria-label": label });
  for (const [value, text] of options) {
    group.append(make("button", {
      type: "button",
      "aria-pressed": String(value === chosen),
      "data-value": value,
      on: {
        click: (event) => {
          for (const button of group.children) button.setAttribute("aria-pressed", String(button === event.currentTarget));
          onChoose(value);
        },
      },
    }, text));
  }
  return group;
}
