// What is selected, and who redraws when it changes: all changes until the next frame are drawn together.

class Store {
  constructor(state) {
    this.state = state;
    this.views = [];
    this.listeners = [];
    this.changed = new Set();
    this.frame = 0;
  }

  set(patch) {
    for (const [key, value] of Object.entries(patch)) {
      if (Object.is(this.state[key], value)) continue;
      this.state[key] = value;
      this.changed.add(key);
    }
    if (this.changed.size && !this.frame) this.frame = requestAnimationFrame(() => this.flush());
  }

  // Draws at once; a view gets the set of what changed ("layout" and "theme" mean everything).
  flush() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const changed = this.changed;
    this.changed = new Set();
    if (!changed.size) return;
    for (const view of this.views) view.update(changed);
    for (const listener of this.listeners) listener(changed);
  }

  redraw(reason) {
    this.changed.add(reason);
    if (!this.frame) this.frame = requestAnimationFrame(() => this.flush());
  }
}

function touches(changed, ...keys) {
  return keys.some((key) => changed.has(key));
}

const EVERYTHING = ["layout", "theme", "sample"];
