"""What a policy holds in memory: lists of keys or kept keys and values, and what making them takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlm_lens.models import Spec

# Bytes of scores that are made at a time: by a Triton kernel, and elsewhere.
_SCORES_ON_GPU, _SCORES_ON_CPU = 1 << 30, 64 << 20
# Chosen lists of neighbouring groups overlap more than lists drawn at random. With random weights at LLaDA-8B's shape
# their union was 0.76 (64k positions) to 0.93 (4k) of what independent lists have; trained models overlap more.
CHOSEN, RANDOM = 0.88, 1.0


@dataclass(frozen=True)
class RunSize:
    """What the memory of a run depends on: the shape, the rows that go through the model and their positions.

    ``element`` is the bytes of a number of the model's dtype.
    """

    spec: Spec
    batch: int
    length: int
    element: int
    on_gpu: bool


@dataclass(frozen=True)
class Held:
    """Bytes that a policy keeps from step to step in all layers together, and those it takes besides in one layer."""

    kept: int = 0
    workspace: int = 0


def held_lists(size: RunSize, *, group_size: int, width: int, block: int = 1, union: float = CHOSEN) -> Held:
    """Lists of ``width`` keys, or of blocks of ``block`` keys, one for each group of ``group_size`` queries and head.

    On a GPU lists of small groups are merged (``dlm_kernels.share_columns``), ``union`` times as long as those of
    independent groups would be.
    """
    groups = -(-size.length // group_size)
    names = -(-size.length // block)
    heads = size.batch * size.spec.heads
    private = 4 * heads * groups * (width + 1)
    scores = min(4 * heads * groups * size.length, _SCORES_ON_GPU if size.on_gpu else _SCORES_ON_CPU)
    copies = 2 if size.length % block else 1  # a last block that is cut short is filled up
    making = 2 * private + copies * scores
    stored = private
    if size.on_gpu and group_size <= 64:
        together = max(1, min(7, 128 // group_size))
        lists = 4 * heads * -(-groups // together)
        longest = min(together * width, names)
        missed = (1 - width / names) ** together
        stored = lists * min(longest, int(union * names * (1 - missed)))
        making = max(making, private + lists * longest + stored)
    return Held(size.spec.layers * stored, making - stored)


def held_cache(size: RunSize) -> Held:
    """Keys and values of every position in every layer."""
    spec = size.spec
    each = size.batch * spec.kv_heads * (size.length + 1) * spec.head_dim * size.element
    return Held(2 * spec.layers * each)
