"""Do sinks move? A diffusion model and its autoregressive twin on the same texts, read in several ways.

python -m dlm_lens.measure.sink_movement --texts 64 --seeds 4 --out figures/data/sink-movement-cpu.json

Of every text a first part is given and the rest arrives in equal shares. Five runs of every text:

* ``diffusion, writing``: the model writes the rest itself, in its own order, drawing tokens at ``temperature``;
* ``autoregressive, what it wrote``: the twin reads that very text, which grows from left to right;
* ``diffusion, random order``: the text's own rest replaces the masks, in a random order;
* ``diffusion, left to right``: the same, in the order in which the twin gets it;
* ``autoregressive, own text``: the twin reads the text as it is, growing likewise.

A *seed* is the noise of the drawn tokens in the first two and the order in the third, other ones for every text; the
last two are the same whatever the seed. The growing twin has no keys and no queries that are not there yet.

How they are read: :mod:`dlm_lens.measure.sink_readings`.

``--out`` is written anew after every text, so that an interrupted run leaves what it finished.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

import dlm_lens as dl
from dlm_lens.denoising import default_sampler
from dlm_lens.measure.environment import provenance
from dlm_lens.measure.policy_table import code_prompts
from dlm_lens.measure.sink_readings import AVERAGES, READ, READINGS, of_denoising, of_growing, read, stacked
from dlm_lens.samplers import Candidates, Commitment, Sampler
from dlm_lens.trace import Trace
from dlm_lens.whole_file import whole_file

if TYPE_CHECKING:
    from dlm_lens.models import DLM

WRITING, WRITTEN = "diffusion, writing", "autoregressive, what it wrote"
SHUFFLED, ORDERED, TWIN = "diffusion, random order", "diffusion, left to right", "autoregressive, own text"
RUNS = (WRITING, WRITTEN, SHUFFLED, ORDERED, TWIN)
SEEDLESS = (ORDERED, TWIN)
PAIRS = ((WRITING, WRITTEN), (ORDERED, TWIN))
"""Runs of both models on the same text: each has a diffusion model's and then its twin's."""


@dataclass(frozen=True)
class Reveal(Sampler):
    """Puts a known text [B, n] in place of the masks, an equal share at every step, ``ranks`` [n] telling the order."""

    text: Tensor
    ranks: Tensor

    def commit(self, at: Candidates) -> Commitment:
        due = self.ranks[at.positions] < (at.step + 1) * at.gen_length // at.steps
        return Commitment(self.text.gather(1, at.positions), at.open & due)


def sink_movement(
    diffusion: DLM,
    causal: DLM,
    texts: Tensor,
    *,
    given: int,
    steps: int = 8,
    seeds: int = 4,
    temperature: float = 1.0,
    layers: tuple[int, ...] | None = None,
    on_text: Callable[[xr.Dataset], object] | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """What the sinks of two models do on the same texts, run by run and reading by reading.

    ``texts`` LongTensor [n, L] are token ids that both models understand, of which the first ``given`` are given and
    the rest arrives in ``steps`` steps; ``layers`` restricts both models to some layers, all by default. Attention
    maps are recorded whole: 4 · steps · layers · heads · L² bytes. ``on_text`` is told what is found so far after
    every text. What a seed and a run are: :mod:`dlm_lens.measure.sink_movement`; what a reading is:
    :mod:`dlm_lens.measure.sink_readings`.

    Returns, over (text, run, seed, reading, average): ``spatial`` (even shares²) and ``temporal`` variance
    (positions²), ``centroid`` (position, mean over steps), ``persistence`` (share of the sinks that are sinks at the
    next step), ``lifetime`` (steps, mean over the keys that are sinks at any), ``count`` of sinks (per step) and
    ``first`` (share of steps at which the first key is one). Not every reading has them all
    (:data:`dlm_lens.measure.sink_readings.READ`). ``average`` "mean of heads" averages attention first;
    "head by head" reads every head and takes the median of variances and the mean of the rest. ``heads_spatial``,
    ``heads_temporal`` and ``heads_persistence`` (text, run, seed, layer, head) are of the reading "all keys", and
    ``restless`` (text, pair, seed, reading) is the share of pairs of a head of either model in which the diffusion
    model's has the higher temporal variance: ½ says that they do not differ, and ties count half.

    Raises ValueError for models of the wrong kind or with different tokens, and for lengths that leave nothing to be
    given or to arrive.
    """
    _check(diffusion, causal, texts, given, steps, seeds)
    options: dict[str, Any] = {"given": given, "steps": steps, "temperature": temperature, "layers": layers}
    parts: list[xr.Dataset] = []
    for number, text in enumerate(tqdm(texts, desc="Sinks", unit="text", disable=not progress)):
        own_seeds = range(number * seeds, (number + 1) * seeds)
        parts.append(_of_text(diffusion, causal, text, own_seeds, **options).expand_dims(text=[number]))
        if on_text is not None:
            on_text(xr.concat(parts, "text"))
    return xr.concat(parts, "text")


def even_movement(length: int, given: int, steps: int) -> xr.Dataset:
    """The same of no model: every query attends evenly to itself and all before it, while the text grows."""
    even = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]
    masses = of_growing(even[None, None], given, _bounds(given, length, steps))
    return read(stacked([masses]), causal=True).isel(sample=0, drop=True)


def _of_text(
    diffusion: DLM,
    causal: DLM,
    text: Tensor,
    seeds: range,
    *,
    given: int,
    steps: int,
    temperature: float,
    layers: tuple[int, ...] | None,
) -> xr.Dataset:
    """All runs of one text [L]."""
    prompt, rest = text[:given], text[None, given:]
    bounds = _bounds(given, len(text), steps)
    recorded: dict[str, Any] = {"statistics": [dl.FullMaps()], "layers": layers, "progress": False}

    def denoised(sampler: Sampler, seed: int = 0) -> Trace:
        return dl.capture(
            diffusion, prompt, gen_length=rest.shape[1], steps=steps, sampler=sampler, seed=seed, **recorded
        )

    def growing(tokens: Tensor) -> dict[str, np.ndarray]:
        # One more position, whose token is not known yet, stands behind the text: its keys and queries are left out.
        trace = dl.capture(causal, tokens, gen_length=1, steps=1, **recorded)
        maps = trace["full_map"].isel(step=0).values[..., : len(tokens), : len(tokens)]
        return of_growing(maps, given, bounds)

    ranks = torch.arange(rest.shape[1])
    own = replace(default_sampler(diffusion.spec, rest.shape[1]), temperature=temperature)  # type: ignore[type-var]
    found: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in RUNS}
    for seed in seeds:
        written = denoised(own, seed)
        found[WRITING].append(of_denoising(written, given))
        found[WRITTEN].append(growing(torch.from_numpy(written["final_tokens"].values).long()))
        shuffled = torch.randperm(len(ranks), generator=torch.Generator().manual_seed(seed))
        found[SHUFFLED].append(of_denoising(denoised(Reveal(rest, shuffled)), given))
    found[ORDERED].append(of_denoising(denoised(Reveal(rest, ranks)), given))
    found[TWIN].append(growing(text))
    groups = ((WRITING, SHUFFLED, ORDERED), (WRITTEN, TWIN))
    whole = {name: run for group in groups for name, run in _read_together(found, group, len(seeds)).items()}
    restless = [
        _more_often(whole[moving]["temporal_of_heads"], whole[still]["temporal_of_heads"])
        for moving, still in PAIRS
    ]
    together = [whole[name].drop_vars("temporal_of_heads") for name in RUNS]
    return (
        xr.concat(together, "run", join="outer")
        .assign_coords(run=list(RUNS))
        .assign(restless=xr.concat(restless, "pair"))
    )


def _read_together(
    found: dict[str, list[dict[str, np.ndarray]]], names: tuple[str, ...], seeds: int
) -> dict[str, xr.Dataset]:
    """Readings of runs of one kind, over ``seed``; where there is but one seed, it stands for all."""
    read_all = read(stacked([run for name in names for run in found[name]]), causal=TWIN in names)
    first, parts = 0, {}
    for name in names:
        count = len(found[name])
        samples = range(first, first + count) if count == seeds else [first] * seeds
        parts[name] = read_all.isel(sample=list(samples)).rename(sample="seed")
        first += count
    return parts


def _bounds(given: int, length: int, steps: int) -> list[int]:
    """Where the text ends at the beginning of every step, and after the last."""
    return [given + step * (length - given) // steps for step in range(steps + 1)]


def _more_often(moving: xr.DataArray, still: xr.DataArray) -> xr.DataArray:
    """How often a head of one model moves more than one of the other, of all pairs; heads without sinks do not move."""
    one = moving.stack(one=("layer", "head")).reset_index("one", drop=True).fillna(0.0)
    other = still.stack(other=("layer", "head")).reset_index("other", drop=True).fillna(0.0)
    order: xr.DataArray = xr.where(one > other, 1.0, xr.where(one == other, 0.5, 0.0))
    return order.mean(("one", "other"))


def _check(diffusion: DLM, causal: DLM, texts: Tensor, given: int, steps: int, seeds: int) -> None:
    if diffusion.spec.causal or not causal.spec.causal:
        raise ValueError(
            f"expected a diffusion model and then an autoregressive one, got {diffusion.spec.name!r} and"
            f" {causal.spec.name!r}"
        )
    tokens = [dlm.tokenizer.get_vocab() for dlm in (diffusion, causal) if dlm.tokenizer is not None]
    if any(other != tokens[0] for other in tokens):
        raise ValueError(
            f"{diffusion.spec.name!r} and {causal.spec.name!r} have different tokens, so that they cannot read the"
            " same text; take a pair that shares its tokenizer"
        )
    if texts.ndim != 2:
        raise ValueError(f"texts has the shape {tuple(texts.shape)}; expected [texts, tokens]")
    arriving = texts.shape[1] - given
    if given < 2 or not 2 <= steps <= arriving:
        raise ValueError(
            f"of {texts.shape[1]} tokens given={given} leaves {arriving} to arrive in steps={steps}; expected at least"
            " 2 given ones, 2 steps, and a token for each of them"
        )
    if seeds < 1:
        raise ValueError(f"seeds={seeds} must be at least 1")


_HEADS = ("heads_spatial", "heads_temporal", "heads_persistence")


def save_movement(found: xr.Dataset, about: dict[str, Any], path: Path) -> None:
    """Write what :func:`sink_movement` found as JSON, whole or not at all, to three significant digits.

    Heads are means over texts and seeds there.
    """
    runs: dict[str, Any] = {}
    for name in RUNS:
        run = found.sel(run=name).isel(seed=slice(1 if name in SEEDLESS else None))
        run = run.transpose("text", "seed", "reading", "average", ...)
        kept = {variable: run[variable].sel(reading=list(readings)) for variable, readings in READ.items()}
        heads = {variable: run[variable].mean(("text", "seed")) for variable in _HEADS}
        runs[name] = {variable: _listed(values) for variable, values in (kept | heads).items()}
    restless = found["restless"].transpose("pair", "text", "seed", "reading")
    stored = {
        "provenance": about | {"finished_texts": found.sizes["text"]},
        "runs": runs,
        "restless": [
            _listed(part.isel(seed=slice(1 if still in SEEDLESS else None)))
            for part, (_, still) in zip(restless, PAIRS, strict=True)
        ],
    }
    with whole_file(path) as new:
        new.write_text(json.dumps(stored, separators=(",", ":")) + "\n", encoding="utf-8")


def open_movement(path: Path) -> xr.Dataset:
    """What :func:`save_movement` wrote, with its provenance in ``attrs``; runs without a seed repeated for every one.

    Dimensions are those of :func:`sink_movement`, but heads have no texts and no seeds; NaN where nothing was kept.
    """
    stored = json.loads(Path(path).read_text(encoding="utf-8"))
    seeds = stored["provenance"]["seeds"]

    def array(values: Any, readings: tuple[str, ...], *more: str) -> xr.DataArray:
        labels = {"reading": list(readings)} | ({"average": list(AVERAGES)} if more else {})
        dims = ("text", "seed", "reading", *more)
        found = xr.DataArray(np.array(values, dtype=float), labels, dims)
        return found.isel(seed=[0] * seeds if found.sizes["seed"] == 1 else slice(None))

    parts = []
    for run in stored["runs"].values():
        kept = {name: array(run[name], readings, "average") for name, readings in READ.items()}
        whole = {name: values.reindex(reading=list(READINGS)) for name, values in kept.items()}
        heads = {name: (("layer", "head"), np.array(run[name], dtype=float)) for name in _HEADS}
        parts.append(xr.Dataset(whole | heads))
    restless = xr.concat([array(part, READINGS) for part in stored["restless"]], "pair")
    found = xr.concat(parts, "run").assign_coords(run=list(stored["runs"])).assign(restless=restless)
    return found.assign_attrs(stored["provenance"])


def _listed(values: xr.DataArray) -> Any:
    """Nested lists of three significant digits, None for NaN."""
    nested = np.array([_short(value) for value in values.values.ravel()], dtype=object)
    return nested.reshape(values.shape).tolist()


def _short(value: float) -> float | int | None:
    if np.isnan(value):
        return None
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded == int(rounded) else rounded


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write JSON where ``--out`` asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=int, default=64, help="pieces of held-out code (%(default)s)")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="tokens of a text (%(default)s)")
    parser.add_argument("--given", type=int, default=64, help="tokens of it that are given (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="in which the rest arrives (%(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    diffusion, causal = dl.load("tiny"), dl.load("tiny-ar")
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    about = provenance(diffusion, seed=0) | {"models": "tiny, tiny-ar"} | settings
    texts = torch.stack(code_prompts(diffusion, options.texts, options.length))
    how = {name: settings[name] for name in ("given", "steps", "seeds", "temperature")}
    keep = None if options.out is None else lambda found: save_movement(found, about, options.out)
    found = sink_movement(diffusion, causal, texts, **how, on_text=keep)
    table = found[["spatial", "temporal", "persistence"]].mean(("text", "seed")).to_dataframe().round(3)
    print(table.to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
