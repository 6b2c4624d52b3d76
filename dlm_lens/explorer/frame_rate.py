"""How fast the explorer scrubs: ``python -m dlm_lens.explorer.frame_rate`` prints frames per second in Chromium.

Random attention shows what a size costs; ``--model tiny`` captures a real run of 64 steps first and scrubs that.
Needs Playwright (``pip install 'dlm-lens[dev]'``) and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import xarray as xr

from dlm_lens.explorer.page import page
from dlm_lens.measure.tasks import retrieval
from dlm_lens.models import load
from dlm_lens.recording import capture
from dlm_lens.trace import Trace

# One step per frame, to the end and back; the time between two frames holds all that a step costs: scripts,
# style, layout, painting.
_SCRUB = """async (rounds) => {
  const nextFrame = () => new Promise(requestAnimationFrame);
  const times = [];
  let last = await nextFrame();
  for (let round = 0; round < rounds; round++)
    for (const key of ["ArrowRight", "ArrowLeft"])
      for (let step = 0; step < 63; step++) {
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        const now = await nextFrame();
        times.push(now - last);
        last = now;
      }
  return times;
}"""


def large_trace(length: int, steps: int = 64, layers: int = 8, heads: int = 8, bins: int = 64) -> Trace:
    """Random attention of the given size with a few moving sinks; a third of the positions is generated."""
    rng = np.random.default_rng(0)
    prompt = 2 * length // 3
    committed = np.full(length, -1, np.int32)
    committed[prompt:] = np.arange(length - prompt) * steps // (length - prompt)
    mass = rng.gamma(0.7, size=(steps, layers, heads, length)).astype(np.float32)
    mass[np.arange(steps)[:, None], ..., (np.arange(steps)[:, None] * 3 + np.arange(4) * 90) % length] *= 40
    maps = rng.gamma(0.7, size=(steps, layers, heads, bins, bins)).astype(np.float32)
    words = dict(enumerate([" def", " return", "\n    ", " value", "(", " attention"]))
    final = rng.integers(0, len(words), length).astype(np.int32)
    masked = committed >= np.arange(steps)[:, None]
    by_position, by_head = ("step", "position"), ("step", "layer", "head")
    dataset = xr.Dataset(
        {
            "tokens": (by_position, np.where(masked, len(words), final).astype(np.int32)),
            "masked": (by_position, masked),
            "confidence": (by_position, rng.uniform(size=(steps, length)).astype(np.float32)),
            "committed_at": ("position", committed),
            "final_tokens": ("position", final),
            "start": ((), np.int32(0)),
            "kind": ("step", np.full(steps, "dense")),
            "step_ms": ("step", np.full(steps, 10, np.float32)),
            "column_mass": ((*by_head, "position"), mass / mass.sum(-1, keepdims=True)),
            "pooled_map": ((*by_head, "query_bin", "key_bin"), maps / maps.sum(-1, keepdims=True)),
        },
        attrs={
            "prompt_length": prompt,
            "steps": steps,
            "vocabulary": json.dumps(words | {len(words): "[MASK]"}),
        },
    )
    return Trace.from_dataset(dataset)


def real_trace(model: str, length: int, steps: int = 64) -> Trace:
    """A run of ``model`` on a retrieval prompt; of the ``length`` positions as many as steps are generated."""
    dlm = load(model)
    prompt = retrieval(dlm, 1, length=length - steps)[0].prompt
    return capture(dlm, prompt, gen_length=steps, steps=steps)


def frame_times(path: Path, rounds: int = 2) -> np.ndarray:
    """Milliseconds per frame while scrubbing a saved explorer of 64 steps one step per frame."""
    from playwright.sync_api import sync_playwright

    browser_path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if browser_path is None:
        raise FileNotFoundError("no Chromium on the PATH (on Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1280, "height": 1300})
        view.goto(path.resolve().as_uri())
        view.wait_for_selector("body[data-ready]", timeout=60_000)
        times = view.evaluate(_SCRUB, rounds)
        browser.close()
    return np.array(times)


def main() -> None:
    """Print a line per length."""
    parser = argparse.ArgumentParser(description="Frames per second while scrubbing 64 steps.")
    parser.add_argument(
        "lengths", nargs="*", type=int, help="positions (default: 512 1024 2048, of a model 512)"
    )
    parser.add_argument(
        "--model", help="capture a run of this model; without it, random attention of 8 × 8 heads"
    )
    arguments = parser.parse_args()
    for length in arguments.lengths or ([512] if arguments.model else [512, 1024, 2048]):
        trace = real_trace(arguments.model, length) if arguments.model else large_trace(length)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "explorer.html"
            path.write_text(page(trace, max_bytes=100_000_000), encoding="utf-8")
            size = path.stat().st_size
            times = frame_times(path)
        median, slow = np.median(times), np.percentile(times, 95)
        print(
            f"{trace.length:5} positions, {size / 1e6:5.1f} MB: {1000 / median:5.1f} frames/s"
            f" (median {median:.1f} ms, 95% below {slow:.1f} ms)"
        )


if __name__ == "__main__":
    main()
