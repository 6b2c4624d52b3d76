// Puts the views together: shared state, theme, keyboard, and the link to a host (a kernel's model or none).

const INKS = [
  "text", "dim", "line", "mask", "surface", "plot", "sink", "fresh", "follow", "playhead", "boundary", "frontier",
  "kind-dense", "kind-refresh", "kind-sparse", "kind-cached",
];
const GUTTER = { left: 62, right: 14 };

const START = {
  step: 0, layer: -1, head: -1, sample: 0, follow: -1, hover: -1,
  playing: false, speed: 8, budget: 0.2, loading: "", failure: "",
};

// One run and its views. Two may stand side by side; `peers` are both, or the one itself.
class App {
  constructor(root, data, tip) {
    this.root = root;
    this.data = data;
    this.tip = tip;
    this.peers = [this];
    this.store = new Store({ ...START, metric: data.manifest.metrics[0]?.key });
    this.ranges = new Map();
    this.asked = 0;
    this.settings = new Settings(this);
    this.readTheme();
  }

  // Goes to a selection, waiting for its arrays where they come on demand; until then the old one stays.
  async choose(patch) {
    const ticket = ++this.asked;
    const { sample, layer, head } = { ...this.store.state, ...patch };
    if (!this.data.isThere(sample, layer, head)) {
      this.store.set({ loading: this.selectionText(layer, head), failure: "" });
      try {
        await this.data.load(sample, layer, head);
      } catch (error) {
        if (ticket === this.asked) this.store.set({ loading: "", failure: error.message });
        return;
      }
      if (ticket !== this.asked) return;
    }
    this.store.set({ ...patch, loading: "", failure: "" });
  }

  readTheme() {
    this.theme = hostIsDark() ? "dark" : "light";
    this.root.dataset.theme = this.theme;
    const style = getComputedStyle(this.root);
    this.inks = Object.fromEntries(INKS.map((name) => [name, style.getPropertyValue(`--dl-${name}`).trim()]));
  }

  ink(name) {
    return this.inks[name];
  }

  scale() {
    return SCALES[this.theme];
  }

  // Where steps lie on the x axis: the same for every view as wide as the explorer.
  timeSpan(width) {
    const room = width - GUTTER.left - GUTTER.right;
    return { left: GUTTER.left, width: room, cell: room / this.data.steps.length };
  }

  // Colour range of "mass" or "map" for the selection, the same on both sides; `even` is the share that everything
  // would get evenly.
  range(name) {
    const ranges = this.peers.filter((peer) => peer.data.has(name)).map((peer) => peer.ownRange(name));
    return { ...ranges[0], hi: Math.max(...ranges.map((range) => range.hi)) };
  }

  ownRange(name) {
    const { sample, layer, head } = this.store.state;
    const selection = this.data.selection(layer, head);
    const key = `${name} ${sample} ${selection}`;
    const even = name === "map" ? 1 / this.data.arrays.map.row : this.data.uniform(sample);
    if (!this.ranges.has(key)) this.ranges.set(key, rangeOf(this.data, name, even, sample, selection));
    return this.ranges.get(key);
  }

  selectionText(layer = this.store.state.layer, head = this.store.state.head) {
    if (layer < 0) return "mean of all heads";
    const name = `layer ${this.data.layers[layer]}`;
    return head < 0 ? `${name}, mean of its heads` : `${name}, head ${this.data.heads[head]}`;
  }

  stepBy(by) {
    const last = this.data.steps.length - 1;
    this.store.set({ step: Math.max(0, Math.min(last, this.store.state.step + by)), playing: false });
  }

  togglePlay() {
    const { state } = this.store;
    const atEnd = state.step === this.data.steps.length - 1;
    this.store.set({ playing: !state.playing, ...(atEnd && !state.playing ? { step: 0 } : {}) });
    if (state.playing) this.run();
  }

  run() {
    const { state } = this.store;
    let due = performance.now() + 1000 / state.speed;
    const tick = (now) => {
      if (!state.playing || !this.root.isConnected) return;
      if (now >= due) {
        due = Math.max(due + 1000 / state.speed, now);
        const step = state.step + 1;
        if (step >= this.data.steps.length) return this.store.set({ playing: false });
        this.store.set({ step });
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  // Pressing and dragging on a view over time goes to the step under the pointer.
  dragTime(surface) {
    const { node } = surface;
    const go = (event) => {
      const { left, cell } = this.timeSpan(surface.width);
      const step = Math.floor((pointer(event, node)[0] - left) / cell);
      this.store.set({ step: Math.max(0, Math.min(this.data.steps.length - 1, step)), playing: false });
    };
    node.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.shiftKey) return;
      node.setPointerCapture(event.pointerId);
      go(event);
    });
    node.addEventListener("pointermove", (event) => {
      if (node.hasPointerCapture(event.pointerId)) go(event);
    });
  }

  follow(by) {
    const { sample, follow } = this.store.state;
    const first = this.data.start(sample);
    const from = follow < 0 ? (by > 0 ? this.data.promptLength - 1 : this.data.promptLength + 1) : follow;
    this.store.set({ follow: Math.max(first, Math.min(this.data.positions - 1, from + by)) });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("select, input, textarea")) return;
    const stride = event.shiftKey ? 10 : 1;
    const onButton = event.target.matches?.("button, summary");
    const act = {
      ArrowLeft: () => this.stepBy(-stride),
      ArrowRight: () => this.stepBy(stride),
      Home: () => this.stepBy(-Infinity),
      End: () => this.stepBy(Infinity),
      " ": onButton ? null : () => this.togglePlay(),
      a: () => this.choose({ layer: -1, head: -1 }),
      "[": () => this.follow(-1),
      "]": () => this.follow(1),
      Escape: () => this.store.set({ follow: -1 }),
      "?": () => this.openHelp(),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }
}

function header(app, heading) {
  const { data, store } = app;
  const facts = app.peers.length > 1 ? [] : data.manifest.facts;
  const told = facts.map(([name, value]) => el("span", {}, el("i", {}, name), value));
  const title = el("div", { class: "dl-title" }, el("b", {}, heading), el("div", { class: "dl-facts" }, ...told));
  const tools = el("div", { class: "dl-tools" });
  if (data.samples > 1) {
    const choose = el("select", { "aria-label": "Sample of the batch" });
    for (let i = 0; i < data.samples; i++) choose.append(el("option", { value: i }, `sample ${i + 1} of ${data.samples}`));
    choose.addEventListener("change", () => app.choose({ sample: Number(choose.value), follow: -1 }));
    store.views.push({ update: (changed) => changed.has("sample") && (choose.value = store.state.sample) });
    tools.append(choose);
  }
  return el("header", { class: "dl-header" }, title, tools);
}

function notes(bundle) {
  const all = [...new Set(bundle.traces.flatMap((manifest) => manifest.notes))];
  if (!all.length) return null;
  const items = all.map((note) => el("li", {}, note));
  return el("aside", { class: "dl-notes", "aria-label": "What was left out" }, el("b", {}, "Left out to stay within the size budget"), el("ul", {}, ...items));
}

// The views of one run, from the moment (text, heads, map) to the whole run below.
function makeSide(app) {
  const views = [makeText, makeGrid, makeMap, makeRaster, makeFollowed, makeDrift, makeAge].map((make) => make(app));
  app.store.views.push(...views);
  for (const view of views) addSaveMenu(app, view);
  const [text, grid, map, ...overTime] = views.map((view) => view.root);
  const now = el("div", { class: "dl-now" }, text, grid, map);
  const above = app.peers.length > 1 ? sideHeader(app) : null;
  return el("div", { class: "dl-side" }, above, now, ...overTime);
}

// Builds the explorer inside `host`; returns the leading app and a function that takes it all down again.
// `askHost(trace, sample, layer, head)` is how selections that were left out of the bundle are asked for.
async function mount(host, bundle, payload, askHost = null) {
  const root = el("div", { class: "dl-explorer", "data-lm-suppress-shortcuts": "true" });
  host.append(root);
  const tip = new Tooltip(root);
  const apps = (await unpack(bundle, payload)).map((data) => new App(root, data, tip));
  const [app] = apps;
  for (const each of apps) [each.peers, each.data.askHost] = [apps, askHost];
  if (apps.length > 1) pairUp(apps);
  const scrubber = makeScrubber(app);
  app.store.views.push(scrubber);
  addSaveMenu(app, scrubber);
  const sides = el("div", { class: apps.length > 1 ? "dl-sides dl-two" : "dl-sides" }, ...apps.map(makeSide));
  root.prepend(...[header(app, bundle.title), notes(bundle), scrubber.root, sides].filter(Boolean));
  app.openHelp = addHelp(root);
  root.addEventListener("keydown", (event) => app.key(event));
  const redraw = (reason) => apps.forEach(({ store }) => store.redraw(reason));
  const stopWatching = watchTheme(() => {
    for (const each of apps) each.readTheme();
    redraw("theme");
    redraw("layout");
  });
  const sizes = new ResizeObserver(() => redraw("layout"));
  sizes.observe(root);
  redraw("layout");
  for (const { store } of apps) store.flush();
  return {
    app,
    unmount() {
      app.store.set({ playing: false });
      stopWatching();
      sizes.disconnect();
      root.remove();
    },
  };
}
