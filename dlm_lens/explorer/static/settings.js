// What is shown, as plain values by the trace's own numbers: kept in a page's address, copied, synced with a kernel.

// Each setting says which keys of the store it reads, its value now, and what a value means for the store: a patch.
// It throws for a value that this trace does not have. Other fragments `add` theirs.
class Settings {
  constructor(app) {
    this.app = app;
    this.entries = new Map();
    const { data, store } = app;
    const { state } = store;
    const one = (values, value) => {
      const at = values.indexOf(value);
      if (at < 0) throw new Error(`expected ${oneOf(values)}`);
      return at;
    };
    const pick = (values, value) => values[one(values, value)];
    const numbered = (labels, value) => (value === -1 ? -1 : one(labels, value));
    const keys = data.manifest.metrics.map(({ key }) => key);
    this.add("step", ["step"], () => data.steps[state.step], (value) => ({ step: one(data.steps, value) }));
    this.add("layer", ["layer"], () => data.layers[state.layer] ?? -1, (value) => ({ layer: numbered(data.layers, value) }));
    this.add("head", ["head"], () => data.heads[state.head] ?? -1, (value) => ({ head: numbered(data.heads, value) }));
    this.add("metric", ["metric"], () => state.metric ?? "", (value) => ({ metric: keys.length ? pick(keys, value) : undefined }));
    this.add("sample", ["sample"], () => state.sample, (value) => ({ sample: wholeNumber(value, 0, data.samples - 1) }));
    this.add("position", ["follow"], () => state.follow, (value) => ({ follow: wholeNumber(value, -1, data.positions - 1) }));
    this.add("speed", ["speed"], () => state.speed, (value) => ({ speed: pick(SPEEDS, value) }));
    this.add("budget", ["budget"], () => state.budget, (value) => {
      if (!(typeof value === "number" && value > 0 && value <= 1)) throw new Error("expected a share in (0, 1]");
      return { budget: value };
    });
    this.takeAsDefaults();
  }

  add(name, keys, get, read) {
    this.entries.set(name, { keys, get, read });
    if (this.defaults) this.defaults[name] = get();
  }

  get names() {
    return [...this.entries.keys()];
  }

  all() {
    return Object.fromEntries(this.names.map((name) => [name, this.entries.get(name).get()]));
  }

  takeAsDefaults() {
    this.defaults = this.all();
  }

  // Those that are not as they were in the beginning.
  news() {
    const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
    return Object.fromEntries(Object.entries(this.all()).filter(([name, value]) => !same(value, this.defaults[name])));
  }

  concerns(changed) {
    return [...this.entries.values()].some(({ keys }) => touches(changed, ...keys));
  }

  // Shows what is wanted, as far as the trace has it; gives a sentence for each that is ignored.
  apply(wanted) {
    const ignored = [];
    const patch = {};
    for (const [name, value] of Object.entries(wanted)) {
      const said = `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`;
      const entry = this.entries.get(name);
      if (!entry) ignored.push(`${said} is ignored: expected ${oneOf(this.names)}.`);
      else
        try {
          Object.assign(patch, entry.read(value));
        } catch (error) {
          ignored.push(`${said} is ignored: ${error.message}.`);
        }
    }
    const first = this.app.data.start(patch.sample ?? this.app.store.state.sample);
    if (patch.follow >= 0 && patch.follow < first) {
      ignored.push(`position=${patch.follow} is ignored: it is padding, expected ${first} or more.`);
      delete patch.follow;
    }
    if ((patch.layer ?? this.app.store.state.layer) < 0) patch.head = -1;
    this.app.choose(patch);
    return ignored;
  }
}

function oneOf(values) {
  if (!values.length) return "none, because the trace has none";
  return values.length <= 12 ? `one of ${values.join(", ")}` : `one of ${values[0]} … ${values.at(-1)} as recorded`;
}

function wholeNumber(value, lo, hi) {
  if (!Number.isInteger(value) || value < lo || value > hi) throw new Error(`expected ${lo} … ${hi}`);
  return value;
}

// #step=8&layer=1: words stand for themselves, everything else is JSON.
function toHash(settings) {
  const pairs = Object.entries(settings).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]);
  return pairs.length ? `#${new URLSearchParams(pairs)}` : "";
}

function fromHash(hash) {
  const read = (text) => {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  };
  return Object.fromEntries([...new URLSearchParams(hash.replace(/^#/, ""))].map(([name, text]) => [name, read(text)]));
}

const SETTINGS_HINT = "What is shown, as JSON for dl.explore(trace, settings=…)";

function linkTo(settings) {
  return location.href.replace(/#.*$/, "") + toHash(settings);
}

const HASH_MS = 400; // browsers allow about a hundred changes of the address in half a minute

// Keeps the settings in the page's address. Where a frame may not change its address, everything else works on.
function keepInAddress(app, notice) {
  const { settings, store } = app;
  const open = () => notice(settings.apply({ ...settings.defaults, ...fromHash(location.hash) }));
  let timer = 0;
  const write = () => {
    timer = 0;
    const hash = toHash(settings.news());
    if (hash === location.hash) return;
    try {
      history.replaceState(history.state, "", hash || location.pathname + location.search);
    } catch (error) {
      if (error.name !== "SecurityError") throw error;
    }
  };
  if (location.hash) open();
  window.addEventListener("hashchange", open);
  store.listeners.push((changed) => {
    if (settings.concerns(changed)) timer ||= setTimeout(write, HASH_MS);
  });
}

// Says what was ignored, under the header, until it is closed.
function noticeBoard(root) {
  const list = el("ul", {});
  const close = el("button", { type: "button", class: "dl-button dl-wide", onclick: () => (board.hidden = true) }, "Close");
  const board = el("aside", { class: "dl-notice", role: "status", hidden: "" }, list, close);
  root.querySelector(".dl-header").after(board);
  return (sentences) => {
    list.replaceChildren(...sentences.map((text) => el("li", {}, text)));
    board.hidden = !sentences.length;
  };
}

// A button that copies `text()`; where copying is refused the text is shown, to be copied by hand.
function addCopyButton(app, label, hint, text) {
  const shown = el("input", { readonly: "", class: "dl-copied", "aria-label": label, hidden: "" });
  const say = (words) => {
    button.textContent = words;
    setTimeout(() => (button.textContent = label), 1500);
  };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text());
      shown.hidden = true;
      say("Copied");
    } catch {
      shown.value = text();
      shown.hidden = false;
      shown.select();
    }
  };
  const button = el("button", { type: "button", class: "dl-button dl-wide", title: hint, "aria-live": "polite", onclick: copy }, label);
  app.root.querySelector(".dl-header .dl-tools").append(button, shown);
}
