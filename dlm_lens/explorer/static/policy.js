// The policy panel: what a policy would keep at the current step, and what it costs and loses when it is measured.
// Without a kernel what is kept comes from the packed column mass; with one, and a model, from the policy itself.

const PREVIEW_MS = 300; // so long nothing must change before the model is asked
const VEIL = [128, 132, 142, 160]; // over what a policy leaves out: a grey, which no colour scale holds

// Puts the panel below the views that it draws on. `kernel` has send(message) and
// listen(handler), which returns a function that stops; null in a page.
function attachPolicy(app, controls, measured, kernel) {
  const measure = makeMeasure(controls, kernel);
  const results = makeResults(app);
  const view = makePolicy(app, controls, kernel, measure);
  view.body.append(results.root);
  // Beside another run under both; else under the columns over the run, which everybody should see first.
  app.root.querySelector(".dl-two, .dl-now + .dl-panel").after(view.root);
  app.store.views.push(view, results);
  addSaveMenu(app, view);
  results.show(measured);
  const stop = kernel?.listen((message, buffers) => {
    if (message.type === "preview") view.take(message, buffers);
    if (message.type === "error" && message.of === "preview") view.fail(message);
    if (message.type === "progress") measure.progress(message);
    if (message.type === "result") measure.finish(message.text, false);
    if (message.type === "error" && message.of === "measure") measure.finish(message.text, true);
  });
  app.store.redraw("layout");
  return { show: results.show, stop: () => stop?.() };
}

function labelled(text, ...controls) {
  return el("label", { class: "dl-field" }, el("span", {}, text), ...controls);
}

// The one number of a policy, as a slider. Budgets are shared with the view of a pattern's age.
function makeChoice(app, controls) {
  const { store } = app;
  const select = el("select", {});
  for (const { name, label } of controls.choices) select.append(el("option", { value: name }, label));
  const slider = el("input", { type: "range", class: "dl-range" });
  const amount = el("output", { class: "dl-amount" });
  const field = labelled("", slider, amount);
  const choice = () => controls.choices.find(({ name }) => name === select.value);
  const value = () => Number(slider.value);
  const describe = () => {
    amount.textContent = `${value()} ${choice().number.unit}`;
    slider.setAttribute("aria-valuetext", amount.textContent);
  };
  const share = () => {
    if (choice().budget) store.set({ budget: Number((1 - value() / 100).toFixed(4)) });
    store.redraw("policy");
    describe();
  };
  const followBudget = () => {
    if (choice().budget) slider.value = Math.round(100 * (1 - store.state.budget));
    describe();
  };
  const choose = () => {
    const { number } = choice();
    [slider.min, slider.max, slider.step, slider.value] = [number.lo, number.hi, number.step, number.value];
    field.firstChild.textContent = number.label;
    followBudget();
    store.redraw("policy");
  };
  const names = controls.choices.map(({ name }) => name);
  // A choice made elsewhere: by a page's address, or from Python.
  const followChoice = () => {
    if (!store.state.policy || store.state.policy === select.value) return;
    select.value = store.state.policy;
    choose();
  };
  app.settings.add("policy", ["policy"], () => store.state.policy ?? select.value, (value) => {
    if (!names.includes(value)) throw new Error(`expected ${oneOf(names)}`);
    return { policy: value };
  });
  select.addEventListener("change", () => {
    store.set({ policy: select.value });
    choose();
  });
  slider.addEventListener("input", share);
  choose();
  return { fields: [labelled("Policy", select), field], choice, value, followBudget, followChoice };
}

function makePolicy(app, controls, kernel, measure) {
  const { data, store } = app;
  const state = store.state;
  const chosen = makeChoice(app, controls);
  measure.policy = () => ({ policy: chosen.choice().name, value: chosen.value() });
  const best = makeBest(app);
  const asked = kernel && controls.with_model ? makeAsked(app, controls, kernel, measure.policy) : null;
  const fields = el("div", { class: "dl-policy-part", role: "group", "aria-label": "Policy and its parameter" }, ...chosen.fields);
  if (asked) fields.append(asked.toggle);
  const view = panel("Policy", el("span", { class: "dl-hint" }, "grey on the attention map: left out · marks below it: keys kept"));
  view.root.classList.add("dl-policy");
  view.body.append(el("div", { class: "dl-policy-parts" }, fields, best.root, asked?.root ?? null, measure.root));

  const update = (changed) => {
    if (touches(changed, "policy")) chosen.followChoice();
    if (touches(changed, "budget")) chosen.followBudget();
    if (!touches(changed, "step", "layer", "head", "budget", "policy", "playing", ...EVERYTHING)) return;
    best.update(changed, chosen.choice());
    asked?.update(changed);
    if (touches(changed, "budget", "policy")) store.redraw("kept"); // the map redraws for the rest of itself
  };
  return { root: view.root, body: view.body, update, take: (...answer) => asked?.take(...answer), fail: (message) => asked?.fail(message) };
}

// What the best columns of the selection hold, one list for all its queries.
function makeBest(app) {
  const { data, store } = app;
  const state = store.state;
  const share = el("output", { class: "dl-policy-share", "aria-live": "polite" });
  const what = el("span", {});
  const note = el("p", { class: "dl-hint" });
  const root = el("div", { class: "dl-policy-part" }, el("div", { class: "dl-policy-number", "data-picture": "" }, share, what));
  if (!data.has("mass")) {
    root.replaceChildren(missing("No preview: this trace has no column_mass. Capture it with ColumnMass()."));
    return { root, update() {} };
  }
  let age = null;
  let known = "";
  let aged = [];
  let usable = true;
  // The map may be drawn before this view is told of a change, so both ask here.
  const current = () => {
    const key = [state.sample, state.layer, state.head, state.budget].join(" ");
    if (key !== known) age = new PatternAge(data, state.sample, data.selection(state.layer, state.head), state.budget);
    known = key;
    return age;
  };
  if (data.has("map")) app.keptBins = () => (usable ? binShares(data, current(), state.step) : null);
  const chart = makeCanvas({ class: "dl-policy-chart", role: "img" }, (ctx, width, height) => {
    const room = width - 62;
    const plot = { left: 56, top: 8, width: room, height: height - 30, cell: room / data.steps.length };
    const y = (_, kept) => plot.top + (1 - kept) * plot.height;
    const line = (shares, ink, thickness) => {
      ctx.beginPath();
      shares.forEach((kept, step) => ctx.lineTo(plot.left + (step + 0.5) * plot.cell, y(plot, kept)));
      [ctx.strokeStyle, ctx.lineWidth, ctx.lineJoin] = [app.ink(ink), thickness, "round"];
      ctx.stroke();
    };
    drawShareAxis(app, ctx, plot, y);
    drawStepAxis(app, ctx, plot);
    ctx.setLineDash([5, 4]);
    line(aged.map(() => age.random), "dim", 1.25);
    ctx.setLineDash([]);
    line(age.fresh, "text", 1.25);
    line(aged, "kind-sparse", 2);
    drawPlayhead(app, ctx, plot, plot.top, plot.top + plot.height);
  });
  const keys = el("div", { class: "dl-keys" }, keyItem("fresh-line", "chosen at every step"), keyItem("aged", "at this one"), keyItem("random", "at random"));
  root.append(chart.node, keys, note);

  const update = (changed, choice) => {
    usable = choice.budget;
    note.textContent = choice.note;
    for (const node of [share, chart.node, keys]) node.hidden = !usable;
    what.textContent = "";
    if (!usable) return;
    aged = current().of(state.step);
    share.textContent = percent(aged[state.step]);
    what.textContent = ` of the attention is on the best ${age.kept} of ${age.keys} keys, one list for all queries, ${app.selectionText()}`;
    chart.node.setAttribute("aria-label", `Attention on the best columns over the steps; ${share.textContent} at this one, ${percent(age.random)} at random`);
    if (changed.has("policy")) chart.draw(new Set(["layout"])); // it may have been hidden
    else chart.draw(changed);
  };
  return { root, update };
}

// Share of each key bin's positions that the best columns of a step keep.
function binShares(data, age, step) {
  const bins = data.arrays.map.row;
  const [kept, there] = [new Float32Array(bins), new Float32Array(bins)];
  const bin = (position) => Math.floor((position * bins) / data.positions);
  for (let p = age.first; p < data.positions; p++) there[bin(p)]++;
  for (const column of bestColumns(age.row(step), age.first, age.kept)) kept[bin(column)]++;
  return kept.map((count, i) => count / Math.max(1, there[i]));
}

// What the policy itself keeps, asked of the model in the kernel.
function makeAsked(app, controls, kernel, policy) {
  const { data, store } = app;
  const state = store.state;
  const box = el("input", { type: "checkbox" });
  box.checked = true;
  const toggle = el("label", { class: "dl-check" }, box, el("span", {}, "run the model for what the policy itself keeps"));
  const summary = el("div", { class: "dl-policy-number", "aria-live": "polite" });
  const trouble = el("p", { class: "dl-error", role: "alert", hidden: "" });
  let wanted = null;
  let timer = 0;
  let seen = null;
  const layerX = (plot, layer) => plot.left + (layer + 0.5) * (plot.width / seen.retained.length);
  const dots = makeCanvas({ class: "dl-policy-chart", role: "img" }, (ctx, width, height) => {
    if (!seen?.retained) return;
    const plot = { left: 56, top: 8, width: width - 62, height: height - 30 };
    const y = (_, kept) => plot.top + (1 - kept) * plot.height;
    drawShareAxis(app, ctx, plot, y);
    const dot = (layer, kept, ink, radius) => {
      ctx.fillStyle = app.ink(ink);
      ctx.beginPath();
      ctx.arc(layerX(plot, layer), y(plot, kept), radius, 0, 2 * Math.PI);
      ctx.fill();
    };
    ctx.globalAlpha = 0.55;
    seen.retained.forEach((heads, layer) => heads.forEach((kept) => dot(layer, kept, "kind-sparse", 2.5)));
    ctx.globalAlpha = 1;
    seen.retained.forEach((heads, layer) => {
      ctx.fillStyle = app.ink(layer === seen.worst ? "sink" : "text");
      ctx.fillRect(layerX(plot, layer) - 7, y(plot, mean(heads)) - 1, 14, 2);
    });
    if (state.head >= 0) dot(data.layers[state.layer], seen.retained[data.layers[state.layer]][data.heads[state.head]], "follow", 4);
    for (const layer of ticks(0, seen.retained.length - 1, plot.width / 40))
      axisText(app, ctx, `${layer}`, layerX(plot, layer), plot.top + plot.height + 15, "center");
    axisText(app, ctx, "layer", plot.left - 8, plot.top + plot.height + 15, "right");
  });
  const root = el("div", { class: "dl-policy-part" }, summary, dots.node, trouble);

  const request = () => {
    const content = {
      ...policy(),
      step: data.steps[state.step],
      sample: state.sample,
      layer: state.layer < 0 ? -1 : data.layers[state.layer],
      head: state.head < 0 ? -1 : data.heads[state.head],
      bins: data.has("map") ? data.arrays.map.row : 0,
    };
    return { ...content, type: "preview", key: JSON.stringify(content) };
  };
  const clear = (text) => {
    if (app.keptPairs) store.redraw("kept");
    seen = app.keptPairs = null;
    summary.textContent = text;
    trouble.hidden = true;
    dots.node.hidden = true;
  };
  const ask = () => {
    if (!box.checked) {
      clearTimeout(timer);
      wanted = null;
      return clear("The model is not asked.");
    }
    const next = request();
    if (next.key === wanted) return;
    wanted = next.key;
    clearTimeout(timer);
    clear("The model runs one step …");
    timer = setTimeout(() => (state.playing ? (wanted = null) : kernel.send(next)), PREVIEW_MS);
  };
  box.addEventListener("change", ask);

  const take = (message, buffers) => {
    if (message.key !== wanted) return;
    const { retained } = message;
    const byLayer = retained?.map(mean);
    seen = { retained, worst: byLayer?.indexOf(Math.min(...byLayer)) };
    summary.replaceChildren(...describeSeen(app, message, byLayer, seen.worst));
    dots.node.hidden = !retained;
    dots.node.setAttribute("aria-label", `Retained mass of every head by layer: ${summary.textContent}`);
    const { step, sample, layer, head } = state;
    if (buffers.length) app.keptPairs = { share: bytesOf(buffers[0]), step, sample, layer, head };
    store.redraw("kept");
    dots.draw(new Set(["layout"]));
  };
  const fail = (message) => {
    if (message.key !== wanted) return;
    clear("");
    trouble.textContent = message.text;
    trouble.hidden = false;
  };
  const update = (changed) => {
    ask();
    if (seen && touches(changed, "layout", "theme")) dots.draw(changed);
  };
  return { root, toggle, take, fail, update };
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function describeSeen(app, message, byLayer, worst) {
  const { data, store } = app;
  const { layer, head, sample } = store.state;
  const valid = data.positions - data.start(sample);
  const work = `${message.kind} step with ${percent(message.density)} of the work of dense attention`;
  if (!message.retained)
    return [
      el("b", {}, `${message.computed} of ${valid}`),
      ` positions are computed and attend to ${message.attended}: a ${work}. How much of the dense attention that retains is not measured.`,
    ];
  const own = layer >= 0 && head >= 0 ? `, this head ${percent(message.retained[data.layers[layer]][data.heads[head]])}` : "";
  return [
    el("b", {}, percent(mean(byLayer))),
    ` of the dense attention is retained by ${message.label}, mean of all heads; worst layer (${worst}) ${percent(byLayer[worst])}${own}: a ${work}, its pattern fresh`,
  ];
}

// On the attention map: a veil over what is left out, and marks under the keys that are kept.
function drawKept(app, ctx, plot, bins) {
  const pairs = app.keptPairs;
  const { state } = app.store;
  const cell = plot.side / bins;
  let marks = null;
  if (pairs && ["step", "sample", "layer", "head"].every((key) => pairs[key] === state[key])) {
    const veil = new ImageData(bins, bins);
    pairs.share.forEach((share, i) => veil.data.set([...VEIL.slice(0, 3), (VEIL[3] * (255 - share)) / 255], 4 * i));
    const buffer = new OffscreenCanvas(bins, bins);
    buffer.getContext("2d").putImageData(veil, 0, 0);
    ctx.drawImage(buffer, plot.x, plot.y, plot.side, plot.side);
    marks = Float32Array.from({ length: bins }, (_, key) => {
      let sum = 0;
      for (let query = 0; query < bins; query++) sum += pairs.share[query * bins + key];
      return sum / (255 * bins);
    });
  } else marks = app.keptBins?.() ?? null;
  if (!marks) return;
  ctx.fillStyle = app.ink("kind-sparse");
  marks.forEach((share, bin) => {
    ctx.globalAlpha = share;
    ctx.fillRect(plot.x + bin * cell, plot.y + plot.side + 1, cell, 4);
  });
  ctx.globalAlpha = 1;
}
