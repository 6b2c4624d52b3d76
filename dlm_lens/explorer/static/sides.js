// Two runs side by side: what is chosen in one is chosen in the other, as far as the other has it.

// The step of `to` that stands beside a step of `from`: the same number where both runs have as many steps in all,
// else the one as far into its run.
function stepBeside(from, to, step) {
  if (from.manifest.total_steps === to.manifest.total_steps)
    return Math.max(0, to.steps.findLastIndex((label) => label <= from.steps[step]));
  return Math.round((step * (to.steps.length - 1)) / Math.max(1, from.steps.length - 1));
}

function translate(patch, from, to) {
  const same = {};
  const { step, layer, head, metric, sample, follow, budget } = patch;
  if (step !== undefined) same.step = stepBeside(from, to, step);
  if (layer !== undefined) same.layer = layer < 0 ? -1 : to.layers.indexOf(from.layers[layer]);
  if (head !== undefined) same.head = head < 0 ? -1 : to.heads.indexOf(from.heads[head]);
  if (metric !== undefined && to.manifest.metrics.some(({ key }) => key === metric)) same.metric = metric;
  if (sample !== undefined && to.samples === from.samples) same.sample = sample;
  const alike = to.positions === from.positions && to.promptLength === from.promptLength;
  if (follow !== undefined) same.follow = alike ? follow : -1;
  if (budget !== undefined) same.budget = budget;
  return same;
}

function pairUp([one, other]) {
  let echo = false;
  const tie = (from, to) =>
    from.store.watchers.push((patch) => {
      if (echo) return;
      const own = translate(patch, from.data, to.data);
      echo = true;
      // Only another selection may have to be waited for; a step must not call off such waiting.
      if (["sample", "layer", "head"].some((key) => key in own)) to.choose(own);
      else to.store.set(own);
      echo = false;
    });
  tie(one, other);
  tie(other, one);
}

// What a side says of itself above its views.
function sideHeader(app) {
  const { data, store } = app;
  const step = el("output", { class: "dl-side-step" });
  const facts = data.manifest.facts.map(([name, value]) => el("span", {}, el("i", {}, name), value));
  const update = (changed) => {
    if (!touches(changed, "step", ...EVERYTHING)) return;
    step.textContent = `step ${data.steps[store.state.step]} of ${data.manifest.total_steps}`;
  };
  store.views.push({ update });
  const told = el("div", { class: "dl-facts" }, ...facts);
  told.title = data.manifest.facts.map(([name, value]) => `${name} ${value}`).join("\n");
  return el("header", { class: "dl-side-head" }, el("b", {}, data.manifest.title), step, told);
}
