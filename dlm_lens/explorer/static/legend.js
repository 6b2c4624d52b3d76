// Colour legends, and the ranges the colours stand for.

const MASS_FLOOR = 0.5; // × uniform: a key that gets less than half of an even share is drawn as background

// The mass range of the current selection, over all its steps: comparable while scrubbing.
function massRange(data, sample, selection) {
  let top = 0;
  for (const code of data.slice("mass", sample, selection)) if (code > top) top = code;
  const peak = data.value("mass", top) / data.uniform(sample);
  return { lo: MASS_FLOOR, hi: Math.max(2 * MASS_FLOOR, peak), log: true };
}

function mapRange(data, sample, selection) {
  let top = 0;
  for (const code of data.slice("map", sample, selection)) if (code > top) top = code;
  const peak = data.value("map", top) * data.arrays.map.row;
  return { lo: MASS_FLOOR, hi: Math.max(2 * MASS_FLOOR, peak), log: true };
}

function legendTicks(range) {
  if (!range.log) return [range.lo, (range.lo + range.hi) / 2, range.hi];
  const marks = [];
  const factor = range.hi / range.lo > 500 ? 10 : range.hi / range.lo > 20 ? 4 : 2;
  for (let mark = 1; mark < range.hi; mark *= factor) marks.push(mark);
  // The ends are always named; marks too close to them would run into them.
  const clear = (mark) => levelOf(mark, range) > 0.19 * 255 && levelOf(mark, range) < 0.73 * 255;
  return [range.lo, ...marks.filter(clear), range.hi];
}

// A gradient bar with ticks under it and the unit beside it.
function makeLegend(label) {
  const bar = el("div", { class: "dl-legend-bar" });
  const marks = el("div", { class: "dl-legend-ticks" });
  const unit = el("span", { class: "dl-legend-unit" }, label);
  const root = el("div", { class: "dl-legend" }, unit, el("div", { class: "dl-legend-scale" }, bar, marks));
  const update = (range, scale, format, text = null) => {
    if (text !== null) unit.textContent = text;
    const stops = Array.from({ length: 17 }, (_, i) => scale.css[Math.min(255, i * 16)]);
    bar.style.background = `linear-gradient(to right, ${stops.join(",")})`;
    marks.replaceChildren(
      ...legendTicks(range).map((value, i, all) => {
        const mark = el("span", {}, format(value));
        mark.style.left = `${(levelOf(value, range) / 255) * 100}%`;
        if (i === 0) mark.className = "dl-first";
        if (i === all.length - 1) mark.className = "dl-last";
        return mark;
      }),
    );
  };
  return { root, update };
}

// A sign with its meaning: the swatch gets its look from the style sheet.
function keyItem(kind, text) {
  return el("span", { class: "dl-key" }, el("i", { class: `dl-key-${kind}`, "aria-hidden": "true" }), text);
}
