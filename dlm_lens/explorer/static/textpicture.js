// The text as a drawing: rectangles and words as the browser laid them out, also those scrolled out of sight.

const PADDING_TOP = 2; // of a token, as in the style sheet

// The parts of a token that stand on lines of their own: text and box.
function linesOf(node) {
  const boxes = node.getClientRects();
  const text = node.firstChild.data;
  if (boxes.length < 2) return [...boxes].map((box) => ({ text, box }));
  const range = document.createRange();
  const lines = [...boxes].map((box) => ({ text: "", box }));
  for (const { segment, index } of new Intl.Segmenter().segment(text)) {
    range.setStart(node.firstChild, index);
    range.setEnd(node.firstChild, index + segment.length);
    const { top, bottom } = range.getBoundingClientRect();
    const line = lines.find(({ box }) => box.top <= (top + bottom) / 2 && (top + bottom) / 2 <= box.bottom);
    if (line) line.text += segment;
  }
  return lines;
}

// `scroll` holds headings and tokens; coordinates are from the top left of all it holds.
function readText(scroll) {
  scroll.classList.add("dl-whole");
  const frame = scroll.getBoundingClientRect();
  const place = (box) => ({ x: box.left - frame.left, y: box.top - frame.top + scroll.scrollTop, width: box.width, height: box.height });
  const words = [];
  for (const node of scroll.querySelectorAll("h4, .dl-tokens span")) {
    const { font, color, backgroundColor } = getComputedStyle(node);
    const heading = node.tagName === "H4";
    const lines = heading ? [{ text: node.textContent, box: node.getBoundingClientRect() }] : linesOf(node);
    for (const { text, box } of lines) words.push({ text: text.replace("\n", ""), font, color, back: backgroundColor, marks: node.classList, heading, ...place(box) });
  }
  const size = { width: scroll.clientWidth, height: scroll.scrollHeight };
  scroll.classList.remove("dl-whole");
  return { words, ...size };
}

function textPicture(app, scroll) {
  const { words, width, height } = readText(scroll);
  const paint = (ctx) => {
    ctx.fillStyle = app.ink("plot");
    ctx.fillRect(0, 0, width, height);
    const ascents = new Map();
    for (const word of words) {
      ctx.font = word.font;
      if (!ascents.has(word.font)) ascents.set(word.font, ctx.measureText("x").fontBoundingBoxAscent);
      drawWord(app, ctx, word, ascents.get(word.font));
    }
  };
  return { width, height, paint, font: getComputedStyle(scroll).font };
}

function drawWord(app, ctx, word, ascent) {
  const { text, x, y, width, height, marks, heading } = word;
  if (word.back !== "rgba(0, 0, 0, 0)") {
    ctx.fillStyle = word.back;
    ctx.beginPath();
    ctx.roundRect(x, y, width, height, 3);
    ctx.fill();
  }
  ctx.fillStyle = word.color;
  ctx.textAlign = "left";
  ctx.fillText(text, x, y + (heading ? 0 : PADDING_TOP) + ascent, ...(heading ? [] : [width]));
  const box = (ink, thick, out) => {
    ctx.strokeStyle = app.ink(ink);
    ctx.lineWidth = thick;
    ctx.beginPath();
    ctx.roundRect(x - out, y - out, width + 2 * out, height + 2 * out, 3);
    ctx.stroke();
  };
  if (marks.contains("dl-sink")) {
    ctx.fillStyle = app.ink("sink");
    ctx.fillRect(x, y + height - 2.5, width, 2.5);
  }
  if (marks.contains("dl-fresh")) box("fresh", 1.5, -0.75);
  if (marks.contains("dl-followed")) {
    ctx.setLineDash([4, 3]);
    box("follow", 2, 2);
    ctx.setLineDash([]);
  }
}
