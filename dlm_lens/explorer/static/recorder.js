// A 2D context that writes SVG: views draw on it as on a canvas, and shapes and words come out as elements.

const SVG = "http://www.w3.org/2000/svg";
const XLINK = "http://www.w3.org/1999/xlink";
const ANCHORS = { left: "start", start: "start", center: "middle", right: "end", end: "end" };
const BASELINES = { middle: "central", top: "hanging", hanging: "hanging", bottom: "text-after-edge" };
const DRAWING_STATE = [
  "fillStyle", "strokeStyle", "lineWidth", "lineJoin", "lineCap", "globalAlpha", "font", "textAlign", "textBaseline",
  "dash", "matrix", "groups", "imageSmoothingEnabled",
];

// What XML does not allow, not even escaped, becomes the replacement character.
function escapeXml(text) {
  return String(text)
    .replace(/[^\u0009\u000a\u000d\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "\ufffd")
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");
}

const short = (value) => Number(value.toFixed(2));

// <tag …/> or <tag …>text</tag>; attributes without a value are left out.
function svgElement(tag, attributes, text = null) {
  const pairs = Object.entries(attributes).filter(([, value]) => value !== null);
  const head = pairs.map(([name, value]) => ` ${name}="${escapeXml(typeof value === "number" ? short(value) : value)}"`).join("");
  return text === null ? `<${tag}${head}/>` : `<${tag}${head}>${escapeXml(text)}</${tag}>`;
}

class SvgRecorder {
  constructor() {
    this.parts = [];
    this.path = [];
    this.clips = 0;
    this.stack = [];
    this.measure = document.createElement("canvas").getContext("2d");
    Object.assign(this, {
      fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, lineJoin: "miter", lineCap: "butt", globalAlpha: 1,
      font: "10px sans-serif", textAlign: "start", textBaseline: "alphabetic", dash: [], matrix: [1, 0, 0, 1, 0, 0],
      groups: 0, imageSmoothingEnabled: true,
    });
  }

  // The document; a viewer without a size of its own shows it at width × height CSS pixels.
  toString(width, height, title) {
    const head =
      `<svg xmlns="${SVG}" xmlns:xlink="${XLINK}" width="${short(width)}" height="${short(height)}"` +
      ` viewBox="0 0 ${short(width)} ${short(height)}">`;
    const open = "</g>".repeat(this.groups);
    return `<?xml version="1.0" encoding="UTF-8"?>\n${head}\n${[svgElement("title", {}, title), ...this.parts].join("\n")}${open}\n</svg>\n`;
  }

  save() {
    this.stack.push(Object.fromEntries(DRAWING_STATE.map((name) => [name, this[name]])));
    this.groups = 0;
  }

  // Clipping groups opened since the save are closed.
  restore() {
    const saved = this.stack.pop();
    if (!saved) return;
    if (this.groups) this.parts.push("</g>".repeat(this.groups));
    Object.assign(this, saved);
  }

  transform(a, b, c, d, e, f) {
    const [A, B, C, D, E, F] = this.matrix;
    this.matrix = [A * a + C * b, B * a + D * b, A * c + C * d, B * c + D * d, A * e + C * f + E, B * e + D * f + F];
  }

  translate(x, y) {
    this.transform(1, 0, 0, 1, x, y);
  }

  rotate(angle) {
    this.transform(Math.cos(angle), Math.sin(angle), -Math.sin(angle), Math.cos(angle), 0, 0);
  }

  scale(x, y) {
    this.transform(x, 0, 0, y, 0, 0);
  }

  setLineDash(dash) {
    this.dash = dash;
  }

  measureText(text) {
    this.measure.font = this.font;
    return this.measure.measureText(text);
  }

  beginPath() {
    this.path = [];
  }

  command(name, ...numbers) {
    this.path.push(name + numbers.map(short).join(" "));
  }

  moveTo(x, y) {
    this.command("M", x, y);
  }

  lineTo(x, y) {
    this.command(this.path.length ? "L" : "M", x, y);
  }

  closePath() {
    this.path.push("Z");
  }

  rect(x, y, width, height) {
    this.command("M", x, y);
    this.path.push(`h${short(width)}v${short(height)}h${short(-width)}Z`);
  }

  roundRect(x, y, width, height, radius = 0) {
    const r = Math.max(0, Math.min(radius, width / 2, height / 2));
    if (!r) return this.rect(x, y, width, height);
    const corner = (dx, dy) => this.path.push(`a${short(r)} ${short(r)} 0 0 1 ${short(dx)} ${short(dy)}`);
    this.command("M", x + r, y);
    this.command("H", x + width - r);
    corner(r, r);
    this.command("V", y + height - r);
    corner(-r, r);
    this.command("H", x + r);
    corner(-r, -r);
    this.command("V", y + r);
    corner(r, -r);
    this.path.push("Z");
  }

  arc(x, y, radius, from, to, backwards = false) {
    const turn = Math.abs(to - from) >= 2 * Math.PI;
    const point = (angle) => [x + radius * Math.cos(angle), y + radius * Math.sin(angle)];
    const sweep = backwards ? 0 : 1;
    this.command(this.path.length ? "L" : "M", ...point(from));
    // One arc cannot end where it begins: a full turn is two halves.
    for (const end of turn ? [from + Math.PI, from + 2 * Math.PI] : [to]) {
      const span = backwards ? from - end : end - from;
      const large = !turn && (((span % (2 * Math.PI)) + 2 * Math.PI) % (2 * Math.PI)) > Math.PI ? 1 : 0;
      this.command("A", radius, radius, 0, large, sweep, ...point(end));
    }
  }

  place() {
    const still = this.matrix.every((value, i) => value === [1, 0, 0, 1, 0, 0][i]);
    return {
      transform: still ? null : `matrix(${this.matrix.map((value) => Number(value.toFixed(5))).join(" ")})`,
      opacity: this.globalAlpha < 1 ? this.globalAlpha : null,
    };
  }

  strokeLook() {
    return {
      fill: "none",
      stroke: this.strokeStyle,
      "stroke-width": this.lineWidth,
      "stroke-linejoin": this.lineJoin === "miter" ? null : this.lineJoin,
      "stroke-linecap": this.lineCap === "butt" ? null : this.lineCap,
      "stroke-dasharray": this.dash.length ? this.dash.join(" ") : null,
    };
  }

  add(tag, attributes, text) {
    this.parts.push(svgElement(tag, { ...attributes, ...this.place() }, text));
  }

  fill() {
    this.add("path", { d: this.path.join(""), fill: this.fillStyle });
  }

  stroke() {
    this.add("path", { d: this.path.join(""), ...this.strokeLook() });
  }

  fillRect(x, y, width, height) {
    this.add("rect", { x, y, width, height, fill: this.fillStyle });
  }

  strokeRect(x, y, width, height) {
    this.add("rect", { x, y, width, height, ...this.strokeLook() });
  }

  clip() {
    const id = `clip${++this.clips}`;
    const shape = svgElement("path", { d: this.path.join(""), transform: this.place().transform });
    this.parts.push(`<clipPath id="${id}">${shape}</clipPath><g clip-path="url(#${id})">`);
    this.groups++;
  }

  // With a width the words keep it whatever font the viewer has.
  fillText(text, x, y, width = null) {
    const [, style, size, family] = /^(.*?)([\d.]+)px(?:\s*\/\s*\S+)?\s+(.*)$/.exec(this.font);
    this.add(
      "text",
      {
        x,
        y,
        fill: this.fillStyle,
        "font-family": family,
        "font-size": Number(size),
        "font-weight": /bold|[1-9]\d\d/.exec(style)?.[0] ?? null,
        "text-anchor": ANCHORS[this.textAlign] === "start" ? null : ANCHORS[this.textAlign],
        "dominant-baseline": BASELINES[this.textBaseline] ?? null,
        textLength: width,
        lengthAdjust: width === null ? null : "spacingAndGlyphs",
        "xml:space": "preserve",
      },
      text,
    );
  }

  // Pixels have no vector form: they are embedded.
  drawImage(source, x, y, width, height) {
    const copy = document.createElement("canvas");
    [copy.width, copy.height] = [source.width, source.height];
    copy.getContext("2d").drawImage(source, 0, 0);
    this.add("image", {
      x,
      y,
      width,
      height,
      preserveAspectRatio: "none",
      style: this.imageSmoothingEnabled ? null : "image-rendering:pixelated",
      "xlink:href": copy.toDataURL(),
    });
  }
}
