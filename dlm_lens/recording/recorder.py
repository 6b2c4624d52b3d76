"""The recorder: reduces what it is shown of every layer at once and appends every step to a trace."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dlm_lens.denoising_loop import UNDECIDED
from dlm_lens.errors import TraceError
from dlm_lens.recording.base import BinnedStatistic, LayerAttention, Statistic
from dlm_lens.trace import Trace
from dlm_lens.trace_store import STATISTICS, TraceWriter, create_store, read_dataset

if TYPE_CHECKING:
    from dlm_lens.attention import StepContext
    from dlm_lens.policies import PolicyRun, StepPlan
    from dlm_lens.policies.base import Pattern


@dataclass(frozen=True)
class Selection:
    """What to record: statistics, and the numbers of steps, layers and heads, ascending.

    ``retained_mass`` asks for the dense mass on the keys that a sparse policy keeps.
    """

    statistics: tuple[Statistic, ...]
    steps: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    retained_mass: bool = False

    def __post_init__(self) -> None:
        names = [statistic.variable for statistic in self.statistics]
        if len(set(names)) < len(names):
            raise ValueError(f"every statistic may be recorded once, got {list(self.statistics)}")
        if len({statistic.bins for statistic in self.binned}) > 1:
            raise ValueError(f"statistics over bins must have the same bins, got {list(self.binned)}")

    @property
    def binned(self) -> tuple[BinnedStatistic, ...]:
        return tuple(statistic for statistic in self.statistics if isinstance(statistic, BinnedStatistic))

    @property
    def variables(self) -> list[str]:
        """Names of the variables over layers and heads that every recorded step brings."""
        return [s.variable for s in self.statistics] + ["retained_mass"] * self.retained_mass


class Recorder:
    """Records one run of :func:`dlm_lens.denoise`; what ``denoise`` tells it is in ``StepRecorder``.

    Nothing is written before the first step begins, and a step is complete in the trace or not there at all.

    Parameters
    ----------
    selection : what to record
    start : LongTensor [B], first valid position of each sample
    prompt_length : positions before the generation, padding included
    token_texts : display texts for a list of token ids
    attrs : JSON attributes of the trace
    path : folder of the trace, or None to keep it in memory
    overwrite : whether a trace at ``path`` may be replaced
    device_bytes : what reducing a layer takes where the model is, in bytes, for estimates of a run's memory
    """

    def __init__(
        self,
        selection: Selection,
        *,
        start: Tensor,
        prompt_length: int,
        token_texts: Callable[[Sequence[int]], list[str]],
        attrs: Mapping[str, Any],
        path: str | PathLike | None = None,
        overwrite: bool = False,
        device_bytes: int = 0,
    ) -> None:
        self.selection = selection
        self.device_bytes = device_bytes
        self._start = start.cpu().numpy()
        self._prompt_length = prompt_length
        self._token_texts = token_texts
        self._attrs = attrs
        self._path, self._overwrite = path, overwrite
        self._writer: TraceWriter | None = None
        self._vocabulary: dict[int, str] = {}
        self._values: dict[str, np.ndarray] = {}

    def begin_step(self, step: int, tokens: Tensor, plan: "StepPlan") -> None:
        """Note the state ``tokens`` [B, L] that enters the step."""
        if plan.queries is not None or plan.keys is not None:
            raise TraceError(
                f"step {step} ({plan.kind}) computes part of the positions; only whole steps are recorded: capture"
                " a dense run, and measure this policy with dl.compare()"
            )
        self._step, self._tokens = step, tokens.cpu().numpy()
        if self._writer is None:
            self._committed_at = np.full(self._tokens.shape, -1, dtype=np.int32)
            self._committed_at[:, self._prompt_length :] = UNDECIDED
            self._writer = self._create()
        if step in self.selection.steps:
            self._write_outcome(self._writer, self._tokens, self._committed_at)

    def observe(self, layer: int, q: Tensor, k: Tensor, context: "StepContext") -> None:
        """Reduce the attention of a layer: q [≥ B, H, L, D], k [≥ B, Hkv, L, D]; the first B rows are recorded."""
        if not self.records(layer):
            return
        rows = len(self._start)
        told: dict[str, Any] = {name: getattr(context, name) for name in ("start", "lse", "mask")}
        told = {name: None if value is None else value[:rows] for name, value in told.items()}
        attention = LayerAttention(q[:rows], k[:rows], causal=context.causal, **told, **self.reductions)
        attention = self.reduce(layer, attention)
        if self.selection.retained_mass:
            pattern = context.run.pattern(layer) if context.mask is None else None
            kept = _retained_mass(q, k, attention, pattern)
            index, heads = self.selection.layers.index(layer), list(self.selection.heads)
            self._values["retained_mass"][:, index] = kept[:rows, heads].cpu().numpy()

    def records(self, layer: int) -> bool:
        """Whether this layer is recorded at the current step."""
        return self._step in self.selection.steps and layer in self.selection.layers

    @property
    def reductions(self) -> dict[str, Any]:
        """What a :class:`LayerAttention` must be told of the statistics to make: ``bins`` and ``entropy``."""
        binned = self.selection.binned
        return {
            "bins": binned[0].bins if binned else None,
            "entropy": "row_entropy" in self.selection.variables,
        }

    def reduce(self, layer: int, attention: LayerAttention) -> LayerAttention:
        """Make the statistics of a layer from the ``attention`` of all heads; returns that of the recorded ones."""
        attention = attention.of_heads(self.selection.heads)
        index = self.selection.layers.index(layer)
        for statistic in self.selection.statistics:
            self._values[statistic.variable][:, index] = statistic(attention).cpu().numpy()
        return attention

    def end_step(
        self,
        step: int,
        confidence: Tensor,
        committed: Tensor,
        kind: str,
        ms: float,
        run: "PolicyRun | None" = None,
    ) -> None:
        """Append the step: ``confidence`` float32 [B, L], ``committed`` bool [B, L], milliseconds."""
        assert self._writer is not None
        if step in self.selection.steps:
            values = {
                "tokens": self._tokens,
                "masked": self._committed_at == UNDECIDED,
                "confidence": confidence.cpu().numpy(),
                "kind": kind,
                "step_ms": ms,
            }
            self._writer.write_step(step, values | self._values)
        self._committed_at[committed.cpu().numpy()] = step

    def finish(self, tokens: Tensor, committed_at: Tensor, interrupted: bool) -> Trace:
        """Close the trace with the state reached, [B, L] each, and return it.

        Raises ``TraceError`` if no recorded step was finished.
        """
        if self._writer is None:
            raise TraceError("the run was interrupted before its first step; there is no trace")
        self._write_outcome(self._writer, tokens.cpu().numpy(), committed_at.cpu().numpy())
        self._writer.write_attributes(complete=not interrupted)
        return Trace(read_dataset(self._store if self._path is None else self._path))

    def _create(self) -> TraceWriter:
        chosen = self.selection
        batch, length = self._tokens.shape
        shapes = {statistic.variable: statistic.shape(length) for statistic in chosen.statistics}
        shapes |= {"retained_mass": ()} if chosen.retained_mass else {}
        across = (batch, len(chosen.layers), len(chosen.heads))
        self._values = {name: np.empty((*across, *shape), np.float32) for name, shape in shapes.items()}
        sizes = {"sample": batch} if batch > 1 else {}
        for name, shape in shapes.items():
            sizes |= zip(STATISTICS[name][0][3:], shape, strict=True)
        self._store = create_store(self._path, self._overwrite)
        writer = TraceWriter(
            self._store,
            {"step": chosen.steps, "layer": chosen.layers, "head": chosen.heads, "position": range(length)},
            sizes,
            chosen.variables,
            {**self._attrs, "complete": False},
            {dim: labels for statistic in chosen.statistics for dim, labels in statistic.labels.items()},
        )
        writer.write_start(self._start)
        return writer

    def _write_outcome(self, writer: TraceWriter, tokens: np.ndarray, committed_at: np.ndarray) -> None:
        if new := sorted(set(np.unique(tokens).tolist()) - set(self._vocabulary)):
            self._vocabulary |= dict(zip(new, self._token_texts(new), strict=True))
            writer.write_vocabulary(self._vocabulary)
        writer.write_outcome(tokens, committed_at)


def _retained_mass(q: Tensor, k: Tensor, attention: LayerAttention, pattern: "Pattern | None") -> Tensor:
    """Dense mass on what the policy kept of all rows and heads, [B, H]; 1 where it kept everything."""
    if pattern is None:
        return torch.ones(q.shape[:2])
    everything = attention.q.shape == q.shape
    return pattern.retained_mass(q, k, lse=attention.reduced.lse if everything else None)[0]
