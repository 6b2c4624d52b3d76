// Where the sinks are: the centroid of their mass at every step, how widely they lie, and the two variances.

function makeDrift(app) {
  const { data, store, tip } = app;
  const state = store.state;
  const spatial = el("b", {});
  const temporal = el("b", {});
  const numbers = el(
    "div",
    { class: "dl-numbers" },
    el("span", { "data-picture": "", title: "Variance over positions of the mass that a position receives on average over the steps" }, "spatial variance ", spatial),
    el("span", { "data-picture": "", title: "Variance over steps of the sinks' centroid" }, "temporal variance ", temporal),
  );
  const view = panel("Sink drift", numbers);
  if (!data.has("centroid")) {
    numbers.remove();
    view.body.append(missing("No sink drift: this trace has no column_mass. Capture it with ColumnMass()."));
    return { root: view.root, update() {} };
  }
  const base = makeCanvas({ class: "dl-drift" }, (ctx, width, height) => drawBase(ctx, frame(width, height)));
  const over = makeCanvas({ class: "dl-drift dl-overlay", role: "img" }, (ctx, width, height) => {
    const plot = frame(width, height);
    drawPlayhead(app, ctx, plot, plot.top - 6, plot.top + plot.height);
  });
  const keys = el(
    "div",
    { class: "dl-keys" },
    keyItem("centroid", "centroid of the sinks, by mass"),
    keyItem("spread", "± their spread (sd of positions)"),
  );
  view.body.append(el("div", { class: "dl-stack" }, base.node, over.node), el("div", { class: "dl-panel-foot" }, keys));

  const frame = (width, height) => ({ ...app.timeSpan(width), top: 6, height: height - 28 });
  const rowY = (position, plot) => {
    const first = data.start(state.sample);
    return plot.top + ((position - first) / (data.positions - first)) * plot.height;
  };
  const series = () => {
    const selection = data.selection(state.layer, state.head);
    return [data.slice("centroid", state.sample, selection), data.slice("spread", state.sample, selection)];
  };

  const drawBase = (ctx, plot) => {
    ctx.fillStyle = app.ink("plot");
    ctx.fillRect(plot.left, plot.top, plot.width, plot.height);
    drawPositionAxis(app, ctx, plot, rowY);
    const [centroid, spread] = series();
    const x = (step) => plot.left + (step + 0.5) * plot.cell;
    ctx.save();
    ctx.beginPath();
    ctx.rect(plot.left, plot.top, plot.width, plot.height);
    ctx.clip();
    for (const run of unbroken(centroid)) {
      ctx.beginPath();
      for (const step of run) ctx.lineTo(x(step), rowY(centroid[step] - spread[step], plot));
      for (const step of [...run].reverse()) ctx.lineTo(x(step), rowY(centroid[step] + spread[step], plot));
      ctx.globalAlpha = 0.16;
      ctx.fillStyle = app.ink("sink");
      ctx.fill();
      ctx.globalAlpha = 1;
      ctx.beginPath();
      for (const step of run) ctx.lineTo(x(step), rowY(centroid[step], plot));
      ctx.lineWidth = 2;
      ctx.lineJoin = "round";
      ctx.strokeStyle = app.ink("sink");
      ctx.stroke();
      for (const step of run) {
        ctx.beginPath();
        ctx.arc(x(step), rowY(centroid[step], plot), Math.min(2.5, plot.cell / 2), 0, 2 * Math.PI);
        ctx.fillStyle = app.ink("sink");
        ctx.fill();
      }
    }
    ctx.restore();
    drawStepAxis(app, ctx, plot);
  };

  over.node.addEventListener("mousemove", (event) => {
    const plot = frame(over.width, over.height);
    const step = Math.floor((pointer(event, over.node)[0] - plot.left) / plot.cell);
    if (step < 0 || step >= data.steps.length) return tip.hide();
    const [centroid, spread] = series();
    tip.show(event, null, [
      ["step", `${data.steps[step]}`],
      ["centroid", Number.isFinite(centroid[step]) ? `position ${compact(centroid[step])}` : "no sink"],
      ["spread", Number.isFinite(spread[step]) ? `± ${compact(spread[step])} positions` : "–"],
    ]);
  });
  over.node.addEventListener("mouseleave", () => tip.hide());
  app.dragTime(over);

  const update = (changed) => {
    if (touches(changed, "layer", "head", ...EVERYTHING)) {
      const [s, t] = data.slice("variance", state.sample, data.selection(state.layer, state.head));
      spatial.textContent = `${scientific(s)} ${data.manifest.variance_units[0]}`;
      temporal.textContent = `${scientific(t)} ${data.manifest.variance_units[1]}`;
      if (t > 0) temporal.textContent += ` (sd ${compact(Math.sqrt(t))})`;
      over.node.setAttribute("aria-label", `Sink centroid over steps: ${numbers.textContent}`);
      base.draw(changed);
    }
    if (touches(changed, "step", "layer", "head", ...EVERYTHING)) over.draw(changed);
  };
  return { root: view.root, update };
}

// Stretches of steps that have a value: a step without sinks breaks the line.
function unbroken(values) {
  const runs = [];
  let open = null;
  values.forEach((value, step) => {
    if (!Number.isFinite(value)) open = null;
    else if (open) open.push(step);
    else runs.push((open = [step]));
  });
  return runs;
}

function drawStepAxis(app, ctx, plot) {
  const { steps } = app.data;
  const y = plot.top + plot.height;
  ctx.fillStyle = app.ink("line");
  ctx.fillRect(plot.left, y, plot.width, 1);
  for (const index of ticks(0, steps.length - 1, plot.width / 80))
    axisText(app, ctx, `${steps[index]}`, plot.left + (index + 0.5) * plot.cell, y + 15, "center");
  axisText(app, ctx, "step", plot.left - 8, y + 15, "right");
}
