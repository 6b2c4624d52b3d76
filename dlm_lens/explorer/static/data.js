// The packed trace: one inflated buffer, with typed views into it as the manifest describes them.

const VIEW_TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array };
const BITS = Uint8Array.from({ length: 8 }, (_, i) => 128 >> i);

// What a kernel sends is a view into a buffer, or a buffer.
const bytesOf = (view) => new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength);

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// The traces of a bundle: their compressed buffers follow each other.
function unpack(bundle, payload) {
  let end = 0;
  const parts = bundle.sizes.map((size) => payload.subarray(end, (end += size)));
  return Promise.all(bundle.traces.map(async (manifest, i) => new TraceData(manifest, await inflate(parts[i]), i)));
}

function readArrays(specs, buffer) {
  const arrays = {};
  for (const [name, spec] of Object.entries(specs)) {
    const size = spec.shape.reduce((a, b) => a * b, 1);
    const values = new VIEW_TYPES[spec.dtype](buffer, spec.offset, size);
    const last = spec.shape.length - 1;
    const strides = spec.shape.map((_, i) => spec.shape.slice(i + 1).reduce((a, b) => a * b, 1));
    if (spec.along !== undefined) undoDifferences(values, strides[spec.along], strides[spec.along - 1]);
    arrays[name] = { ...spec, values, strides, row: spec.shape[last], lut: decodeTable(spec.scale) };
  }
  return arrays;
}

// Arrays over selections. Of a large trace only the first selections are resident, the others come on demand.
const BY_SELECTION = new Set(["mass", "sinks", "centroid", "spread", "variance", "map"]);
const KEPT_SELECTIONS = 48;

class TraceData {
  constructor(manifest, buffer, index) {
    this.index = index; // of the trace in its bundle
    this.manifest = manifest;
    this.steps = manifest.steps;
    this.layers = manifest.layers;
    this.heads = manifest.heads;
    this.samples = manifest.start.length;
    this.positions = manifest.positions;
    this.promptLength = manifest.prompt_length;
    this.words = manifest.words.map(displayWord);
    this.breaks = manifest.words.map(lineBreak);
    this.arrays = readArrays(manifest.arrays, buffer);
    this.fetched = new Map(); // arrays by "sample selection", the longest unused first
    this.pending = new Map();
    this.askHost = null; // for a selection: (trace, sample, layer, head) → {arrays, payload}
    this.recalls = new Map();
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

  isThere(sample, layer, head) {
    const selection = this.selection(layer, head);
    return selection < this.manifest.resident || this.fetched.has(`${sample} ${selection}`);
  }

  // Makes a selection available; rejects with a reason that people can read.
  load(sample, layer, head) {
    const key = `${sample} ${this.selection(layer, head)}`;
    if (!this.pending.has(key)) {
      const asked = this.#ask(key, sample, layer, head);
      this.pending.set(key, asked);
      const done = () => this.pending.delete(key);
      asked.then(done, done);
    }
    return this.pending.get(key);
  }

  async #ask(key, sample, layer, head) {
    if (!this.askHost) throw new Error("its heads are read on demand, from a kernel that is not there: run the cell again");
    const { arrays, payload } = await this.askHost(this.index, sample, layer, head);
    this.fetched.set(key, readArrays(arrays, await inflate(payload)));
    if (this.fetched.size > KEPT_SELECTIONS) this.fetched.delete(this.fetched.keys().next().value);
  }

  // Recall of every head [layer · head] at a step, for a budget between those that were packed.
  recall(sample, step, budget) {
    const budgets = this.manifest.budgets;
    const above = Math.max(0, budgets.findIndex((b) => b >= budget));
    const below = above - 1;
    const [b0, b1] = [below < 0 ? 0 : budgets[below], budgets[above]];
    const at = (budget - b0) / (b1 - b0);
    const codes = this.slice("recall", sample, step);
    const { lut, row } = this.arrays.recall;
    return Float32Array.from({ length: codes.length / row }, (_, head) => {
      const lower = below < 0 ? 0 : lut[codes[head * row + below]];
      return lower + (lut[codes[head * row + above]] - lower) * at;
    });
  }

  // Its range over all steps, for colours that are comparable while scrubbing.
  recallRange(sample, budget) {
    const key = `${sample} ${budget}`;
    if (!this.recalls.has(key)) {
      const range = { lo: 1, hi: 0 };
      for (let step = 0; step < this.steps.length; step++)
        for (const value of this.recall(sample, step, budget)) {
          range.lo = Math.min(range.lo, value);
          range.hi = Math.max(range.hi, value);
        }
      if (this.recalls.size > 20) this.recalls.clear();
      this.recalls.set(key, range);
    }
    return this.recalls.get(key);
  }

  // Values at leading indices, as a view without copying: slice("mass", sample, selection) is [step, position].
  slice(name, ...index) {
    let array = this.arrays[name];
    if (index[1] >= this.manifest.resident && BY_SELECTION.has(name)) {
      array = this.fetched.get(`${index[0]} ${index[1]}`)[name];
      index[0] = index[1] = 0;
    }
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
