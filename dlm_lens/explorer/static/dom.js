// Small helpers for elements, canvases, numbers and the tooltip. Data reaches the page as text nodes only.

function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function panel(title, ...tools) {
  const heading = el("h3", {}, title);
  const head = el("div", { class: "dl-panel-head" }, heading, el("div", { class: "dl-tools" }, ...tools));
  const body = el("div", { class: "dl-panel-body" });
  const root = el("section", { class: "dl-panel", "aria-label": title }, head, body);
  return { root, body, head, heading };
}

function missing(what) {
  return el("p", { class: "dl-missing" }, what);
}

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  shape.setAttribute("d", path);
  svg.append(shape);
  return svg;
}

// A canvas in CSS pixels. Its size is read when the layout changed, not per frame: reading forces a layout.
// `paint(ctx, width, height, ratio)` draws on any 2D context, so that a picture to save is drawn by the same code.
function makeCanvas(attributes, paint) {
  const node = el("canvas", attributes);
  const ctx = node.getContext("2d");
  const surface = { node, ctx, paint, width: 0, height: 0, ratio: 1 };
  node.picture = () => ({ paint, width: surface.width, height: surface.height, font: ctx.font });
  const measure = () => {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = node;
    Object.assign(surface, { width, height, ratio });
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (node.width !== w || node.height !== h) [node.width, node.height] = [w, h];
    ctx.font = `11px ${getComputedStyle(node).fontFamily}`; // resolving a font forces a layout, too
  };
  // Clears it for drawing; false while it has no size.
  surface.fit = (changed) => {
    if (changed.has("layout")) measure();
    ctx.setTransform(surface.ratio, 0, 0, surface.ratio, 0, 0);
    ctx.clearRect(0, 0, surface.width, surface.height);
    return surface.width > 0 && surface.height > 0;
  };
  surface.draw = (changed) => {
    if (surface.fit(changed)) paint(ctx, surface.width, surface.height, surface.ratio);
  };
  return surface;
}

function pointer(event, node) {
  const box = node.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

const compact = (value) =>
  Number.isFinite(value) ? Number(value.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 }) : "–";
const percent = (value) => (Number.isFinite(value) ? `${compact(value * 100)} %` : "–");
const rounded = (value) => Number(value.toPrecision(2)).toLocaleString("en");
const times = (value) => `${rounded(value)}×`;

function scientific(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0 || (Math.abs(value) >= 0.01 && Math.abs(value) < 1e5)) return compact(value);
  const [mantissa, exponent] = value.toExponential(2).split("e");
  const digits = [...String(Number(exponent))].map((c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(c)])).join("");
  return `${mantissa}×10${digits}`;
}

// Round steps (1, 2, 5 × 10ⁿ) inside [lo, hi], about `count` of them.
function ticks(lo, hi, count) {
  const rough = (hi - lo) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].find((m) => m * power >= rough) * power);
  const marks = [];
  for (let t = Math.ceil(lo / step) * step; t <= hi; t += step) marks.push(t);
  return marks;
}

class Tooltip {
  constructor(root) {
    this.root = root;
    this.node = el("div", { class: "dl-tip", role: "tooltip", hidden: "" });
    root.append(this.node);
  }

  // Rows of [label, value]; a leading string is the headline.
  show(event, headline, rows) {
    const table = rows.map(([label, value]) => el("div", {}, el("span", {}, label), el("b", {}, value)));
    this.node.replaceChildren(...(headline ? [el("code", {}, headline)] : []), ...table);
    this.node.hidden = false;
    const box = this.root.getBoundingClientRect();
    const [w, h] = [this.node.offsetWidth, this.node.offsetHeight];
    const x = event.clientX - box.left + 14;
    const y = event.clientY - box.top + 16;
    const left = x + w > box.width - 8 ? x - w - 28 : x;
    const below = event.clientY + h + 24 < window.innerHeight;
    this.node.style.transform = `translate(${Math.max(8, left)}px, ${below ? y : y - h - 32}px)`;
  }

  hide() {
    this.node.hidden = true;
  }
}
