// Layers × heads, coloured by a metric at the current step. A cell picks its head, a row's number its layer.

function makeGrid(app) {
  const { data, store, tip } = app;
  const state = store.state;
  const metrics = data.manifest.metrics;
  const choose = el("select", { "aria-label": "Metric of the grid", title: "Metric of the grid" });
  for (const metric of metrics) choose.append(el("option", { value: metric.key }, metric.label));
  choose.addEventListener("change", () => store.set({ metric: choose.value }));
  const all = el("button", { type: "button", class: "dl-button dl-wide", onclick: () => app.choose({ layer: -1, head: -1 }) }, "all heads");
  all.title = "Average over all layers and heads (a)";
  const view = panel("Heads", choose, all);
  const legend = makeLegend("");
  const chosen = el("div", { class: "dl-chosen", "aria-live": "polite" });
  const attributes = {
    class: "dl-grid",
    tabindex: "0",
    role: "application",
    "aria-label": "Grid of layers and heads; arrow keys move the selection",
  };
  const canvas = makeCanvas(attributes, (ctx, width, height) => draw(ctx, width, height));
  view.body.append(canvas.node, el("div", { class: "dl-panel-foot" }, legend.root, chosen));
  const [rows, columns] = [data.layers.length, data.heads.length];
  let geometry = null;

  const metric = () => metrics.find((m) => m.key === state.metric) ?? metrics[0];
  const values = () =>
    metric().key === "recall"
      ? data.recall(state.sample, state.step, state.budget)
      : data.slice("metrics", state.sample, metrics.indexOf(metric()), state.step);
  const range = () => {
    const ranges = app.peers.map((peer) => metricRange(peer, metric().key)).filter(Boolean);
    const [lo, hi] = [Math.min(...ranges.map((r) => r.lo)), Math.max(...ranges.map((r) => r.hi))];
    return { lo, hi: hi > lo ? hi : lo + 1e-9 };
  };
  const unitLabel = () =>
    metric().key === "recall" ? `recall at ${percent(state.budget)} of the keys` : metric().unit_label;

  const layOut = (width, height) => {
    const [left, top, right, bottom] = [34, 8, 6, 26];
    const cell = Math.min((width - left - right) / columns, (height - top - bottom) / rows);
    const x = left + (width - left - right - cell * columns) / 2;
    const y = top + (height - top - bottom - cell * rows) / 2;
    geometry = { cell, x, y };
  };

  const draw = (ctx, width, height) => {
    layOut(width, height);
    const { cell, x, y } = geometry;
    const scale = app.scale();
    const now = values();
    const span = range();
    const gap = cell > 12 ? 2 : cell > 6 ? 1 : 0;
    const radius = cell > 16 ? 3 : 0;
    ctx.lineWidth = 1;
    ctx.strokeStyle = app.ink("line");
    for (let i = 0; i < now.length; i++) {
      const [row, column] = [Math.floor(i / columns), i % columns];
      ctx.fillStyle = Number.isFinite(now[i]) ? scale.css[levelOf(now[i], span)] : app.ink("line");
      ctx.beginPath();
      ctx.roundRect(x + column * cell + gap / 2, y + row * cell + gap / 2, cell - gap, cell - gap, radius);
      ctx.fill();
      if (gap === 2) ctx.stroke();
    }
    drawSelection(ctx);
    drawLabels(ctx);
  };

  const drawSelection = (ctx) => {
    const { cell, x, y } = geometry;
    const { layer, head } = state;
    if (layer < 0) return;
    const [left, width] = head < 0 ? [x, cell * columns] : [x + head * cell, cell];
    ctx.lineWidth = 4.5;
    ctx.strokeStyle = app.ink("surface");
    ctx.strokeRect(left, y + layer * cell, width, cell);
    ctx.lineWidth = 2.25;
    ctx.strokeStyle = app.ink("follow");
    ctx.strokeRect(left, y + layer * cell, width, cell);
  };

  const drawLabels = (ctx) => {
    const { cell, x, y } = geometry;
    const every = (count, room) => [1, 2, 4, 8, 16, 32].find((n) => n * cell >= room || n >= count);
    const nthRow = every(rows, 13);
    const nthColumn = every(columns, 18);
    data.layers.forEach((label, row) => {
      if (row % nthRow) return;
      const own = row === state.layer;
      axisText(app, ctx, `${label}`, x - 8, y + (row + 0.5) * cell + 4, "right", own ? "text" : "dim");
    });
    data.heads.forEach((label, column) => {
      if (column % nthColumn) return;
      const own = column === state.head;
      axisText(app, ctx, `${label}`, x + (column + 0.5) * cell, y + rows * cell + 14, "center", own ? "text" : "dim");
    });
    axisText(app, ctx, "head", x + columns * cell, y + rows * cell + 26, "right");
    ctx.save();
    ctx.translate(x - 24, y);
    ctx.rotate(-Math.PI / 2);
    axisText(app, ctx, "layer", 0, 0, "right");
    ctx.restore();
  };

  // [layer, head] under the pointer; head −1 on a row's number.
  const at = (event) => {
    if (!geometry) return null;
    const [px, py] = pointer(event, canvas.node);
    const column = Math.floor((px - geometry.x) / geometry.cell);
    const row = Math.floor((py - geometry.y) / geometry.cell);
    if (row < 0 || row >= rows || column >= columns) return null;
    return column < 0 ? [row, -1] : [row, column];
  };

  canvas.node.addEventListener("click", (event) => {
    const hit = at(event);
    if (hit) app.choose({ layer: hit[0], head: hit[1] });
  });
  canvas.node.addEventListener("mousemove", (event) => {
    const hit = at(event);
    canvas.node.style.cursor = hit ? "pointer" : "";
    if (!hit) return tip.hide();
    const [layer, head] = hit;
    if (head < 0) return tip.show(event, `layer ${data.layers[layer]}`, [["click", "mean over its heads"]]);
    const value = values()[layer * columns + head];
    tip.show(event, `layer ${data.layers[layer]} · head ${data.heads[head]}`, [
      ["step", `${data.steps[state.step]}`],
      [metric().label, metricText(metric(), value)],
    ]);
  });
  canvas.node.addEventListener("mouseleave", () => tip.hide());
  canvas.node.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const layer = Math.max(0, Math.min(rows - 1, state.layer < 0 ? 0 : state.layer + move[0]));
    const head = state.layer < 0 ? 0 : Math.max(-1, Math.min(columns - 1, state.head + move[1]));
    app.choose({ layer, head });
  });

  const update = (changed) => {
    if (!touches(changed, "step", "layer", "head", "metric", "budget", "loading", "failure", ...EVERYTHING)) return;
    choose.value = metric().key;
    choose.title = metric().description;
    all.setAttribute("aria-pressed", state.layer < 0);
    chosen.textContent = state.failure || (state.loading ? `loading ${state.loading} …` : app.selectionText());
    chosen.classList.toggle("dl-failed", Boolean(state.failure));
    if (state.head >= 0 && !state.loading && !state.failure)
      chosen.textContent += ` · ${metricText(metric(), values()[state.layer * columns + state.head])}`;
    if (touches(changed, "metric", "budget", ...EVERYTHING))
      legend.update(range(), app.scale(), (v) => (metric().unit === "%" ? `${rounded(v * 100)} %` : rounded(v)), unitLabel());
    canvas.draw(changed);
  };

  if (metrics.length) return { root: view.root, update };
  view.body.replaceChildren(missing("No metric per head: this trace has neither column_mass nor row_entropy."));
  return { root: view.root, update() {} };
}

// A metric's range over all steps of a run; null if the run does not have it.
function metricRange(app, key) {
  const { data, store } = app;
  if (key === "recall") return data.has("recall") ? data.recallRange(store.state.sample, store.state.budget) : null;
  return data.manifest.metrics.find((metric) => metric.key === key)?.range[store.state.sample] ?? null;
}

function metricText(metric, value) {
  if (metric.unit === "%") return percent(value);
  return metric.unit ? `${compact(value)} ${metric.unit}` : compact(value);
}
