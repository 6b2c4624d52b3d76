"""What a model is calibrated on: windows of text, as they look at several times of the diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dlm_lens.models import DLM

EPSILON = 1e-3


@dataclass(frozen=True)
class Calibration:
    """Samples of text, each noised at several diffusion times (Sink-Aware Pruning, arXiv 2602.17664).

    At time t of ``steps`` every token is masked with probability (1 − ε) · t / steps + ε, ε = 1e-3, by itself. An
    autoregressive model gets every sample once, as it is.

    Attributes
    ----------
    texts : strings, or token ids [P] each; by default bundled source code, from files that the bundled models were
        trained on. It is none of the held-out text that perplexity is measured on.
    samples : windows drawn from the texts. Every window is equally likely, and may be drawn twice.
    length : tokens of a window. A text shorter than that gives none.
    times, steps : the diffusion times, and the last of them.
    seed : of the drawing and the masking.
    batch_size : sequences that go through a layer together.
    """

    texts: Any = None
    samples: int = 128
    length: int = 512
    times: tuple[int, ...] = tuple(range(5, 51, 5))
    steps: int = 50
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("samples", "length", "steps", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
        times = self.times if isinstance(self.times, tuple | list | range) else ()
        if not times or not all(0 <= time <= self.steps for time in times):
            raise ValueError(f"times={self.times} must be diffusion times in 0…{self.steps}, at least one")

    def sequences(self, dlm: DLM) -> Tensor:
        """The token ids that go through the model, int64 [samples · times, length], a sample's times together.

        Raises ``ValueError`` if no text has ``length`` tokens, and if that exceeds the model's positions.
        """
        windows = self._windows(dlm)
        if dlm.spec.causal:
            return windows
        assert dlm.spec.mask_id is not None
        generator = torch.Generator().manual_seed(self.seed + 1)
        return noised(windows, self.times, self.steps, dlm.spec.mask_id, generator).flatten(0, 1)

    def _windows(self, dlm: DLM) -> Tensor:
        """Windows drawn from the texts, int64 [samples, length]."""
        if self.length > dlm.spec.max_length:
            raise ValueError(
                f"length={self.length} exceeds the {dlm.spec.max_length} positions of {dlm.spec.name!r}"
            )
        rows = _rows(dlm, self.texts)
        starts = torch.tensor([max(len(row) - self.length + 1, 0) for row in rows])
        if not starts.sum():
            raise ValueError(
                f"calibration is shorter than the sequence length: the longest of its {len(rows)} texts has"
                f" {max(map(len, rows))} tokens, length={self.length} are needed; give longer texts, or a smaller"
                " Calibration(length=…)"
            )
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randint(int(starts.sum()), (self.samples,), generator=generator)
        ends = starts.cumsum(0)
        which = torch.searchsorted(ends, drawn, right=True)
        first = drawn - (ends - starts)[which]
        pairs = zip(which.tolist(), first.tolist(), strict=True)
        return torch.stack([rows[row][at : at + self.length] for row, at in pairs])


def calibration_text() -> str:
    """The bundled excerpt of standard-library source that the bundled models were trained on."""
    return files("dlm_lens").joinpath("assets", "calibration.txt").read_text(encoding="utf-8")


def noised(
    windows: Tensor, times: Sequence[int], steps: int, mask_id: int, generator: torch.Generator
) -> Tensor:
    """``windows`` [S, L] at each of the ``times``, int64 [S, T, L], every draw independent of all others."""
    share = torch.tensor([(1 - EPSILON) * time / steps + EPSILON for time in times])
    drawn = torch.rand(len(windows), len(share), windows.shape[1], generator=generator)
    return windows[:, None].masked_fill(drawn < share[:, None], mask_id)


def _rows(dlm: DLM, texts: Any) -> list[Tensor]:
    """The token ids of every text, without padding."""
    if texts is None:
        if dlm.tokenizer is None:
            raise ValueError(
                f"model {dlm.spec.name!r} has no tokenizer; give prune(calibration=…) as token ids"
            )
        texts = calibration_text()
    encoded = dlm.encode(texts)
    return [row[start:] for row, start in zip(encoded.tokens, encoded.start.tolist(), strict=True)]
