// Host: a live notebook. The selection is kept in step with the widget's traits, by the trace's own numbers.

const SYNC_MS = 120; // at most so often a moving step is told to the kernel
const ANSWER_MS = 60_000; // a cell that runs keeps the kernel from answering

// The traits that are settings, both ways.
function link(model, app) {
  const { settings, store } = app;
  const names = settings.names.filter((name) => model.get(name) !== undefined);
  const known = (some) => Object.fromEntries(some.map((name) => [name, model.get(name)]));
  let timer = 0;
  let told = {};
  const save = () => {
    timer = 0;
    const all = settings.all();
    told = Object.fromEntries(names.map((name) => [name, all[name]]));
    model.set(told);
    model.save_changes();
  };
  // While a change made here waits to be told, the kernel's echo of what it was told before is old news; a value of its
  // own is not, and is the later one.
  const take = (name) => {
    if (!timer) settings.apply(known(names));
    else if (JSON.stringify(model.get(name)) !== JSON.stringify(told[name])) settings.apply(known([name]));
  };
  const takers = names.map((name) => [`change:${name}`, () => take(name)]);
  take();
  store.listeners.push((changed) => {
    if (settings.concerns(changed)) timer ||= setTimeout(save, SYNC_MS);
  });
  for (const [event, taker] of takers) model.on(event, taker);
  return () => {
    clearTimeout(timer);
    for (const [event, taker] of takers) model.off(event, taker);
  };
}

// Selections that were left to be asked for come from the kernel, each as an answer to a message.
function askKernel(model) {
  const waiting = new Map();
  const name = ({ trace, sample, layer, head }) => [trace, sample, layer, head].join(" ");
  const take = (message, buffers) => {
    const asked = message.type === "slice" && waiting.get(name(message));
    if (!asked) return;
    waiting.delete(name(message));
    clearTimeout(asked.timer);
    if (message.error) asked.reject(new Error(message.error));
    else asked.resolve({ arrays: message.arrays, payload: bytesOf(buffers[0]) });
  };
  model.on("msg:custom", take);
  const ask = (trace, sample, layer, head) =>
    new Promise((resolve, reject) => {
      const message = { type: "slice", trace, sample, layer, head };
      const timer = setTimeout(() => {
        waiting.delete(name(message));
        reject(new Error("the kernel did not answer: it is busy, or gone; if it is gone, run the cell again"));
      }, ANSWER_MS);
      waiting.set(name(message), { resolve, reject, timer });
      model.send(message);
    });
  return { ask, stop: () => model.off("msg:custom", take) };
}

// The policy panel, whose previews and measurements are made by the kernel.
function attachPolicyOf(model, app) {
  const listen = (handler) => {
    model.on("msg:custom", handler);
    return () => model.off("msg:custom", handler);
  };
  const kernel = { send: (message) => model.send(message), listen };
  const policy = attachPolicy(app, model.get("_controls"), model.get("_measured"), kernel);
  const show = () => policy.show(model.get("_measured"));
  model.on("change:_measured", show);
  return () => {
    model.off("change:_measured", show);
    policy.stop();
  };
}

async function render({ model, el: host }) {
  const kernel = askKernel(model);
  const bundle = JSON.parse(model.get("_manifest"));
  const { app, unmount } = await mount(host, bundle, bytesOf(model.get("_payload")), kernel.ask);
  addCopyButton(app, "Copy settings", SETTINGS_HINT, () => JSON.stringify(app.settings.all()));
  const unattach = attachPolicyOf(model, app); // before the settings are linked: it brings one
  const unlink = link(model, app);
  // The picture beside this view stands in for it only while it does not run; the rule goes with the view.
  app.root.append(el("style", {}, `#${CSS.escape(model.get("_still"))} { display: none; }`));
  return () => {
    kernel.stop();
    unattach();
    unlink();
    unmount();
  };
}

export default { render };
