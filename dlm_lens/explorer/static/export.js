// Saving a view as a picture: what its panel shows, with title, selection, step, legend and keys written on it.
// Any panel can be saved whose elements have `picture()`, the size and the drawing function of what they show.

const PICTURE = { margin: 16, title: 15, text: 12, line: 18, scale: 2, longest: 16_000 };

// The signs of the keys, as the style sheet draws them: shape, ink, thickness.
const SIGNS = {
  prompt: ["line", "dim", 2],
  masked: ["dots", "mask"],
  fresh: ["box", "fresh", 1.5],
  sink: ["under", "sink", 2.5],
  "sink-line": ["line", "sink", 2],
  frontier: ["bar", "frontier", 2],
  follow: ["box", "follow", 2],
  centroid: ["line", "sink", 2.5],
  spread: ["band", "sink"],
  dense: ["fill", "kind-dense"],
  refresh: ["flag", "kind-refresh"],
  sparse: ["stripes", "kind-sparse"],
  cached: ["box", "kind-cached", 1.5],
  aged: ["line", "kind-sparse", 3],
  "fresh-line": ["line", "text", 1.5],
  random: ["dash", "dim", 1.5],
  even: ["dash", "dim", 1.5],
  "refresh-mark": ["triangle", "kind-refresh"],
  trail: ["line", "follow", 2],
  "sink-dot": ["dot", "follow"],
};

const DRAW_SIGN = {
  line: (ctx, x, y, size) => ctx.fillRect(x, y + 6 - size / 2, 14, size),
  bar: (ctx, x, y, size) => ctx.fillRect(x + 7 - size / 2, y, size, 12),
  under: (ctx, x, y, size) => ctx.fillRect(x, y + 12 - size, 14, size),
  box: (ctx, x, y, size) => {
    ctx.lineWidth = size;
    ctx.strokeRect(x + size / 2, y + size / 2, 14 - size, 12 - size);
  },
  fill: (ctx, x, y) => ctx.fillRect(x, y, 14, 12),
  stripes: (ctx, x, y) => [0, 4.5, 9].forEach((at) => ctx.fillRect(x, y + at, 14, 3)),
  flag: (ctx, x, y) => {
    ctx.fillRect(x, y, 14, 6);
    ctx.beginPath();
    ctx.moveTo(x + 7, y + 7);
    ctx.lineTo(x + 11, y + 12);
    ctx.lineTo(x + 3, y + 12);
    ctx.fill();
  },
  band: (ctx, x, y) => {
    ctx.globalAlpha = 0.22;
    ctx.fillRect(x, y, 14, 12);
    ctx.globalAlpha = 1;
  },
  dash: (ctx, x, y, size) => [0, 5, 10].forEach((at) => ctx.fillRect(x + at, y + 6 - size / 2, 4, size)),
  dots: (ctx, x, y) => {
    for (let i = 0; i < 20; i++) ctx.fillRect(x + 1 + (i % 5) * 3, y + 1 + Math.floor(i / 5) * 3, 1.4, 1.4);
  },
  triangle: (ctx, x, y) => {
    ctx.beginPath();
    ctx.moveTo(x, y + 1);
    ctx.lineTo(x + 14, y + 1);
    ctx.lineTo(x + 7, y + 11);
    ctx.fill();
  },
  dot: (ctx, x, y) => {
    ctx.beginPath();
    ctx.arc(x + 7, y + 6, 4, 0, 2 * Math.PI);
    ctx.fill();
  },
};

// What a panel shows now: the drawings with their places, its legends, its keys, and its marked lines of text.
function pictureOf(app, view) {
  const { root } = view;
  const visible = (node) => node.getClientRects().length > 0;
  const nodes = [...root.querySelectorAll("*")].filter((node) => node.picture && visible(node));
  const boxes = nodes.map((node) => node.getBoundingClientRect());
  const [left, top] = [Math.min(...boxes.map((box) => box.left)), Math.min(...boxes.map((box) => box.top))];
  const drawings = nodes.map((node, i) => ({ ...node.picture(), x: boxes[i].left - left, y: boxes[i].top - top }));
  const { manifest, steps, samples } = app.data;
  const { state } = app.store;
  const sample = samples > 1 ? [`sample ${state.sample + 1} of ${samples}`] : [];
  return {
    title: root.getAttribute("aria-label"),
    facts: [manifest.title, app.selectionText(), ...sample, `step ${steps[state.step]} of ${manifest.total_steps}`],
    lines: [...root.querySelectorAll("[data-picture]")].filter(visible).map((node) => node.textContent),
    drawings,
    width: Math.max(...drawings.map(({ x, width }) => x + width)),
    height: Math.max(...drawings.map(({ y, height }) => y + height)),
    legends: [...root.querySelectorAll(".dl-legend")].filter(visible).map((node) => node.legend),
    keys: [...root.querySelectorAll(".dl-key")].filter(visible).map((node) => [node.dataset.kind, node.textContent]),
  };
}

// Lays pieces of known width into lines no longer than `room`; gives each its place and the height of all.
function flow(pieces, room, gap, line) {
  let [x, y] = [0, 0];
  const places = pieces.map((width) => {
    if (x > 0 && x + width > room) [x, y] = [0, y + line];
    const place = [x, y];
    x += width + gap;
    return place;
  });
  return { places, height: pieces.length ? y + line : 0 };
}

// Where everything goes: a list of drawing functions, and the size of the whole.
function composePicture(app, picture) {
  const family = getComputedStyle(app.root).fontFamily;
  const ruler = document.createElement("canvas").getContext("2d");
  const { margin, line } = PICTURE;
  const plain = `${PICTURE.text}px ${family}`;
  ruler.font = plain;
  const width = Math.ceil(Math.max(picture.width, 320, ...picture.legends.map((legend) => legend.width(ruler)))) + 2 * margin;
  const room = width - 2 * margin;
  const marks = [];
  let y = margin;
  const words = (texts, font, ink, lineHeight) => {
    ruler.font = font;
    const { places, height } = flow(texts.map((text) => ruler.measureText(text).width), room, ruler.measureText(" ").width, lineHeight);
    const from = y;
    marks.push((ctx) => {
      ctx.font = font;
      texts.forEach((text, i) => axisText(app, ctx, text, margin + places[i][0], from + places[i][1] + lineHeight - 6, "left", ink));
    });
    y += height;
  };
  words([picture.title], `600 ${PICTURE.title}px ${family}`, "text", 22);
  words(picture.facts.join(" · ").split(" "), plain, "dim", line);
  for (const text of picture.lines) words(text.split(" "), plain, "text", line);
  y += 8;
  for (const { paint, x, y: down, width: w, height: h, font } of picture.drawings) {
    const top = y + down;
    marks.push((ctx) => {
      ctx.font = font;
      ctx.translate(margin + x, top);
      paint(ctx, w, h, PICTURE.scale);
    });
  }
  y += picture.height + 8;
  for (const legend of picture.legends) {
    const from = y + 4;
    marks.push((ctx) => {
      ctx.font = plain;
      legend.draw(app, ctx, margin, from);
    });
    y += 36;
  }
  ruler.font = plain;
  const keys = flow(picture.keys.map(([, text]) => 20 + ruler.measureText(text).width), room, 16, line);
  const from = y;
  marks.push((ctx) => {
    ctx.font = plain;
    picture.keys.forEach(([kind, text], i) => drawKey(app, ctx, kind, text, margin + keys.places[i][0], from + keys.places[i][1]));
  });
  return { width, height: y + keys.height + margin, marks };
}

function drawKey(app, ctx, kind, text, x, y) {
  const [shape, ink, size] = SIGNS[kind];
  ctx.fillStyle = ctx.strokeStyle = app.ink(ink);
  DRAW_SIGN[shape](ctx, x, y, size);
  axisText(app, ctx, text, x + 20, y + 10);
}

function paintPicture(app, ctx, { width, height, marks }) {
  ctx.fillStyle = app.ink("surface");
  ctx.fillRect(0, 0, width, height);
  for (const mark of marks) {
    ctx.save();
    mark(ctx);
    ctx.restore();
  }
}

function svgBlob(app, whole, title) {
  const recorder = new SvgRecorder();
  paintPicture(app, recorder, whole);
  return new Blob([recorder.toString(whole.width, whole.height, title)], { type: "image/svg+xml" });
}

// Twice the size on screen; a very long text less, because browsers refuse larger canvases.
function pngBlob(app, whole) {
  const scale = Math.min(PICTURE.scale, PICTURE.longest / Math.max(whole.width, whole.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(whole.width * scale);
  canvas.height = Math.round(whole.height * scale);
  const ctx = canvas.getContext("2d");
  ctx.scale(scale, scale);
  paintPicture(app, ctx, whole);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large"))), "image/png"),
  );
}

// model_view_selection_step, of letters and digits only.
function fileName(app, title, ending) {
  const { data, store } = app;
  const { layer, head, sample, step } = store.state;
  const parts = [data.manifest.title, title];
  if (layer < 0) parts.push("all heads");
  else parts.push(head < 0 ? `layer ${data.layers[layer]}` : `layer ${data.layers[layer]} head ${data.heads[head]}`);
  if (data.samples > 1) parts.push(`sample ${sample}`);
  parts.push(`step ${data.steps[step]}`);
  const clean = (text) => text.replace(/[^\p{L}\p{N}.]+/gu, "-").replace(/^[-.]+|[-.]+$/g, "").slice(0, 60).toLowerCase();
  return `${parts.map(clean).filter(Boolean).join("_")}.${ending}`;
}

function download(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = el("a", { href: address, download: name, hidden: "" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

async function savePicture(app, view, ending) {
  const picture = pictureOf(app, view);
  const whole = composePicture(app, picture);
  const blob = ending === "svg" ? svgBlob(app, whole, `${picture.title}: ${picture.facts.join(" · ")}`) : await pngBlob(app, whole);
  download(fileName(app, picture.title, ending), blob);
}

// A small menu at the end of a panel's tools, for panels that draw something.
function addSaveMenu(app, view) {
  const tools = view.root.querySelector(".dl-panel-head .dl-tools, .dl-transport");
  if (!tools || ![...view.root.querySelectorAll("*")].some((node) => node.picture)) return;
  const whose = app.peers.length > 1 ? ` of ${app.data.manifest.title}` : "";
  const title = view.root.getAttribute("aria-label") + whose;
  const trouble = el("span", { role: "status" });
  const choice = (ending, hint) => {
    const act = async () => {
      trouble.textContent = "";
      try {
        await savePicture(app, view, ending);
        menu.open = false;
      } catch (error) {
        trouble.textContent = `not saved: ${error.message}`;
        throw error;
      }
    };
    return el("button", { type: "button", title: hint, "aria-label": `Save “${title}” as ${ending.toUpperCase()}`, onclick: act }, ending.toUpperCase());
  };
  const label = { title: "Save as a picture", "aria-label": `Save “${title}” as a picture` };
  const menu = el(
    "details",
    { class: "dl-save", name: "dl-save" },
    el("summary", label, icon(SAVE_ICON)),
    el("div", {}, choice("png", "Pixels, at twice the size on screen"), choice("svg", "Shapes and words, for any size"), trouble),
  );
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !menu.open) return;
    event.stopPropagation();
    menu.open = false;
    menu.firstChild.focus();
  });
  menu.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
  });
  tools.append(menu);
}

const SAVE_ICON = "M7.2 2h1.6v6.2l2.3-2.3 1.1 1.1L8 11.2 3.8 7l1.1-1.1 2.3 2.3zM2.5 12.4h11V14h-11z";
