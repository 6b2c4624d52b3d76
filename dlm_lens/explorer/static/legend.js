// Colour legends, and the ranges the colours stand for.

const FLOOR = 1; // × even share: what gets no more than that is drawn as background
const TOP_SHARE = 0.997;
const LEGEND_WIDTH = 200;

// The range of a selection over all its steps, comparable while scrubbing. A few extremes do not set its top:
// the colours would be spent on them.
function rangeOf(data, name, even, ...index) {
  const codes = data.slice(name, ...index);
  const counts = new Uint32Array(256);
  for (const code of codes) counts[code]++;
  let top = 255;
  for (let above = counts[255]; top > 0 && above <= (1 - TOP_SHARE) * codes.length; above += counts[top]) top--;
  return { lo: FLOOR, hi: Math.max(2 * FLOOR, data.value(name, top) / even), log: true };
}

function legendTicks(range) {
  if (!range.log) return [range.lo, (range.lo + range.hi) / 2, range.hi];
  const marks = [];
  const factor = range.hi / range.lo > 500 ? 10 : range.hi / range.lo > 20 ? 4 : 2;
  for (let mark = factor; mark < range.hi; mark *= factor) marks.push(mark);
  // The ends are always named; marks too close to them would run into them.
  const clear = (mark) => levelOf(mark, range) > 0.19 * 255 && levelOf(mark, range) < 0.73 * 255;
  return [range.lo, ...marks.filter(clear), range.hi];
}

// Ends of a clipped range say so.
function shareTick(value, range) {
  const sign = value === range.lo ? "≤ " : value === range.hi ? "≥ " : "";
  return sign + times(value);
}

// A gradient bar with ticks under it and the unit beside it.
function makeLegend(label) {
  const bar = el("div", { class: "dl-legend-bar" });
  const marks = el("div", { class: "dl-legend-ticks" });
  const unit = el("span", { class: "dl-legend-unit" }, label);
  const root = el("div", { class: "dl-legend" }, unit, el("div", { class: "dl-legend-scale" }, bar, marks));
  let shown = null;
  const update = (range, scale, format, text = null) => {
    shown = { range, scale, format };
    if (text !== null) unit.textContent = text;
    const stops = Array.from({ length: 17 }, (_, i) => scale.css[Math.min(255, i * 16)]);
    bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    marks.replaceChildren(
      ...legendTicks(range).map((value, i, all) => {
        const mark = el("span", {}, format(value, range));
        mark.style.left = `${(levelOf(value, range) / 255) * 100}%`;
        if (i === 0) mark.className = "dl-first";
        if (i === all.length - 1) mark.className = "dl-last";
        return mark;
      }),
    );
  };
  // The same on any 2D context: the unit, and under it the bar with its ticks.
  const draw = (app, ctx, x, y) => {
    const { range, scale, format } = shown;
    const from = x + ctx.measureText(unit.textContent).width + 12;
    axisText(app, ctx, unit.textContent, x, y + 10);
    const cell = LEGEND_WIDTH / 64;
    for (let i = 0; i < 64; i++) {
      ctx.fillStyle = scale.css[Math.round((i * 255) / 63)];
      ctx.fillRect(from + i * cell, y, i < 63 ? cell + 0.5 : cell, 11);
    }
    ctx.strokeStyle = app.ink("line");
    ctx.lineWidth = 1;
    ctx.strokeRect(from, y, LEGEND_WIDTH, 11);
    legendTicks(range).forEach((value, i, all) => {
      const align = i === 0 ? "left" : i === all.length - 1 ? "right" : "center";
      axisText(app, ctx, format(value, range), from + (levelOf(value, range) / 255) * LEGEND_WIDTH, y + 24, align);
    });
  };
  root.legend = { draw, width: (ctx) => ctx.measureText(unit.textContent).width + 12 + LEGEND_WIDTH };
  return { root, update };
}

// A sign with its meaning: the swatch gets its look from the style sheet.
function keyItem(kind, text) {
  return el("span", { class: "dl-key", "data-kind": kind }, el("i", { class: `dl-key-${kind}`, "aria-hidden": "true" }), text);
}
