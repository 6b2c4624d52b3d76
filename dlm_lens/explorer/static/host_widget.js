// Host: a live notebook. The selection is kept in step with the widget's traits, by the trace's own numbers.

const SYNC_MS = 120; // at most so often a moving step is told to the kernel

function fromModel(model, data) {
  const index = (labels, name) => labels.indexOf(model.get(name));
  return {
    step: Math.max(0, index(data.steps, "step")),
    layer: index(data.layers, "layer"),
    head: model.get("layer") < 0 ? -1 : index(data.heads, "head"),
    metric: model.get("metric"),
    sample: model.get("sample"),
    follow: model.get("position"),
  };
}

function toModel(state, data) {
  return {
    step: data.steps[state.step],
    layer: state.layer < 0 ? -1 : data.layers[state.layer],
    head: state.head < 0 ? -1 : data.heads[state.head],
    metric: state.metric ?? "",
    sample: state.sample,
    position: state.follow,
  };
}

function link(model, app) {
  const { data, store } = app;
  const names = ["step", "layer", "head", "metric", "sample", "position"];
  let timer = 0;
  const save = () => {
    timer = 0;
    model.set(toModel(store.state, data));
    model.save_changes();
  };
  store.listeners.push((changed) => {
    if (touches(changed, "step", "layer", "head", "metric", "sample", "follow")) timer ||= setTimeout(save, SYNC_MS);
  });
  const take = () => {
    if (!timer) store.set(fromModel(model, data));
  };
  for (const name of names) model.on(`change:${name}`, take);
  return () => {
    clearTimeout(timer);
    for (const name of names) model.off(`change:${name}`, take);
  };
}

async function render({ model, el: host }) {
  const view = model.get("_payload");
  const payload = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  const { app, unmount } = await mount(host, JSON.parse(model.get("_manifest")), payload);
  app.store.set(fromModel(model, app.data));
  const unlink = link(model, app);
  return () => {
    unlink();
    unmount();
  };
}

export default { render };
