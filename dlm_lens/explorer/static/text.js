// The text at the current step. Every position is one span for good; a step only changes classes and colours.

const TEXT_LEVELS = 24; // fewer colours than 256, so that most spans stay as they are from step to step

function makeText(app) {
  const { data, store, tip } = app;
  const state = store.state;
  const legend = makeLegend("attention received, × even share");
  const view = panel("Text", legend.root);
  const scroll = el("div", {
    class: "dl-text",
    tabindex: "0",
    role: "group",
    "aria-label": "Text at this step; [ and ] follow the previous or next token, Escape lets go",
  });
  const note = el("div", { class: "dl-follow-note" });
  const keys = el(
    "div",
    { class: "dl-keys" },
    keyItem("prompt", "prompt"),
    keyItem("masked", "masked"),
    keyItem("fresh", "committed now"),
    keyItem("sink", "sink"),
  );
  view.body.append(scroll, el("div", { class: "dl-panel-foot" }, keys, note));

  let spans = [];
  let shown = [];
  let classes = [];
  let levels = new Int16Array(0);
  let steered = false; // whoever scrolls the text keeps that place; else it follows what is being written

  const build = () => {
    const first = data.start(state.sample);
    spans = [];
    shown = [];
    classes = [];
    levels = new Int16Array(data.positions).fill(-1);
    const part = (title, from, to) => {
      const body = el("div", { class: "dl-tokens", dir: "ltr" });
      let line = null;
      let indent = 0;
      for (let p = from; p < to; p++) {
        const node = el("span", {}, " ");
        node.position = p;
        spans[p] = node;
        // A block per line: a new token then costs the layout of its own line only.
        if (!line) {
          line = el("div", {});
          line.style.paddingLeft = `${Math.min(indent, 32)}ch`;
          body.append(line);
        }
        line.append(node);
        const end = data.finalToken(state.sample, p).lineBreak;
        if (end) [line, indent] = [null, end.indent];
      }
      const count = `${to - from} ${to - from === 1 ? "token" : "tokens"}`;
      return el("div", { class: "dl-part" }, el("h4", {}, title, " ", el("small", {}, count)), body);
    };
    const prompt = part("Prompt", first, data.promptLength);
    const generation = part("Generation", data.promptLength, data.positions);
    scroll.replaceChildren(prompt, generation);
    bringInSight(generation, 3);
  };

  // A long prompt would hide what is being written. Lines get their height when they come near, so do it again.
  const bringInSight = (node, times) => {
    scroll.scrollTop += node.getBoundingClientRect().top - scroll.getBoundingClientRect().top - scroll.clientHeight * 0.4;
    if (times > 1) requestAnimationFrame(() => bringInSight(node, times - 1));
  };

  const paint = () => {
    const { sample, step, layer, head, follow } = state;
    const selection = data.selection(layer, head);
    const codes = data.has("mass") ? data.slice("mass", sample, selection, step) : null;
    const table = codes && levelTable(data.arrays.mass.lut, app.range("mass"), data.uniform(sample));
    const { css, inverted } = app.scale();
    for (let p = data.start(sample); p < data.positions; p++) {
      const node = spans[p];
      const kind = data.state(sample, step, p);
      const text = kind === "masked" ? maskSign(data.finalToken(sample, p).text) : data.word(sample, step, p);
      if (shown[p] !== text) node.firstChild.data = shown[p] = text;
      const level = codes ? Math.floor((table[codes[p]] * TEXT_LEVELS) / 256) : 0;
      if (levels[p] !== level) {
        levels[p] = level;
        node.style.backgroundColor = level ? css[Math.round((level * 255) / (TEXT_LEVELS - 1))] : "";
      }
      let name = `dl-${kind}`;
      if (level > 3) name += inverted[Math.round((level * 255) / (TEXT_LEVELS - 1))] ? " dl-inverted" : " dl-strong";
      if (data.has("sinks") && data.bit("sinks", sample, selection, step, p)) name += " dl-sink";
      if (p === follow) name += " dl-followed";
      if (classes[p] !== name) node.className = classes[p] = name;
    }
  };

  const describeFollowed = () => {
    const { sample, step, follow } = state;
    if (follow < 0) note.textContent = "click a token to follow it";
    else {
      const word = data.state(sample, step, follow) === "masked" ? "masked" : `“${data.word(sample, step, follow)}”`;
      note.textContent = `following ${word.replace("\n", "")} at position ${follow} · ${massText(app, follow)}`;
    }
    note.classList.toggle("dl-on", follow >= 0);
  };

  const update = (changed) => {
    if (touches(changed, "sample") || !spans.length) build();
    if (touches(changed, "theme")) levels.fill(-1);
    if (touches(changed, "step", "layer", "head", "follow", ...EVERYTHING)) {
      paint();
      describeFollowed();
    }
    if (touches(changed, "layer", "head", ...EVERYTHING) && data.has("mass"))
      legend.update(app.range("mass"), app.scale(), shareTick);
    if (touches(changed, "hover")) {
      scroll.querySelector(".dl-hover")?.classList.remove("dl-hover");
      if (state.hover >= 0 && spans[state.hover]) {
        spans[state.hover].classList.add("dl-hover");
        classes[state.hover] = null;
      }
    }
    if (state.playing && changed.has("playing")) steered = false;
    if (changed.has("step") && !steered && state.follow < 0) {
      const fresh = scroll.querySelector(".dl-fresh");
      if (fresh) reveal(fresh, scroll);
    }
    if (touches(changed, "follow") && spans[state.follow] && !app.followedInText) reveal(spans[state.follow], scroll);
    if (touches(changed, "follow")) app.followedInText = false;
  };

  scroll.picture = () => textPicture(app, scroll);
  scroll.addEventListener("click", (event) => {
    const { position } = event.target;
    if (position === undefined) return;
    app.followedInText = true;
    store.set({ follow: position === state.follow ? -1 : position });
  });
  scroll.addEventListener("mousemove", (event) => {
    const { position } = event.target;
    if (position === undefined) return tip.hide();
    tip.show(event, ...describePosition(app, position));
    store.set({ hover: position });
  });
  scroll.addEventListener("scroll", () => tip.hide());
  for (const kind of ["wheel", "touchmove", "pointerdown"])
    scroll.addEventListener(kind, () => (steered = true), { passive: true });
  scroll.addEventListener("mouseleave", () => {
    tip.hide();
    store.set({ hover: -1 });
  });
  if (!data.has("mass")) {
    legend.root.remove();
    view.head.append(missing("not coloured: this trace has no column_mass"));
  }
  return { root: view.root, update };
}

// As wide as the token that will stand here, so that lines do not move when it is decided.
function maskSign(word) {
  return "░".repeat([...word].length);
}

function reveal(node, scroll) {
  const [box, frame] = [node.getBoundingClientRect(), scroll.getBoundingClientRect()];
  if (box.top < frame.top || box.bottom > frame.bottom)
    scroll.scrollTop += box.top - frame.top - frame.height / 2;
}

function massText(app, position, step = app.store.state.step) {
  const { data, store } = app;
  const { sample, layer, head } = store.state;
  if (!data.has("mass")) return "mass not recorded";
  const mass = data.value("mass", data.slice("mass", sample, data.selection(layer, head), step)[position]);
  return shareText(mass, data.uniform(sample));
}

function shareText(share, even) {
  return `${percent(share)} · ${times(share / even)} even share`;
}

// What a position holds at a step, on one line.
function wordAt(data, sample, step, position) {
  const masked = data.state(sample, step, position) === "masked";
  return masked ? "masked" : data.word(sample, step, position).replace("\n", "");
}

// Headline and rows of the tooltip of a position at a step, by default the current one.
function describePosition(app, position, step = app.store.state.step) {
  const { data, store } = app;
  const { sample, layer, head } = store.state;
  const kind = data.state(sample, step, position);
  const headline = wordAt(data, sample, step, position);
  const rows = [
    ["step", `${data.steps[step]}`],
    ["position", `${position} · ${position < data.promptLength ? "prompt" : "generation"}`],
    ["receives", massText(app, position, step)],
  ];
  if (data.has("sinks")) {
    const sink = data.bit("sinks", sample, data.selection(layer, head), step, position);
    rows.push(["sink", sink ? "yes" : "no"]);
  }
  if (kind !== "prompt") {
    const at = data.committedAt(sample, position);
    const confidence = data.value("confidence", data.slice("confidence", sample, step)[position]);
    if (Number.isFinite(confidence)) rows.push(["confidence", compact(confidence)]);
    rows.push(["committed", at < 0 ? "never" : `at step ${at}${kind === "fresh" ? ", now" : ""}`]);
  }
  return [headline, rows];
}
