// Where bins of queries look: the pooled map of the selection at the current step.

const BIN_TOKENS = 6;

function makeMap(app) {
  const { data, store, tip } = app;
  const state = store.state;
  const view = panel("Attention map");
  if (!data.has("map")) {
    view.body.append(missing("No map: this trace has no pooled_map. Capture it with PooledMap(bins=64)."));
    return { root: view.root, update() {} };
  }
  const legend = makeLegend("attention paid, × even share");
  const subject = el("span", { class: "dl-subject" });
  view.head.querySelector(".dl-tools").append(subject);
  const canvas = makeCanvas({ class: "dl-map", role: "img" }, (ctx, width, height) => draw(ctx, width, height));
  view.body.append(canvas.node, el("div", { class: "dl-panel-foot" }, legend.root));
  const bins = data.arrays.map.row;
  const image = new ImageData(bins, bins);
  const buffer = new OffscreenCanvas(bins, bins);
  let plot = null;

  // Fraction of the axis at which a position begins; bin of position p is floor(p · bins / positions).
  const along = (position) => Math.ceil((position * bins) / data.positions) / bins;
  const firstOf = (bin) => Math.ceil((bin * data.positions) / bins);

  // The tokens of a bin at the current step, as many as a tooltip holds; runs of masks are counted.
  const tokensOf = (bin) => {
    const positions = [];
    for (let p = Math.max(firstOf(bin), data.start(state.sample)); p < firstOf(bin + 1); p++) positions.push(p);
    const open = positions.filter((p) => data.state(state.sample, state.step, p) !== "masked");
    const words = open.slice(0, BIN_TOKENS).map((p) => wordAt(data, state.sample, state.step, p));
    const masked = positions.length - open.length;
    if (open.length > BIN_TOKENS) words.push("…");
    if (masked) words.push(`(${masked} masked)`);
    return words.join(" ");
  };

  // Room for the positions at the axis, beside its title.
  const margin = 25 + 7 * Math.max(3, `${data.positions}`.length);

  const draw = (ctx, width, height) => {
    const [left, top, right, bottom] = [margin, 8, 8, 36];
    const side = Math.min(width - left - right, height - top - bottom);
    plot = { x: left + (width - left - right - side) / 2, y: top, side };
    fillImage(image, data.slice("map", state.sample, data.selection(state.layer, state.head), state.step));
    buffer.getContext("2d").putImageData(image, 0, 0);
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(buffer, plot.x, plot.y, side, side);
    drawKept(app, ctx, plot, bins);
    ctx.strokeStyle = app.ink("line");
    ctx.lineWidth = 1;
    ctx.strokeRect(plot.x - 0.5, plot.y - 0.5, side + 1, side + 1);
    drawRegions(ctx);
    drawFollowed(ctx);
    drawAxes(ctx);
  };

  const fillImage = (target, codes) => {
    const table = levelTable(data.arrays.map.lut, app.range("map"), 1 / bins);
    const { rgb } = app.scale();
    for (let i = 0; i < codes.length; i++) {
      const level = table[codes[i]] * 3;
      target.data[i * 4] = rgb[level];
      target.data[i * 4 + 1] = rgb[level + 1];
      target.data[i * 4 + 2] = rgb[level + 2];
      target.data[i * 4 + 3] = 255;
    }
  };

  const drawRegions = (ctx) => {
    const at = along(data.promptLength) * plot.side;
    ctx.setLineDash([4, 3]);
    ctx.strokeStyle = app.ink("boundary");
    ctx.lineWidth = 1;
    ctx.beginPath();
    ctx.moveTo(plot.x + at, plot.y);
    ctx.lineTo(plot.x + at, plot.y + plot.side);
    ctx.moveTo(plot.x, plot.y + at);
    ctx.lineTo(plot.x + plot.side, plot.y + at);
    ctx.stroke();
    ctx.setLineDash([]);
  };

  const drawFollowed = (ctx) => {
    if (state.follow < 0) return;
    const bin = Math.floor((state.follow * bins) / data.positions);
    const cell = plot.side / bins;
    ctx.strokeStyle = app.ink("follow");
    ctx.lineWidth = 1.25;
    ctx.strokeRect(plot.x + bin * cell, plot.y, cell, plot.side);
    ctx.strokeRect(plot.x, plot.y + bin * cell, plot.side, cell);
    ctx.lineWidth = 1;
  };

  const drawAxes = (ctx) => {
    const { x, y, side } = plot;
    const marks = ticks(0, data.positions - 1, side > 260 ? 5 : 3);
    for (const position of marks) {
      const at = (position / data.positions) * side;
      axisText(app, ctx, `${position}`, x + at, y + side + 14, position ? "center" : "left");
      axisText(app, ctx, `${position}`, x - 6, y + at + (position ? 4 : 9), "right");
    }
    regionTitles(app, ctx, along(data.promptLength), (text, from, to, ink) => {
      axisText(app, ctx, text, x + ((from + to) / 2) * side, y + side + 30, "center", ink);
    }, side, ["prompt keys", "generation keys"]);
    regionTitles(app, ctx, along(data.promptLength), (text, from, to, ink) => {
      ctx.save();
      ctx.translate(x - margin + 10, y + ((from + to) / 2) * side);
      ctx.rotate(-Math.PI / 2);
      axisText(app, ctx, text, 0, 0, "center", ink);
      ctx.restore();
    }, side, ["prompt queries", "generation queries"]);
  };

  canvas.node.addEventListener("mousemove", (event) => {
    if (!plot) return;
    const [px, py] = pointer(event, canvas.node);
    const column = Math.floor(((px - plot.x) / plot.side) * bins);
    const row = Math.floor(((py - plot.y) / plot.side) * bins);
    if (column < 0 || row < 0 || column >= bins || row >= bins) return tip.hide();
    const codes = data.slice("map", state.sample, data.selection(state.layer, state.head), state.step);
    const value = data.value("map", codes[row * bins + column]);
    const span = (bin) => `${firstOf(bin)}–${firstOf(bin + 1) - 1}`;
    tip.show(event, null, [
      ["step", `${data.steps[state.step]}`],
      ["queries", `${span(row)}  ${tokensOf(row)}`],
      ["keys", `${span(column)}  ${tokensOf(column)}`],
      ["share", shareText(value, 1 / bins)],
    ]);
  });
  canvas.node.addEventListener("mouseleave", () => tip.hide());

  const update = (changed) => {
    if (!touches(changed, "step", "layer", "head", "follow", "kept", ...EVERYTHING)) return;
    if (touches(changed, "layer", "head", ...EVERYTHING)) {
      legend.update(app.range("map"), app.scale(), shareTick);
      subject.textContent = app.selectionText();
    }
    canvas.node.setAttribute("aria-label", `Pooled attention map, ${bins} by ${bins} bins, ${app.selectionText()}`);
    canvas.draw(changed);
  };
  return { root: view.root, update };
}

// "prompt" and "generation" along an axis, where there is room for the word.
function regionTitles(app, ctx, boundary, place, length, titles) {
  const room = (text, share) => ctx.measureText(text).width < share * length - 4;
  const pick = (text, share) => (room(text, share) ? text : room(text.split(" ")[0], share) ? text.split(" ")[0] : "");
  place(pick(titles[0], boundary), 0, boundary, "dim");
  place(pick(titles[1], 1 - boundary), boundary, 1, "dim");
}
