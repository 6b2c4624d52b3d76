"""A trace: what was seen of attention, tokens and timings while one prompt (or a batch) was denoised."""

import html
import json
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr

from dlm_lens.errors import TraceError
from dlm_lens.trace_store import (
    BASE,
    FORMAT,
    KINDS,
    LABELLED,
    MARKER,
    STATISTICS,
    VARIABLES,
    TraceWriter,
    create_store,
    dimensions,
    read_dataset,
)


class Trace:
    """Labelled arrays over (step, layer, head, position, …) of one denoising run.

    ``trace.dataset`` is an ``xarray.Dataset``; ``trace["column_mass"]`` is one of its variables:

    ==================  ======================================  ==============================================
    variable            dims                                    meaning
    ==================  ======================================  ==============================================
    ``tokens``          step, position                          token ids entering the step
    ``masked``          step, position                          which of them are still the mask token
    ``confidence``      step, position                          probability of the argmax; NaN where not asked
    ``committed_at``    position                                step that decided the token; −1 prompt and
                                                                padding, −2 never decided (interrupted)
    ``final_tokens``    position                                token ids after the last step
    ``start``           –                                       first position that is not padding
    ``kind``            step                                    dense, refresh, sparse or cached
    ``step_ms``         step                                    milliseconds of the step, recording included
    ``column_mass``     step, layer, head, position             mean over queries of the probability given to
                                                                this key; sums to 1
    ``pooled_map``      step, layer, head, query_bin, key_bin   mass from a bin of queries to a bin of keys;
                                                                rows sum to 1
    ``row_entropy``     step, layer, head, query_bin            mean entropy of the query rows, nats
    ``retained_mass``   step, layer, head                       dense mass on the keys a sparse policy kept
    ``recall``          step, layer, head, granularity, budget  best share of the attention that columns or
                                                                blocks can keep at a budget of keys
    ``full_map``        step, layer, head, query, key           the attention probabilities themselves
    ==================  ======================================  ==============================================

    A batch of several prompts puts ``sample`` first in all of them but ``kind`` and ``step_ms``. The last
    six are there when they were recorded. ``step``, ``layer`` and ``head`` carry the numbers of what was
    recorded.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self.dataset = dataset

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> "Trace":
        """Wrap a dataset made elsewhere, checked for the variables and dimensions of a trace.

        Raises ``TraceError`` naming what is missing or shaped differently.
        """
        if missing := [name for name in BASE if name not in dataset]:
            raise TraceError(f"not a trace: the dataset lacks {', '.join(missing)}")
        batched = "sample" in dataset.dims
        for name in VARIABLES:
            if name in dataset and dataset[name].dims != dimensions(name, batched):
                raise TraceError(
                    f"not a trace: {name} has the dimensions {dataset[name].dims},"
                    f" expected {dimensions(name, batched)}"
                )
        if unknown := set(np.unique(dataset["kind"].values)) - set(KINDS):
            raise TraceError(f"not a trace: unknown step kinds {sorted(unknown)}, expected {KINDS}")
        labels = {
            dim: np.arange(dataset.sizes[dim])
            for dim in ("step", "layer", "head", "position")
            if dim in dataset.dims and dim not in dataset.coords
        }
        return cls(dataset.assign_coords(labels).assign_attrs({MARKER: FORMAT}))

    def __getitem__(self, name: str) -> xr.DataArray:
        """A variable by name; ``TraceError`` if this trace did not record it."""
        if name in self.dataset:
            return self.dataset[name]
        if name in STATISTICS:
            recorded = ", ".join(self.statistics) or "none"
            raise TraceError(
                f"this trace has no {name} (recorded: {recorded}); capture again with that statistic"
            )
        raise TraceError(f"unknown variable {name!r}; a trace can hold {', '.join(VARIABLES)}")

    @property
    def attrs(self) -> dict[str, Any]:
        """Where the trace comes from: model, spec (JSON), policy, sampler, seed, versions, device …"""
        return self.dataset.attrs

    @property
    def spec(self) -> dict[str, Any]:
        """The model's specification as a dictionary; empty if unknown."""
        return json.loads(self.attrs.get("spec", "{}"))

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the recorded statistics."""
        return tuple(name for name in STATISTICS if name in self.dataset)

    @property
    def steps(self) -> tuple[int, ...]:
        """Numbers of the recorded and finished steps."""
        return self._labels("step")

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the recorded layers."""
        return self._labels("layer")

    @property
    def heads(self) -> tuple[int, ...]:
        """Numbers of the recorded heads."""
        return self._labels("head")

    def _labels(self, dim: str) -> tuple[int, ...]:
        return tuple(int(label) for label in self.dataset[dim].values) if dim in self.dataset else ()

    @property
    def length(self) -> int:
        """Number of positions: left padding, prompt and generation."""
        return self.dataset.sizes["position"]

    @property
    def prompt_length(self) -> int:
        """Number of positions before the generation, padding included."""
        return int(self.attrs["prompt_length"])

    @property
    def samples(self) -> int:
        """Number of prompts traced together."""
        return self.dataset.sizes.get("sample", 1)

    @property
    def complete(self) -> bool:
        """Whether the run came to its end; False if it was interrupted."""
        return bool(self.attrs.get("complete", True))

    @property
    def vocabulary(self) -> dict[int, str]:
        """Display text of every token id that occurs in the trace."""
        return {int(token): text for token, text in json.loads(self.attrs.get("vocabulary", "{}")).items()}

    def tokens_text(self, sample: int = 0) -> list[list[str]]:
        """Display texts ``[step][position]`` of the tokens entering each step; ``‹id›`` if none is known."""
        return [self._texts(row) for row in self._of(sample, "tokens")]

    def final_text(self, sample: int = 0) -> list[str]:
        """Display texts ``[position]`` of the tokens after the last step."""
        return self._texts(self._of(sample, "final_tokens"))

    def _of(self, sample: int, name: str) -> np.ndarray:
        values = self.dataset[name]
        return (values.isel(sample=sample) if "sample" in values.dims else values).values

    def _texts(self, ids: np.ndarray) -> list[str]:
        vocabulary = self.vocabulary
        return [vocabulary.get(int(token), f"‹{int(token)}›") for token in ids]

    def save(self, path: str | PathLike, overwrite: bool = False) -> "Trace":
        """Write the trace as a Zarr folder and return it reopened from there.

        Raises ``TraceError`` if something is at ``path``; ``overwrite=True`` replaces a trace, nothing else.
        """
        dataset = self.dataset
        coordinates = {dim: self._labels(dim) for dim in ("step", "layer", "head", "position")}
        sizes = {str(dim): size for dim, size in dataset.sizes.items() if dim not in coordinates}
        labels = {dim: dataset[dim].values.tolist() for dim in LABELLED if dim in dataset.coords}
        writer = TraceWriter(
            create_store(path, overwrite), coordinates, sizes, self.statistics, self.attrs, labels
        )
        batch = dataset if "sample" in dataset.dims else dataset.expand_dims("sample")
        writer.write_start(batch["start"].values)
        writer.write_outcome(batch["final_tokens"].values, batch["committed_at"].values)
        writer.write_vocabulary(self.vocabulary)
        with_step = [name for name in writer.names if "step" in VARIABLES[name][0]]
        for index, step in enumerate(self.steps):
            now = batch.isel(step=index)
            values = {name: now[name].values for name in with_step}
            values |= {name: dataset[name].values[index] for name in ("kind", "step_ms")}
            writer.write_step(step, values)
        return open_trace(path)

    def _summary(self) -> dict[str, str]:
        finished = f"{len(self.steps)} recorded" + ("" if self.complete else ", interrupted")
        return {
            "model": str(self.attrs.get("model", "unknown")),
            "policy": str(self.attrs.get("policy", "unknown")),
            "sampler": str(self.attrs.get("sampler", "unknown")),
            "samples": str(self.samples),
            "positions": f"{self.length}, the first {self.prompt_length} of them the prompt",
            "steps": finished,
            "layers × heads": f"{len(self.layers)} × {len(self.heads)}",
            "statistics": ", ".join(self.statistics) or "none",
        }

    def __repr__(self) -> str:
        return "Trace\n" + "\n".join(f"  {name:<15}{value}" for name, value in self._summary().items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._summary().items()
        )
        return f"<table><caption>Trace</caption>{rows}</table>"


def open_trace(path: str | PathLike, *, chunks: Mapping[str, int] | None = None) -> Trace:
    """Open a saved trace without reading its statistics; they are read when used.

    ``chunks`` are those of ``xarray.open_zarr``: with them variables are Dask arrays, ``{}`` having one task per chunk
    on disk (a step, or some layers of a large one). That needs Dask: ``pip install "dlm-lens[scale]"``.

    The trace of an interrupted run opens with the steps it finished. Raises ``TraceError`` naming the path
    and what is wrong: nothing there, not a trace, foreign Zarr data, missing arrays or chunks, no finished
    step.
    """
    return Trace(read_dataset(path, chunks))
