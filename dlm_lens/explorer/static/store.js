// What is selected, and who redraws when it changes: all changes until the next frame are drawn together.

class Store {
  constructor(state) {
    this.state = state;
    this.views = [];
    this.listeners = []; // told after drawing
    this.watchers = []; // told at once
    this.changed = new Set();
    this.frame = 0;
  }

  set(patch) {
    const news = Object.entries(patch).filter(([key, value]) => !Object.is(this.state[key], value));
    for (const [key, value] of news) {
      this.state[key] = value;
      this.changed.add(key);
    }
    if (news.length) for (const watcher of this.watchers) watcher(Object.fromEntries(news));
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
