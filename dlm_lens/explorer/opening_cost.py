"""What it takes to open a large trace: ``python -m dlm_lens.explorer.opening_cost``.

Writes a made-up trace of 32 layers × 32 heads × 64 steps × 4,096 tokens (4.3 GB) to a temporary folder, opens it in the
explorer as a notebook does, asks for a head, exports it to one HTML file, and prints seconds, sizes and memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from dlm_lens.byte_sizes import format_bytes
from dlm_lens.explorer.widget import explore
from dlm_lens.trace import open_trace
from dlm_lens.trace_store import TraceWriter, create_store


def write_large_trace(path: Path, layers: int, heads: int, steps: int, length: int, bins: int = 64) -> None:
    """Random attention with a moving sink, written step by step; half of the positions are generated."""
    rng = np.random.default_rng(0)
    prompt, words = length // 2, dict(enumerate([" def", " return", "\n    ", " value", "(", " attention"]))
    coordinates = {
        "step": range(steps),
        "layer": range(layers),
        "head": range(heads),
        "position": range(length),
    }
    sizes = {"query_bin": bins, "key_bin": bins}
    attrs = {"model": "made up", "prompt_length": prompt, "steps": steps, "complete": True}
    writer = TraceWriter(
        create_store(path), coordinates, sizes, ["column_mass", "pooled_map", "row_entropy"], attrs
    )
    committed = np.full(length, -1, np.int32)
    committed[prompt:] = np.arange(length - prompt) * steps // (length - prompt)
    final = rng.integers(0, len(words), length).astype(np.int32)
    writer.write_start(np.zeros(1, np.int32))
    writer.write_outcome(final[None], committed[None])
    writer.write_vocabulary(words | {len(words): "[MASK]"})
    # Random numbers of a step are rolled along, for drawing a billion of them would take longer than all the rest.
    mass = rng.gamma(0.3, size=(layers, heads, length)).astype(np.float32)
    maps = rng.gamma(0.5, size=(layers, heads, bins, bins)).astype(np.float32)
    entropy = np.full((layers, heads, bins), 3, np.float32)
    for step in range(steps):
        masked = committed >= step
        now = np.roll(mass, step, axis=-1)
        now[..., (7 * step) % length] = 40
        shares = np.roll(maps, step, axis=-1)
        values = {
            "tokens": np.where(masked, len(words), final)[None],
            "masked": masked[None],
            "confidence": rng.uniform(size=(1, length)),
            "kind": "dense",
            "step_ms": 10.0,
            "column_mass": (now / now.sum(-1, keepdims=True))[None],
            "pooled_map": (shares / shares.sum(-1, keepdims=True))[None],
            "row_entropy": entropy[None],
        }
        writer.write_step(step, values)


def main() -> None:
    """Print a line per action."""
    parser = argparse.ArgumentParser(description="Open, look at and export a large trace.")
    for name, size in (("layers", 32), ("heads", 32), ("steps", 64), ("length", 4096)):
        parser.add_argument(f"--{name}", type=int, default=size)
    sizes = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.zarr"
        write_large_trace(path, **sizes)
        begun = perf_counter()
        widget = explore(open_trace(path))
        packed = widget._bundle.packs[0]
        print(
            f"open    {perf_counter() - begun:6.1f} s, {format_bytes(len(packed.payload))} to the browser,"
            f" finest resident selection: {packed.plan.resident}; {'; '.join(widget.notes) or 'nothing left out'}"
        )
        begun = perf_counter()
        _, payload = packed.selection(0, sizes["layers"] // 2, 3)
        print(f"a head  {perf_counter() - begun:6.2f} s, {format_bytes(len(payload))}")
        begun = perf_counter()
        page = widget.save_html(Path(folder) / "explorer.html")
        text = page.read_text(encoding="utf-8")
        notes = json.loads(text.split('id="dl-manifest">')[1].split("</script>")[0])["traces"][0]["notes"]
        print(
            f"export  {perf_counter() - begun:6.1f} s, {format_bytes(page.stat().st_size)}: {' '.join(notes)}"
        )
    print(f"memory  {format_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)} at most")


if __name__ == "__main__":
    main()
