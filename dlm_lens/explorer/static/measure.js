// Measuring the policy of the panel with the model in the kernel, and what has been measured.

const WITHOUT_KERNEL = "Measuring needs a kernel and the model: open the trace in a notebook with dl.explore(trace, dlm).";
const WITHOUT_MODEL = "Measuring needs the model; pass it: dl.explore(trace, dlm).";
const MEASURE_HINT =
  "Denoises the trace's own prompt, by turns under dense attention, the policy and, where it leaves out keys, as many random columns. Tokens are chosen by the sampler that the model, or the policy, was published with.";
const PATIENCE_MS = 15_000; // a kernel that is not there never says so
const NO_ANSWER = "no answer from the kernel yet: it runs a cell, or it is gone; if it is gone, run the explorer's cell again";
const LABEL = 54; // room for the number at the end of a bar

function makeMeasure(controls, kernel) {
  const able = Boolean(kernel && controls.with_model);
  const number = (name, text) => {
    const input = el("input", { type: "number", min: 1, step: 1, value: controls.run[name], name });
    return [input, labelled(text, input)];
  };
  const [length, lengthField] = number("gen_length", "Tokens to generate");
  const [steps, stepsField] = number("steps", "Steps");
  const [repeats, repeatsField] = number("repeats", "Repetitions");
  const start = el("button", { type: "button", class: "dl-button dl-wide dl-primary" }, "Measure");
  const cancel = el("button", { type: "button", class: "dl-button dl-wide", disabled: "" }, "Cancel");
  const bar = el("progress", { max: 1, value: 0, hidden: "", "aria-label": "Measured so far" });
  const status = el("output", { class: "dl-measure-status", "aria-live": "polite" });
  const reason = el("p", { class: "dl-hint", id: `dl-reason-${Math.random().toString(36).slice(2)}` });
  reason.textContent = able ? MEASURE_HINT : kernel ? WITHOUT_MODEL : WITHOUT_KERNEL;
  start.setAttribute("aria-describedby", reason.id);
  const fields = el("div", { class: "dl-measure-fields" }, lengthField, stepsField, repeatsField);
  const root = el(
    "div",
    { class: "dl-policy-part dl-measure", role: "group", "aria-label": "Measure" },
    fields,
    el("div", { class: "dl-tools" }, start, cancel),
    reason,
    bar,
    status,
  );
  for (const control of [start, length, steps, repeats]) control.disabled = !able;

  const busy = (on) => {
    start.disabled = on || !able;
    cancel.disabled = !on;
    bar.hidden = !on;
  };
  const say = (text, isError = false) => {
    status.textContent = text;
    status.classList.toggle("dl-error", isError);
  };
  const view = { root, policy: () => ({}) };
  let patience = 0; // runs from a request to the first answer
  const answered = () => {
    clearTimeout(patience);
    patience = 0;
  };
  start.addEventListener("click", () => {
    busy(true);
    bar.value = 0;
    say("starting …");
    patience = setTimeout(() => say(NO_ANSWER, true), PATIENCE_MS);
    kernel.send({ type: "measure", ...view.policy(), gen_length: length.valueAsNumber, steps: steps.valueAsNumber, repeats: repeats.valueAsNumber });
    cancel.focus();
  });
  cancel.addEventListener("click", () => {
    say("ends with the step under way …");
    kernel.send({ type: "cancel" });
    if (patience) view.finish("cancelled before the kernel answered", false);
  });
  view.progress = ({ done, total, what }) => {
    answered();
    busy(true);
    [bar.max, bar.value] = [total, done];
    say(`run ${Math.min(total, Math.floor(done) + 1)} of ${total}: ${what}`);
  };
  view.finish = (text, isError) => {
    answered();
    const inside = root.contains(root.getRootNode().activeElement);
    busy(false);
    if (inside) start.focus();
    say(text, isError);
  };
  return view;
}

// Every measurement as a table with a plot beside it, the latest first.
function makeResults(app) {
  const root = el("div", { class: "dl-results" });
  let plots = [];
  const show = (measured) => {
    const entries = measured.map((one, index) => makeResult(app, one, index + 1));
    plots = entries.map(({ plot }) => plot);
    root.replaceChildren(...entries.map((entry) => entry.root).reverse());
    app.store.redraw("layout");
  };
  const update = (changed) => {
    if (touches(changed, "layout", "theme")) for (const plot of plots) plot.draw(changed);
  };
  return { root, show, update };
}

function makeResult(app, measured, number) {
  const { columns, rows } = measured;
  const caption = `${number}. ${measured.policy}: ${measured.settings}; speed-ups over ${measured.baseline}`;
  const head = el("tr", {}, ...["policy", ...columns].map((text) => el("th", { scope: "col" }, text)));
  const body = rows.map(({ policy, values }) =>
    el("tr", {}, el("th", { scope: "row" }, policy), ...values.map((value) => el("td", {}, value === null ? "–" : compact(value)))),
  );
  const table = el("table", {}, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, ...body));
  const named = (name) => rows.map(({ values }) => values[columns.indexOf(name)] ?? null);
  const [speedups, bounds, losses] = ["speed-up ×", "bound ×", "KL nats"].map(named);
  const label = rows.map(({ policy }, i) => `${policy} ${compact(speedups[i])} times as fast at ${compact(losses[i])} nats`).join("; ");
  const plot = makeCanvas({ class: "dl-result-plot", role: "img", "aria-label": `Speed-up beside KL: ${label}` }, (ctx, width, height) => {
    drawResult(app, ctx, width, height, rows.map(({ policy }) => policy), speedups, bounds, losses);
  });
  plot.node.style.height = `${46 + 22 * rows.length}px`;
  return { root: el("div", { class: "dl-result" }, el("div", { class: "dl-result-table" }, table), plot.node), plot };
}

// Bars of the speed-up with the bound as a stroke, and beside them bars of the loss.
function drawResult(app, ctx, width, height, names, speedups, bounds, losses) {
  const left = Math.max(...names.map((name) => ctx.measureText(name).width)) + 14;
  const half = (width - left - 2 * LABEL) / 2;
  const base = height - 24;
  const rowY = (i) => 18 + (i + 0.5) * 22;
  const panelOf = (x, values, marks, title, format) => {
    const top = Math.max(1e-12, ...values.filter(Number.isFinite), ...marks.filter(Number.isFinite));
    const scale = (value) => (value / top) * half;
    axisText(app, ctx, title, x, 11);
    ctx.fillStyle = app.ink("line");
    ctx.fillRect(x - 0.5, 18, 1, base - 18);
    values.forEach((value, i) => {
      if (value === null) return axisText(app, ctx, "–", x + 4, rowY(i) + 4);
      ctx.fillStyle = app.ink(names[i].startsWith("Dense") ? "kind-dense" : names[i].startsWith("Random") ? "mask" : "kind-sparse");
      ctx.fillRect(x, rowY(i) - 6, Math.max(1, scale(value)), 12);
      const end = Math.max(value, marks[i] ?? 0);
      axisText(app, ctx, format(value), x + scale(end) + 5, rowY(i) + 4, "left", "text");
    });
    ctx.fillStyle = app.ink("text");
    marks.forEach((mark, i) => mark && ctx.fillRect(x + scale(mark) - 0.75, rowY(i) - 9, 1.5, 18));
  };
  names.forEach((name, i) => axisText(app, ctx, name, left - 10, rowY(i) + 4, "right", "text"));
  const title = ["speed-up, × (stroke: bound)", "speed-up | bound, ×"].find((text) => ctx.measureText(text).width < half + LABEL - 8) ?? "×";
  panelOf(left, speedups, bounds, title, (value) => `${compact(value)}×`);
  panelOf(left + half + LABEL, losses, [], "KL to dense, nats", compact);
}
