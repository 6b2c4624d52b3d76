"""Window-Diffusion: compute a window of masked positions, keep what is decided, leave the far field out
(arXiv 2601.20332)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_lens.attention import StepContext
from dlm_lens.policies.base import CachedPlan, Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.policies.columns import refuse_causal
from dlm_lens.policies.held import Held, RunSize, held_cache
from dlm_lens.policies.key_value_cache import KeyValueCache, RowPlan


@dataclass(frozen=True)
class WindowDiffusion(Policy):
    """Masked positions in order: ``active`` are computed at every step, up to ``window`` in all kept as context, and
    the rest, the far field, takes no part at all.

    A phase lasts ``refresh_cycle`` steps. Its first step computes every decided position (the prompt among them) and
    the window, and keeps their keys and values. Its other steps compute the active positions and those decided during
    the phase, whose keys and values still change just after decoding, write theirs anew, and attend to all that is
    kept. The active positions move on as positions are decided, and tokens are committed only there. Every position
    keeps its own RoPE index.

    With ``early_stop``, once a generated end-of-text is decided everything after it is given up, and a run ends when
    nothing masked remains before it. Windowing and stopping early save separately: compare with
    ``early_stop=False`` to tell them apart.

    Published with 16 active positions, a cycle of 32 and a window of 64 for LLaDA (:meth:`llada`) or 128 for Dream
    (:meth:`dream`).

    Left open by the paper and chosen here: a phase ends early when fewer masked positions remain in its window than
    could be active; the last step of a run makes everything active; the decided positions nearest to the left of
    active ones are computed too where the model reads predictions there (Dream's logits are shifted by one).

    Source: arXiv 2601.20332, sections on the three zones, phases and adaptive length.
    """

    active: int = 16
    window: int = 128
    refresh_cycle: int = 32
    early_stop: bool = True

    def __post_init__(self) -> None:
        if self.active < 1:
            raise ValueError(f"active={self.active} must be at least 1 position")
        if self.window < self.active:
            raise ValueError(f"window={self.window} must hold the active={self.active} positions")
        if self.refresh_cycle < 1:
            raise ValueError(f"refresh_cycle={self.refresh_cycle} must be at least 1 step")

    @classmethod
    def llada(cls, early_stop: bool = True) -> WindowDiffusion:
        """The published settings for LLaDA: a window of 64."""
        return cls(window=64, early_stop=early_stop)

    @classmethod
    def dream(cls, early_stop: bool = True) -> WindowDiffusion:
        """The published settings for Dream: a window of 128."""
        return cls(window=128, early_stop=early_stop)

    @property
    def label(self) -> str:
        stop = "" if self.early_stop else ", no early stop"
        return f"Window-Diffusion {self.active}/{self.window}{stop}"

    def held(self, size: RunSize) -> Held:
        return held_cache(size)

    def start(self, info: RunInfo) -> PolicyRun:
        refuse_causal(self, info)
        each = -(-info.gen_length // info.steps)
        if each > self.active:
            raise ValueError(
                f"{info.gen_length} tokens in {info.steps} steps are {each} a step, but only active={self.active}"
                f" positions can be committed; use active={each} or at least"
                f" {-(-info.gen_length // self.active)} steps"
            )
        return _WindowDiffusionRun(self, info)


@dataclass
class _Phase:
    """One row between two refreshes: all that it attends to, the masked positions that it began with, and the first
    position behind its end of text."""

    began: int
    end: int
    attended: Tensor
    window: Tensor


class _WindowDiffusionRun(PolicyRun):
    def __init__(self, policy: WindowDiffusion, info: RunInfo) -> None:
        assert info.spec.mask_id is not None
        self._policy, self._info, self._mask_id = policy, info, info.spec.mask_id
        self._start = [0] * info.batch if info.start is None else info.start.tolist()
        self._cache = KeyValueCache(info.length, info.device)
        self._phases: list[_Phase | None] = [None] * info.batch

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        before = list(self._phases)
        state = tokens.cpu()
        ends = self._ends(state).tolist()
        rows = [self._row(row, step, state[row], ends[row]) for row in range(len(state))]
        refreshed = any(old is not new for old, new in zip(before, self._phases, strict=True))
        return self._cache.plan(step, "refresh" if refreshed else "cached", rows)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        assert isinstance(context.plan, CachedPlan)
        return self._cache.attend(layer, q, k, v, context.plan)

    def given_up(self, tokens: Tensor) -> Tensor | None:
        """What is masked behind the first end-of-text."""
        if not self._policy.early_stop:
            return None
        position = torch.arange(tokens.shape[1], device=tokens.device)
        return (position >= self._ends(tokens)[:, None]) & tokens.eq(self._mask_id)

    def _ends(self, tokens: Tensor) -> Tensor:
        """LongTensor [B]: the position behind the first generated end-of-text of each row, L where there is none."""
        spec, length = self._info.spec, tokens.shape[1]
        position = torch.arange(length, device=tokens.device)
        ends = tokens.eq(spec.eos_id) | tokens.eq(spec.pad_id)
        ends &= (position >= self._info.prompt_length) & self._policy.early_stop
        return torch.where(ends, position + 1, length).amin(-1)

    def _row(self, row: int, step: int, state: Tensor, end: int) -> RowPlan:
        policy, prompt = self._policy, self._info.prompt_length
        undecided = prompt + state[prompt:].eq(self._mask_id).nonzero()[:, 0]
        last = step == self._info.steps - 1
        phase = self._phases[row]
        if phase is not None and not len(undecided):
            return RowPlan(phase.attended, undecided, undecided)
        active = undecided if last else undecided[: policy.active]
        if phase is None or self._over(phase, step, end, active):
            window = active if last else undecided[: policy.window]
            phase = self._phases[row] = self._begin(row, step, end, undecided, window)
            return RowPlan(phase.attended, phase.attended, active)
        decided = phase.window[~torch.isin(phase.window, undecided)]
        return RowPlan(phase.attended, torch.cat([active, decided, *self._read_at(active)]).unique(), active)

    def _over(self, phase: _Phase, step: int, end: int, active: Tensor) -> bool:
        """Whether the row must be refreshed: its cycle is over, its text has ended, or its window is used up."""
        lasted = step - phase.began >= self._policy.refresh_cycle
        return lasted or end != phase.end or not bool(torch.isin(active, phase.window).all())

    def _begin(self, row: int, step: int, end: int, undecided: Tensor, window: Tensor) -> _Phase:
        there = torch.ones(self._info.length, dtype=torch.bool)
        there[undecided] = False
        there[window] = True
        there[: self._start[row]] = False
        there[end:] = False
        return _Phase(step, end, there.nonzero()[:, 0], window)

    def _read_at(self, active: Tensor) -> list[Tensor]:
        """The positions where predictions for the active ones are read, if not at themselves."""
        return [active - 1] if self._info.spec.logit_shift else []
