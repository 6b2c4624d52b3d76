// Time: buttons, the step label, and a bar per step for the tokens it committed.

const ICONS = {
  play: "M4 2.5v11l9-5.5z",
  pause: "M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z",
  first: "M3 3h1.8v10H3zM13 3v10L5.8 8z",
  back: "M11 3v10L4 8z",
  forward: "M5 3v10l7-5z",
  last: "M11.2 3H13v10h-1.8zM3 3v10l7.2-5z",
};
const SPEEDS = [2, 4, 8, 16, 30];
const KIND_TEXT = {
  dense: "dense attention",
  refresh: "dense, rebuilding the pattern",
  sparse: "sparse attention",
  cached: "cached keys and values",
};

function makeScrubber(app) {
  const { data, store, tip } = app;
  const state = store.state;
  const last = data.steps.length - 1;
  const button = (name, label, act) =>
    el("button", { type: "button", class: "dl-button", "aria-label": label, title: label, onclick: act }, icon(ICONS[name]));
  const play = button("play", "Play (space)", () => app.togglePlay());
  play.classList.add("dl-play");
  const speed = el("select", { "aria-label": "Playing speed", title: "Playing speed" });
  for (const rate of SPEEDS) speed.append(el("option", { value: rate }, `${rate} steps/s`));
  speed.value = state.speed;
  speed.addEventListener("change", () => store.set({ speed: Number(speed.value) }));
  const numbering = "Steps are numbered from 0, as in the trace";
  const label = el("output", { class: "dl-step", "aria-live": "off", title: numbering });
  const detail = el("span", { class: "dl-step-detail" });
  const kinds = el("span", { class: "dl-keys" });
  for (const kind of new Set(data.manifest.kinds)) kinds.append(keyItem(kind, KIND_TEXT[kind] ?? kind));
  const attributes = {
    class: "dl-scrub",
    tabindex: "0",
    role: "slider",
    "aria-label": "Denoising step",
    "aria-valuemin": data.steps[0],
    "aria-valuemax": data.steps[last],
  };
  const bars = makeCanvas(attributes, (ctx, width, height) => draw(ctx, width, height));
  const controls = el(
    "div",
    { class: "dl-transport" },
    el(
      "div",
      { class: "dl-buttons", role: "group", "aria-label": "Playback" },
      button("first", "First step (Home)", () => store.set({ step: 0 })),
      button("back", "One step back (←)", () => app.stepBy(-1)),
      play,
      button("forward", "One step on (→)", () => app.stepBy(1)),
      button("last", "Last step (End)", () => store.set({ step: last })),
    ),
    el("div", { class: "dl-step-line" }, label, detail),
    kinds,
    speed,
  );
  const root = el("section", { class: "dl-time", "aria-label": "Step" }, controls, bars.node);

  let counts = [];
  const draw = (ctx, width, height) => {
    const span = app.timeSpan(width);
    const top = Math.max(1, ...counts);
    const base = height - 6;
    const gap = span.cell > 4 ? 1 : 0;
    ctx.fillStyle = app.ink("line");
    ctx.fillRect(span.left, base, span.width, 1);
    counts.forEach((count, step) => {
      const h = count ? Math.max(3, ((base - 5) * count) / top) : 1;
      ctx.globalAlpha = step === state.step ? 1 : step < state.step ? 0.75 : 0.38;
      const kind = data.manifest.kinds[step];
      ctx.fillStyle = app.ink(`kind-${kind}`);
      drawBar(ctx, kind, span.left + step * span.cell + gap / 2, base, Math.max(span.cell - gap, 0.75), h);
    });
    ctx.globalAlpha = 1;
    axisText(app, ctx, `${top}`, span.left - 8, 13, "right");
    axisText(app, ctx, "tokens", span.left - 8, (base + 5) / 2 + 4, "right");
    axisText(app, ctx, "0", span.left - 8, base + 2, "right");
    drawPlayhead(app, ctx, span, 0, base, true);
  };

  const update = (changed) => {
    if (touches(changed, "sample") || !counts.length)
      counts = data.steps.map((_, step) => data.freshCount(state.sample, step));
    if (touches(changed, "speed")) speed.value = state.speed;
    if (touches(changed, "playing")) {
      play.replaceChildren(icon(state.playing ? ICONS.pause : ICONS.play));
      play.setAttribute("aria-label", state.playing ? "Pause (space)" : "Play (space)");
      play.title = play.getAttribute("aria-label");
    }
    if (!touches(changed, "step", ...EVERYTHING)) return;
    const count = counts[state.step];
    const masked = data.maskedCount(state.sample, state.step) - count;
    label.textContent = `step ${data.steps[state.step]} of ${data.manifest.total_steps}`;
    const ms = data.manifest.step_ms[state.step];
    detail.textContent =
      ` · ${count} ${count === 1 ? "token" : "tokens"} committed · ${masked} still masked` +
      (ms === null ? "" : ` · ${compact(ms)} ms recorded`);
    bars.node.setAttribute("aria-valuenow", data.steps[state.step]);
    bars.node.setAttribute("aria-valuetext", label.textContent + detail.textContent);
    bars.draw(changed);
  };

  bars.node.addEventListener("mousemove", (event) => {
    const { left, cell } = app.timeSpan(bars.width);
    const step = Math.floor((pointer(event, bars.node)[0] - left) / cell);
    if (step < 0 || step > last) return tip.hide();
    const ms = data.manifest.step_ms[step];
    tip.show(event, null, [
      ["step", `${data.steps[step]}`],
      ["committed", `${counts[step]} ${counts[step] === 1 ? "token" : "tokens"}`],
      ["kind", KIND_TEXT[data.manifest.kinds[step]] ?? data.manifest.kinds[step]],
      ...(ms === null ? [] : [["recorded in", `${compact(ms)} ms`]]),
    ]);
  });
  bars.node.addEventListener("mouseleave", () => tip.hide());
  app.dragTime(bars);
  return { root, update };
}

// A bar standing on `base`. Kinds differ in shape, not only in colour: sparse ones are striped, cached ones hollow,
// and refreshes have a triangle under them.
function drawBar(ctx, kind, x, base, width, height) {
  if (kind === "sparse" && height > 3)
    for (let top = base; top > base - height; top -= 5) ctx.fillRect(x, Math.max(top - 3.5, base - height), width, Math.min(3.5, top - base + height));
  else if (kind === "cached" && height > 3 && width > 4)
    for (const [dx, dy, w, h] of [[0, -height, width, 1.5], [0, -height, 1.5, height], [width - 1.5, -height, 1.5, height]])
      ctx.fillRect(x + dx, base + dy, w, h);
  else ctx.fillRect(x, base - height, width, height);
  if (kind !== "refresh") return;
  ctx.beginPath();
  ctx.moveTo(x + width / 2, base + 1);
  ctx.lineTo(x + width / 2 + 4, base + 6);
  ctx.lineTo(x + width / 2 - 4, base + 6);
  ctx.fill();
}

function axisText(app, ctx, text, x, y, align = "left", ink = "dim") {
  ctx.fillStyle = app.ink(ink);
  ctx.textAlign = align;
  ctx.fillText(text, x, y);
}

// The line of the current step; it has the same x in every view over time.
function drawPlayhead(app, ctx, span, top, bottom, knob = false) {
  const x = span.left + (app.store.state.step + 0.5) * span.cell;
  ctx.fillStyle = app.ink("playhead");
  ctx.fillRect(x - 0.75, top, 1.5, bottom - top);
  if (!knob) return;
  ctx.beginPath();
  ctx.arc(x, bottom, 5.5, 0, 2 * Math.PI);
  ctx.fill();
}
