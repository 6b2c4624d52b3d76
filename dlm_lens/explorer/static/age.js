// How a choice of columns ages: what the columns that are best at the current step keep of every other step's
// attention, between the columns chosen afresh at each step and as many random ones.

const STALE = 0.95; // of what fresh columns keep: below it a pattern counts as stale

// round(budget · keys), halves to even as Python and numpy round them, at least one.
function keptColumns(budget, keys) {
  const exact = budget * keys;
  const down = Math.floor(exact);
  const half = exact - down === 0.5;
  return Math.max(1, half ? down + (down % 2) : Math.round(exact));
}

// Sorting by counting: how often each of the 256 codes occurs from position `first` on.
function countCodes(codes, first) {
  const counts = new Uint32Array(256);
  for (let p = first; p < codes.length; p++) counts[codes[p]]++;
  return counts;
}

// Positions of the `kept` largest codes; of equal ones the earlier positions.
function bestColumns(codes, first, kept) {
  const counts = countCodes(codes, first);
  let [limit, above] = [255, 0];
  while (above + counts[limit] < kept) above += counts[limit--];
  let ties = kept - above;
  const columns = [];
  for (let p = first; p < codes.length; p++)
    if (codes[p] > limit || (codes[p] === limit && ties-- > 0)) columns.push(p);
  return columns;
}

// All of a row's mass, and what its `kept` best columns hold.
function rowMass(codes, lut, first, kept) {
  const counts = countCodes(codes, first);
  let [total, best, left] = [0, 0, kept];
  for (let code = 255; code >= 0; code--) {
    const taken = Math.min(left, counts[code]);
    total += counts[code] * lut[code];
    best += taken * lut[code];
    left -= taken;
  }
  return { total, best };
}

// The shares that a selection's columns keep: `fresh` per step, `of(step)` for the list chosen at that step.
class PatternAge {
  constructor(data, sample, selection, budget) {
    const { lut } = data.arrays.mass;
    this.codes = data.slice("mass", sample, selection);
    this.width = data.positions;
    this.lut = lut;
    this.first = data.start(sample);
    this.keys = data.positions - this.first;
    this.kept = keptColumns(budget, this.keys);
    this.rows = data.steps.map((_, step) => rowMass(this.row(step), lut, this.first, this.kept));
    this.fresh = this.rows.map(({ best, total }) => best / total);
    this.random = this.kept / this.keys;
  }

  row(step) {
    return this.codes.subarray(step * this.width, (step + 1) * this.width);
  }

  of(chosenAt) {
    const columns = bestColumns(this.row(chosenAt), this.first, this.kept);
    return this.rows.map(({ total }, step) => {
      const row = this.row(step);
      let sum = 0;
      for (const column of columns) sum += this.lut[row[column]];
      return sum / total;
    });
  }
}

function makeAge(app) {
  const { data, store, tip } = app;
  const state = store.state;
  const budget = el("input", { type: "range", min: 0.01, max: 1, step: 0.01, class: "dl-range", "aria-label": "Budget: share of the keys that is kept" });
  budget.addEventListener("input", () => store.set({ budget: Number(budget.value) }));
  const amount = el("output", {});
  const verdict = el("b", {});
  const numbers = el("div", { class: "dl-numbers" }, el("span", { "data-picture": "" }, "the columns of this step ", verdict));
  const view = panel("Pattern age", numbers, el("label", { class: "dl-range-label", "data-picture": "" }, "budget ", budget, amount));
  if (!data.has("mass")) {
    view.head.querySelector(".dl-tools").remove();
    view.body.append(missing("No pattern age: this trace has no column_mass. Capture it with ColumnMass()."));
    return { root: view.root, update() {} };
  }
  let age = null;
  let aged = [];

  const frame = (width, height) => ({ ...app.timeSpan(width), top: 8, height: height - 30 });
  const x = (plot, step) => plot.left + (step + 0.5) * plot.cell;
  const y = (plot, share) => plot.top + (1 - share) * plot.height;
  const line = (ctx, plot, shares, from = 0, to = shares.length) => {
    ctx.beginPath();
    for (let step = from; step < to; step++) ctx.lineTo(x(plot, step), y(plot, shares[step]));
    ctx.stroke();
  };

  const base = makeCanvas({ class: "dl-age" }, (ctx, width, height) => {
    const plot = frame(width, height);
    ctx.fillStyle = app.ink("plot");
    ctx.fillRect(plot.left, plot.top, plot.width, plot.height);
    drawShareAxis(app, ctx, plot, y);
    drawRefreshes(ctx, plot);
    ctx.lineJoin = "round";
    ctx.lineWidth = 1.25;
    ctx.strokeStyle = app.ink("dim");
    ctx.setLineDash([5, 4]);
    line(ctx, plot, age.fresh.map(() => age.random));
    ctx.setLineDash([]);
    ctx.strokeStyle = app.ink("text");
    line(ctx, plot, age.fresh);
    drawStepAxis(app, ctx, plot);
  });

  const over = makeCanvas({ class: "dl-age dl-overlay", role: "img" }, (ctx, width, height) => {
    const plot = frame(width, height);
    ctx.lineJoin = "round";
    ctx.lineWidth = 2.5;
    ctx.strokeStyle = app.ink("kind-sparse");
    ctx.globalAlpha = 0.4; // before its time
    line(ctx, plot, aged, 0, state.step + 1);
    ctx.globalAlpha = 1;
    line(ctx, plot, aged, state.step);
    drawPlayhead(app, ctx, plot, plot.top - 6, plot.top + plot.height);
    ctx.fillStyle = app.ink("kind-sparse");
    ctx.beginPath();
    ctx.arc(x(plot, state.step), y(plot, aged[state.step]), 4, 0, 2 * Math.PI);
    ctx.fill();
  });

  // A triangle hanging from the top edge.
  const drawRefreshes = (ctx, plot) => {
    ctx.fillStyle = app.ink("kind-refresh");
    data.manifest.kinds.forEach((kind, step) => {
      if (kind !== "refresh") return;
      ctx.beginPath();
      ctx.moveTo(x(plot, step) - 4, plot.top);
      ctx.lineTo(x(plot, step) + 4, plot.top);
      ctx.lineTo(x(plot, step), plot.top + 7);
      ctx.fill();
    });
  };

  const keys = el(
    "div",
    { class: "dl-keys" },
    keyItem("aged", "columns chosen at the current step (pale: steps before it)"),
    keyItem("fresh-line", "chosen afresh at every step"),
    keyItem("random", "as many random columns"),
  );
  if (data.manifest.kinds.includes("refresh")) keys.append(keyItem("refresh-mark", "step that rebuilt the policy's pattern"));
  const hint = "One list for all queries of the selection; fresh lists for groups of queries keep at least as much.";
  view.body.append(
    el("div", { class: "dl-stack" }, base.node, over.node),
    el("div", { class: "dl-panel-foot" }, keys, el("span", { class: "dl-hint", "data-picture": "" }, hint)),
  );

  over.node.addEventListener("mousemove", (event) => {
    const plot = frame(over.width, over.height);
    const step = Math.floor((pointer(event, over.node)[0] - plot.left) / plot.cell);
    if (step < 0 || step >= data.steps.length) return tip.hide();
    const distance = data.steps[step] - data.steps[state.step];
    tip.show(event, null, [
      ["step", `${data.steps[step]}`],
      ["columns chosen at", `step ${data.steps[state.step]} (${distance < 0 ? `${-distance} later` : `${distance} before`})`],
      ["they keep", percent(aged[step])],
      ["fresh columns keep", percent(age.fresh[step])],
      ["random columns keep", percent(age.random)],
    ]);
  });
  over.node.addEventListener("mouseleave", () => tip.hide());
  app.dragTime(over);

  const update = (changed) => {
    if (!touches(changed, "step", "layer", "head", "budget", ...EVERYTHING)) return;
    if (touches(changed, "layer", "head", "budget", ...EVERYTHING)) {
      age = new PatternAge(data, state.sample, data.selection(state.layer, state.head), state.budget);
      budget.value = state.budget;
      amount.textContent = `${percent(state.budget)} · ${age.kept} of ${age.keys} keys`;
      base.draw(changed);
    }
    aged = age.of(state.step);
    verdict.textContent = staleText(app, aged, age.fresh);
    over.node.setAttribute("aria-label", `Attention kept by columns over the steps: ${numbers.textContent}`);
    over.draw(changed);
  };
  return { root: view.root, update };
}

// When the list falls behind fresh ones, counted in steps of the run.
function staleText(app, aged, fresh) {
  const { steps } = app.data;
  const { step } = app.store.state;
  const stale = aged.findIndex((share, at) => at > step && share < STALE * fresh[at]);
  const mark = percent(STALE);
  if (stale < 0) return `keep ${mark} of what fresh ones keep to the end`;
  const age = steps[stale] - steps[step];
  return `fall below ${mark} of fresh ones after ${age} ${age === 1 ? "step" : "steps"}`;
}

// Shares from 0 to 100 % up the left edge, with lines across.
function drawShareAxis(app, ctx, plot, y) {
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    ctx.fillStyle = app.ink("line");
    ctx.fillRect(plot.left, y(plot, share), plot.width, 1);
    if (share * 2 === Math.round(share * 2)) axisText(app, ctx, percent(share), plot.left - 8, y(plot, share) + 4, "right");
  }
  sideTitle(app, ctx, plot, "attention kept");
}

function sideTitle(app, ctx, plot, text) {
  ctx.save();
  ctx.translate(12, plot.top + plot.height / 2);
  ctx.rotate(-Math.PI / 2);
  axisText(app, ctx, text, 0, 0, "center");
  ctx.restore();
}
