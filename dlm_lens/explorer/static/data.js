// The packed trace: one inflated buffer, with typed views into it as the manifest describes them.

const VIEW_TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array };
const BITS = Uint8Array.from({ length: 8 }, (_, i) => 128 >> i);

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

async function unpack(manifest, compressed) {
  return new TraceData(manifest, await inflate(compressed));
}

class TraceData {
  constructor(manifest, buffer) {
    this.manifest = manifest;
    this.steps = manifest.steps;
    this.layers = manifest.layers;
    this.heads = manifest.heads;
    this.samples = manifest.start.length;
    this.positions = manifest.positions;
    this.promptLength = manifest.prompt_length;
    this.words = manifest.words.map(displayWord);
    this.breaks = manifest.words.map(lineBreak);
    this.arrays = {};
    for (const [name, spec] of Object.entries(manifest.arrays)) {
      const size = spec.shape.reduce((a, b) => a * b, 1);
      const values = new VIEW_TYPES[spec.dtype](buffer, spec.offset, size);
      const last = spec.shape.length - 1;
      const strides = spec.shape.map((_, i) => spec.shape.slice(i + 1).reduce((a, b) => a * b, 1));
      if (spec.along !== undefined) undoDifferences(values, strides[spec.along], strides[spec.along - 1]);
      this.arrays[name] = { ...spec, values, strides, row: spec.shape[last], lut: decodeTable(spec.scale) };
    }
  }

  has(name) {
    return name in this.arrays;
  }

  start(sample) {
    return this.manifest.start[sample];
  }

  // Index into the axis "selection": the mean of everything, then each layer's mean, then each head.
  selection(layer, head) {
    if (layer < 0) return 0;
    if (head < 0) return 1 + layer;
    return 1 + this.layers.length + layer * this.heads.length + head;
  }

  // Values at leading indices, as a view without copying: slice("mass", sample, selection) is [step, position].
  slice(name, ...index) {
    const array = this.arrays[name];
    const offset = index.reduce((sum, at, i) => sum + at * array.strides[i], 0);
    return array.values.subarray(offset, offset + array.strides[index.length - 1]);
  }

  bit(name, sample, lead, step, position) {
    const row = lead === null ? this.slice(name, sample, step) : this.slice(name, sample, lead, step);
    return (row[position >> 3] & BITS[position & 7]) !== 0;
  }

  // What a position holds at a step: the token, or what became of the mask during this very step.
  word(sample, step, position) {
    const state = this.state(sample, step, position);
    const row = this.slice("tokens", sample, state === "fresh" ? step + 1 : step);
    return this.words[row[position]];
  }

  // The token at the end of the run: the text is laid out for it, so that scrubbing moves nothing.
  finalToken(sample, position) {
    const index = this.slice("tokens", sample, this.steps.length)[position];
    return { text: this.words[index], lineBreak: this.breaks[index] };
  }

  state(sample, step, position) {
    if (position < this.promptLength) return "prompt";
    if (!this.bit("masked", sample, null, step, position)) return "decided";
    return this.isFresh(this.committedAt(sample, position), step) ? "fresh" : "masked";
  }

  // Steps may have been recorded or packed with gaps: a decision belongs to the last step shown before it.
  isFresh(committed, step) {
    const next = step + 1 < this.steps.length ? this.steps[step + 1] : Infinity;
    return committed >= this.steps[step] && committed < next;
  }

  committedAt(sample, position) {
    return this.slice("committed_at", sample)[position];
  }

  // Index of the shown step that decided a position, −1 for none: the last one not after the decision.
  decidedIn(sample, position) {
    const committed = this.committedAt(sample, position);
    return this.steps.findLastIndex((label) => label <= committed);
  }

  freshCount(sample, step) {
    const committed = this.slice("committed_at", sample);
    let count = 0;
    for (const at of committed) count += this.isFresh(at, step);
    return count;
  }

  maskedCount(sample, step) {
    let count = 0;
    for (let p = this.promptLength; p < this.positions; p++) count += this.bit("masked", sample, null, step, p);
    return count;
  }

  value(name, code) {
    return this.arrays[name].lut[code];
  }

  // Share that every key would get if attention were spread evenly over the valid positions.
  uniform(sample) {
    return 1 / (this.positions - this.start(sample));
  }
}

// Each step was stored as the difference to the one before it; `block` holds all steps of one selection.
function undoDifferences(values, step, block) {
  for (let start = 0; start < values.length; start += block)
    for (let i = start + step; i < start + block; i++) values[i] += values[i - step];
}

// Codes 0…255 back to values; the code for "no value" gives NaN.
function decodeTable(scale) {
  if (!scale) return null;
  const { kind, lo, hi } = scale;
  return Float32Array.from({ length: 256 }, (_, code) => {
    if (kind === "log") return lo * (hi / lo) ** (code / 255);
    return code === 255 ? NaN : lo + ((hi - lo) * code) / 254;
  });
}

const LINE_END = /(\r\n|\n|\r)([ \t]*)$/;

// Whether a line ends with this token, and the width of the indentation it brings for the next one.
function lineBreak(text) {
  const found = LINE_END.exec(text);
  return found && { indent: found[2].replaceAll("\t", "    ").length };
}

// Every character that would be invisible or would disturb the line becomes a visible sign.
function displayWord(text) {
  if (text === "") return "∅";
  const shown = text
    .replace(LINE_END, "⏎")
    .replace(/\r\n|\n|\r/g, "⏎\n")
    .replace(/\t/g, "⇥")
    .replace(/[\u0000-\u0009\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u206f]/g, codePoint)
    // Joiners inside a word or an emoji do their work; alone or at an edge nobody would see them.
    .replace(/^[\u00ad\u200b-\u200d\u2060-\u2064\ufeff]+|[\u00ad\u200b-\u200d\u2060-\u2064\ufeff]+$/g, (run) =>
      [...run].map(codePoint).join(""),
    );
  return /^ +$/.test(shown) ? "·".repeat(shown.length) : shown;
}

function codePoint(character) {
  return `‹U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`;
}
