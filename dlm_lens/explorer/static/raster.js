// Column mass of every position at every step, sinks marked. The picture is made once per selection;
// the line of the current step and the marked rows lie on a canvas above it.

const MARK = 1.5; // pixels, the lowest that a sink is drawn

function makeRaster(app) {
  const { data, store, tip } = app;
  const state = store.state;
  const legend = makeLegend("attention received, × even share");
  const view = panel("Columns over the run", legend.root);
  if (!data.has("mass")) {
    legend.root.remove();
    view.body.append(missing("No raster: this trace has no column_mass. Capture it with ColumnMass()."));
    return { root: view.root, update() {} };
  }
  const base = makeCanvas({ class: "dl-raster" }, (ctx, width, height, ratio) => drawBase(ctx, width, height, ratio));
  const over = makeCanvas({ class: "dl-raster dl-overlay", role: "img" }, (ctx, width, height) => drawOver(ctx, width, height));
  const stack = el("div", { class: "dl-stack" }, base.node, over.node);
  const keys = el(
    "div",
    { class: "dl-keys" },
    keyItem("sink-line", `sink: mass > mean + ${compact(data.manifest.kappa)} sd; pale where few of many are`),
    keyItem("frontier", "position is committed here"),
    keyItem("follow", "followed token"),
  );
  view.body.append(stack, el("div", { class: "dl-panel-foot" }, keys, el("span", { class: "dl-hint" }, "click to go to a step · shift-click to follow a position")));

  const frame = (width, height) => ({ ...app.timeSpan(width), top: 6, height: height - 12 });
  const first = () => data.start(state.sample);
  const count = () => data.positions - first();
  const rowY = (position, plot) => plot.top + ((position - first()) / count()) * plot.height;

  // Rows of the image are positions, or the strongest of several positions where the screen has fewer rows.
  const image = (rows) => {
    const { sample, layer, head } = state;
    const codes = data.slice("mass", sample, data.selection(layer, head));
    const table = levelTable(data.arrays.mass.lut, app.range("mass"), data.uniform(sample));
    const { rgb } = app.scale();
    const steps = data.steps.length;
    const picture = new ImageData(steps, rows);
    for (let row = 0; row < rows; row++) {
      const from = first() + Math.floor((row * count()) / rows);
      const to = Math.max(from + 1, first() + Math.floor(((row + 1) * count()) / rows));
      for (let step = 0; step < steps; step++) {
        let code = 0;
        for (let p = from; p < to; p++) code = Math.max(code, codes[step * data.positions + p]);
        const level = table[code] * 3;
        const at = (row * steps + step) * 4;
        picture.data[at] = rgb[level];
        picture.data[at + 1] = rgb[level + 1];
        picture.data[at + 2] = rgb[level + 2];
        picture.data[at + 3] = 255;
      }
    }
    const buffer = new OffscreenCanvas(steps, rows);
    buffer.getContext("2d").putImageData(picture, 0, 0);
    return buffer;
  };

  const drawBase = (ctx, width, height, ratio) => {
    const plot = frame(width, height);
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(image(Math.min(count(), Math.round(plot.height * ratio))), plot.left, plot.top, plot.width, plot.height);
    ctx.strokeStyle = app.ink("line");
    ctx.lineWidth = 1;
    ctx.strokeRect(plot.left - 0.5, plot.top - 0.5, plot.width + 1, plot.height + 1);
    drawFrontier(ctx, plot);
    drawSinks(ctx, plot);
    drawPositionAxis(app, ctx, plot, rowY);
  };

  // Where a mark is higher than a position it stands for several, and is the paler the fewer of them are sinks.
  const drawSinks = (ctx, plot) => {
    if (!data.has("sinks")) return;
    const selection = data.selection(state.layer, state.head);
    const together = Math.max(1, Math.ceil((MARK / plot.height) * count()));
    const row = (plot.height / count()) * together;
    const thickness = Math.max(MARK, Math.min(3, row));
    ctx.fillStyle = app.ink("sink");
    for (let step = 0; step < data.steps.length; step++) {
      for (let from = first(); from < data.positions; from += together) {
        const share = sinkShare(selection, step, from, Math.min(from + together, data.positions));
        if (!share) continue;
        ctx.globalAlpha = 0.25 + 0.75 * share;
        ctx.fillRect(plot.left + step * plot.cell, rowY(from, plot) + (row - thickness) / 2, plot.cell, thickness);
      }
    }
    ctx.globalAlpha = 1;
  };

  const sinkShare = (selection, step, from, to) => {
    let sinks = 0;
    for (let p = from; p < to; p++) sinks += data.bit("sinks", state.sample, selection, step, p) ? 1 : 0;
    return sinks / (to - from);
  };

  // A tick at the step that decided a position: left of it the position is a mask.
  const drawFrontier = (ctx, plot) => {
    ctx.fillStyle = app.ink("frontier");
    const height = Math.max(plot.height / count(), 1.5);
    for (let p = data.promptLength; p < data.positions; p++) {
      const step = data.decidedIn(state.sample, p);
      if (step < 0) continue;
      ctx.fillRect(plot.left + (step + 1) * plot.cell - 1, rowY(p, plot), 2, height);
    }
  };

  const drawOver = (ctx, width, height) => {
    const plot = frame(width, height);
    const band = (position, ink) => {
      const height = Math.max(3, plot.height / count());
      const y = rowY(position, plot) + plot.height / count() / 2 - height / 2;
      ctx.strokeStyle = app.ink(ink);
      ctx.lineWidth = 1.5;
      ctx.strokeRect(plot.left - 1, y - 1, plot.width + 2, height + 2);
    };
    if (state.hover >= first()) band(state.hover, "dim");
    if (state.follow >= first()) band(state.follow, "follow");
    drawPlayhead(app, ctx, plot, plot.top - 6, plot.top + plot.height + 6);
  };

  const at = (event) => {
    const plot = frame(over.width, over.height);
    const [px, py] = pointer(event, over.node);
    const share = (py - plot.top) / plot.height;
    if (px < plot.left || px > plot.left + plot.width || share < 0 || share >= 1) return null;
    return { position: first() + Math.floor(share * count()), step: Math.min(data.steps.length - 1, Math.floor((px - plot.left) / plot.cell)) };
  };

  over.node.addEventListener("mousemove", (event) => {
    const hit = at(event);
    if (!hit) return tip.hide();
    tip.show(event, ...describePosition(app, hit.position, hit.step));
    store.set({ hover: hit.position });
  });
  over.node.addEventListener("mouseleave", () => {
    tip.hide();
    store.set({ hover: -1 });
  });
  over.node.addEventListener("click", (event) => {
    const hit = at(event);
    if (hit && event.shiftKey) store.set({ follow: hit.position === state.follow ? -1 : hit.position });
  });
  app.dragTime(over);

  const update = (changed) => {
    if (touches(changed, "layer", "head", ...EVERYTHING)) {
      legend.update(app.range("mass"), app.scale(), shareTick);
      over.node.setAttribute("aria-label", `Attention received by each position at each step, ${app.selectionText()}`);
      base.draw(changed);
    }
    if (touches(changed, "step", "layer", "head", "follow", "hover", ...EVERYTHING)) over.draw(changed);
  };
  return { root: view.root, update };
}

// Positions down the left edge, and where the prompt ends.
function drawPositionAxis(app, ctx, plot, rowY) {
  const { data } = app;
  const end = rowY(data.promptLength, plot);
  for (const position of ticks(0, data.positions - 1, plot.height / 40)) {
    if (position < data.start(app.store.state.sample)) continue;
    axisText(app, ctx, `${position}`, plot.left - 8, Math.max(rowY(position, plot) + 4, plot.top + 9), "right");
  }
  ctx.setLineDash([4, 3]);
  ctx.strokeStyle = app.ink("boundary");
  ctx.lineWidth = 1;
  ctx.beginPath();
  ctx.moveTo(plot.left - 4, end);
  ctx.lineTo(plot.left + plot.width, end);
  ctx.stroke();
  ctx.setLineDash([]);
  const titles = [
    ["prompt", plot.top, end],
    ["generation", end, plot.top + plot.height],
  ];
  for (const [title, from, to] of titles) {
    if (ctx.measureText(title).width > to - from - 4) continue;
    ctx.save();
    ctx.translate(12, (from + to) / 2);
    ctx.rotate(-Math.PI / 2);
    axisText(app, ctx, title, 0, 0, "center");
    ctx.restore();
  }
}
