"use strict";  // What the scripts of all pages begin with: errors counted, the data, and elements made of it.
const root = document.documentElement;
root.dataset.errors = "0";
addEventListener("error", () => { root.dataset.errors = String(Number(root.dataset.errors) + 1); });

const $ = id => document.getElementById(id);
const data = JSON.parse($("data").textContent);

const SVG = new Set(["svg", "g", "line", "rect", "circle", "text", "title"]);
/** Make an element; children that are texts become text nodes, so that data is never read as markup. */
function el(tag, attributes, ...children) {
  const node = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style") for (const [property, one] of Object.entries(value)) node.style.setProperty(property, one);
    else if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return node;
}
/** Put these in the place of what an element holds. */
const fill = (id, ...children) => $(id).replaceChildren(...children.flat(Infinity).filter(child => child !== null && child !== false));
