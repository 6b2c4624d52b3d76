"""How keys, values and hidden states of a position change from step to step once its token is decided.

Caches of keys and values (Window-Diffusion, arXiv 2601.20332; Fast-dLLM, arXiv 2505.22618) assume that they hardly do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dlm_lens.attention import StepContext, dense_attention
from dlm_lens.denoising import Denoised
from dlm_lens.errors import DlmLensError
from dlm_lens.measure.locality import away_from, dense_run, rows_of
from dlm_lens.measure.predict import mask_token
from dlm_lens.policies import PolicyRun, StepPlan
from dlm_lens.samplers import Sampler

if TYPE_CHECKING:
    from dlm_lens.models import DLM

TENSORS = ("key", "value", "hidden")
_MASKED, _PROMPT, _DECODED = range(3)
_QUARTERS = 4


def drift_since_decoding(
    dlm: DLM,
    prompt: Any,
    *,
    gen_length: int = 128,
    steps: int | None = None,
    sampler: Sampler | None = None,
    ages: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Relative change of keys, values and hidden states between one state of a dense run and the next, by age.

    ``age`` counts the steps since a position was decided: 0 is the change from the mask's vectors to the token's own,
    1 the first change after that, with the token standing still. An ``age`` of ``ages`` stands for all from there on,
    −1 for positions that are not decided in the run: those still masked, and the prompt. Two things go with age and are
    told apart from it. New text lies near other new text: ``distance`` is that from the nearest position whose token
    changed, 0 or the lower end of 1, 2–3, 4–7, 8–15 … And the oldest positions are seen at the end of a run only:
    ``remaining`` is the share of the generation still masked after the change, the lower end of a quarter.

    Changes are ‖now − before‖ / ‖before‖ (``relative_l2``) and 1 − cos(now, before) (``cosine_distance``) of a
    position's keys or values, all heads in one vector, and of its hidden state as the layer leaves it. They are the
    same before and after RoPE, which turns both by the same angles. Steps that commit nothing are passed over, and
    the state after the last step is compared, too. In 16-bit models changes of a few thousandths are rounding.

    Every state goes through the model once more after the run; vectors of only one state are kept.

    Parameters
    ----------
    prompt : as in :func:`dlm_lens.denoise`; several prompts are run one after the other, unpadded
    gen_length, steps, sampler, seed : those of the dense run
    ages : at least 1 step

    Returns one row per prompt, kind (``"decoded"``, ``"masked"``, ``"prompt"``), age, distance, remaining, layer and
    tensor (``"key"``, ``"value"``, ``"hidden"``): positions (how many changes), relative_l2 and cosine_distance (their
    means).

    Raises ValueError for autoregressive models and those with windows, and :class:`DlmLensError` for compiled layers,
    which do not show their hidden states. Source of the question: arXiv 2601.20332, its analysis of decoded tokens.
    """
    mask_id = mask_token(dlm, "drift since decoding")
    if ages < 1:
        raise ValueError(f"ages={ages} must be at least 1 step")
    if dlm.spec.windowed:
        raise ValueError(
            f"layers {list(dlm.spec.windowed)} of {dlm.spec.name!r} attend within a window and do not show their keys"
            " and values; drift is measured on models that attend everywhere"
        )
    tables = []
    for number, row in enumerate(rows_of(dlm, prompt)):
        done = dense_run(dlm, row, gen_length, steps, sampler, seed, progress)
        table = _walk(dlm, done, mask_id, ages, progress)
        table.insert(0, "prompt", number)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _walk(dlm: DLM, done: Denoised, mask_id: int, ages: int, progress: bool) -> pd.DataFrame:
    assert done.history is not None
    states = torch.cat([done.history, done.tokens[None]]).to(dlm.device)
    committed_at = done.committed_at[0].to(dlm.device)
    run, means = _Changes(), _Means(dlm.spec.layers, ages, states.shape[-1], dlm.device)
    with (
        _hidden_states(dlm, run),
        tqdm(total=len(states), desc="Drift", unit="state", disable=not progress) as bar,
    ):
        for step, tokens in enumerate(states):
            changed = (tokens != states[step - 1])[0].nonzero()[:, 0]
            if step == 0 or len(changed):
                _show(dlm, run, step, tokens)
            if step and len(changed):
                distance = away_from(changed, tokens.shape[1])
                remaining = int(tokens.eq(mask_id).sum()) / done.gen_length
                means.add(committed_at, step, distance, remaining, run.changes)
            bar.update()
    return means.table()


def _show(dlm: DLM, run: _Changes, step: int, tokens: Tensor) -> None:
    """Take one state through the model, and the run with it."""
    run.seen = set()
    dlm.logits(tokens, keep=range(0), context=StepContext(step, run.plan(step, tokens), run))
    if len(run.seen) < dlm.spec.layers * len(TENSORS):
        raise DlmLensError(
            "some layers did not show their hidden states, as compiled ones do not; measure drift on a model that"
            " is not compiled: load it anew"
        )


class _Changes(PolicyRun):
    """Dense attention that compares what it is shown of every layer with what it was shown at the state before.

    ``changes`` holds, by layer and tensor, the relative change and the cosine distance of each position, [2, L].
    """

    def __init__(self) -> None:
        self.changes: dict[tuple[int, str], Tensor] = {}
        self.seen: set[tuple[int, str]] = set()
        self._before: dict[tuple[int, str], Tensor] = {}

    def plan(self, step: int, tokens: Tensor) -> StepPlan:
        return StepPlan(step, "dense")

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: StepContext) -> Tensor:
        self.note(layer, "key", k.transpose(1, 2).flatten(2))
        self.note(layer, "value", v.transpose(1, 2).flatten(2))
        return dense_attention(q, k, v)

    def note(self, layer: int, name: str, vectors: Tensor) -> None:
        """``vectors`` [1, L, D] of the state being computed."""
        now = vectors[0]
        before = self._before.get((layer, name))
        if before is not None:
            self.changes[layer, name] = _change(before.float(), now.float())
        self._before[layer, name] = now
        self.seen.add((layer, name))


def _change(before: Tensor, now: Tensor) -> Tensor:
    """Relative L2 and cosine distance [2, L] between vectors [L, D]."""
    relative = (now - before).norm(dim=-1) / before.norm(dim=-1)
    cosine = torch.cosine_similarity(before, now, dim=-1)
    return torch.stack([relative, (1 - cosine).clamp_min(0)])  # rounding alone can make it negative


@contextmanager
def _hidden_states(dlm: DLM, run: _Changes) -> Iterator[None]:
    """Show ``run`` what each layer hands to the next, while inside."""
    hooks = []

    def show(layer: int, module: nn.Module, arguments: Any, output: Tensor) -> None:
        run.note(layer, "hidden", output)

    try:
        for index, layer in enumerate(dlm.layers):
            hooks.append(layer.register_forward_hook(partial(show, index)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Means:
    """Sums of changes by group of positions: what a position is, its age, how near the latest change is, and how much
    of the generation is still masked."""

    def __init__(self, layers: int, ages: int, length: int, device: torch.device) -> None:
        self._ages = ages
        self._edges = torch.tensor([0, *(2**power for power in range((length - 1).bit_length()))])
        # Ages follow what has none: index 0 for masked positions, 1 for the prompt.
        self._shape = (_DECODED + ages + 1, len(self._edges), _QUARTERS)
        groups = math.prod(self._shape)
        self._counts = torch.zeros(groups, dtype=torch.long, device=device)
        self._sums = torch.zeros(layers, len(TENSORS), 2, groups, dtype=torch.float64, device=device)

    def add(
        self,
        committed_at: Tensor,
        step: int,
        distance: Tensor,
        remaining: float,
        changes: dict[tuple[int, str], Tensor],
    ) -> None:
        """Changes into the state that entered ``step``; ``committed_at`` and ``distance`` [L]."""
        index = _DECODED + (step - 1 - committed_at).clamp(0, self._ages)
        index[(committed_at >= step) | (committed_at < -1)] = _MASKED
        index[committed_at == -1] = _PROMPT
        edge = torch.bucketize(distance, self._edges.to(distance.device), right=True) - 1
        quarter = min(int(remaining * _QUARTERS), _QUARTERS - 1)
        group = (index * len(self._edges) + edge) * _QUARTERS + quarter
        self._counts.index_add_(0, group, torch.ones_like(group))
        for (layer, name), values in changes.items():
            self._sums[layer, TENSORS.index(name)].index_add_(1, group, values.double().to(group.device))

    def table(self) -> pd.DataFrame:
        """One row per group that has members, layer and tensor."""
        counts = self._counts.cpu().numpy()
        sums = self._sums.cpu().numpy()
        rows = []
        for group in counts.nonzero()[0]:
            index, edge, quarter = (int(part) for part in np.unravel_index(group, self._shape))
            about = {
                "kind": ("masked", "prompt", "decoded")[min(index, _DECODED)],
                "age": index - _DECODED if index >= _DECODED else -1,
                "distance": int(self._edges[edge]),
                "remaining": quarter / _QUARTERS,
            }
            for layer, by_tensor in enumerate(sums[..., group] / counts[group]):
                for name, (relative, cosine) in zip(TENSORS, by_tensor, strict=True):
                    found = {"positions": counts[group], "relative_l2": relative, "cosine_distance": cosine}
                    rows.append({**about, "layer": layer, "tensor": name, **found})
        return pd.DataFrame(rows)
