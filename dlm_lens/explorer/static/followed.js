// The followed token over the run: the attention it receives at every step, when it was decided, when it was a sink.

function makeFollowed(app) {
  const { data, store, tip } = app;
  const state = store.state;
  const subject = el("span", { class: "dl-subject", "data-picture": "" });
  const view = panel("Followed token", subject);
  view.root.hidden = true;
  if (!data.has("mass")) return { root: view.root, update() {} };
  let shares = [];
  let top = 1;

  const frame = (width, height) => ({ ...app.timeSpan(width), top: 8, height: height - 30 });
  const x = (plot, step) => plot.left + (step + 0.5) * plot.cell;
  const y = (plot, share) => plot.top + (1 - share / top) * plot.height;
  const selection = () => data.selection(state.layer, state.head);
  const isSink = (step) => data.bit("sinks", state.sample, selection(), step, state.follow);

  const base = makeCanvas({ class: "dl-trail" }, (ctx, width, height) => {
    if (state.follow < 0) return;
    const plot = frame(width, height);
    ctx.fillStyle = app.ink("plot");
    ctx.fillRect(plot.left, plot.top, plot.width, plot.height);
    for (const share of [0, top / 2, top]) axisText(app, ctx, percent(share), plot.left - 8, y(plot, share) + 4, "right");
    sideTitle(app, ctx, plot, "attention");
    ctx.lineWidth = 1.25;
    ctx.strokeStyle = app.ink("dim");
    ctx.setLineDash([5, 4]);
    ctx.beginPath();
    ctx.moveTo(plot.left, y(plot, data.uniform(state.sample)));
    ctx.lineTo(plot.left + plot.width, y(plot, data.uniform(state.sample)));
    ctx.stroke();
    ctx.setLineDash([]);
    drawDecision(ctx, plot);
    ctx.strokeStyle = app.ink("follow");
    ctx.fillStyle = app.ink("follow");
    ctx.lineWidth = 2;
    ctx.lineJoin = "round";
    ctx.beginPath();
    shares.forEach((share, step) => ctx.lineTo(x(plot, step), y(plot, share)));
    ctx.stroke();
    shares.forEach((share, step) => {
      if (!isSink(step)) return;
      ctx.beginPath();
      ctx.arc(x(plot, step), y(plot, share), 3.5, 0, 2 * Math.PI);
      ctx.fill();
    });
    drawStepAxis(app, ctx, plot);
  });

  // Where the raster marks it too: at the end of the step that decided the token.
  const drawDecision = (ctx, plot) => {
    const step = data.decidedIn(state.sample, state.follow);
    if (state.follow < data.promptLength || step < 0) return;
    const at = plot.left + (step + 1) * plot.cell;
    ctx.fillStyle = app.ink("frontier");
    ctx.fillRect(at - 1, plot.top, 2, plot.height);
    const right = at < plot.left + plot.width - 70;
    axisText(app, ctx, "committed", at + (right ? 6 : -6), plot.top + 11, right ? "left" : "right", "text");
  };

  const over = makeCanvas({ class: "dl-trail dl-overlay", role: "img" }, (ctx, width, height) => {
    const plot = frame(width, height);
    drawPlayhead(app, ctx, plot, plot.top - 6, plot.top + plot.height);
  });

  const keys = el(
    "div",
    { class: "dl-keys" },
    keyItem("trail", "attention received by the followed token"),
    keyItem("sink-dot", "it is a sink at this step"),
    keyItem("even", "even share"),
    keyItem("frontier", "it is committed here"),
  );
  view.body.append(
    el("div", { class: "dl-stack" }, base.node, over.node),
    el("div", { class: "dl-panel-foot" }, keys),
  );

  over.node.addEventListener("mousemove", (event) => {
    const plot = frame(over.width, over.height);
    const step = Math.floor((pointer(event, over.node)[0] - plot.left) / plot.cell);
    if (step < 0 || step >= data.steps.length || state.follow < 0) return tip.hide();
    tip.show(event, ...describePosition(app, state.follow, step));
  });
  over.node.addEventListener("mouseleave", () => tip.hide());
  app.dragTime(over);

  const update = (changed) => {
    const follows = state.follow >= data.start(state.sample);
    if (touches(changed, "follow", "sample")) view.root.hidden = !follows;
    if (!follows) return;
    if (touches(changed, "follow")) changed = new Set([...changed, "layout"]); // it may have been hidden
    if (touches(changed, "layer", "head", "follow", ...EVERYTHING)) {
      shares = data.steps.map((_, step) => data.value("mass", data.slice("mass", state.sample, selection(), step)[state.follow]));
      top = Math.max(...shares, 2 * data.uniform(state.sample));
      subject.textContent = `“${data.finalToken(state.sample, state.follow).text.replace("\n", "")}” at position ${state.follow} · ${app.selectionText()}`;
      over.node.setAttribute("aria-label", `Attention received over the steps by ${subject.textContent}`);
      base.draw(changed);
    }
    if (touches(changed, "step", "layer", "head", "follow", ...EVERYTHING)) over.draw(changed);
  };
  return { root: view.root, update };
}
