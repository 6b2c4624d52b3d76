"""The attention probabilities themselves."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm_lens.recording.base import LayerAttention, Statistic


@dataclass(frozen=True)
class FullMaps(Statistic):
    """The whole map, [query, key]: 4 · L² bytes per head, layer and step, for short sequences and few heads.

    Rows of padding are 0. Every other statistic does without these maps; the memory budget of
    :func:`dlm_lens.capture` refuses them where they would not fit.
    """

    variable = "full_map"

    def shape(self, length: int) -> tuple[int, ...]:
        return (length, length)

    def __call__(self, attention: LayerAttention) -> Tensor:
        q, k = attention.q, attention.k
        batch, heads, length, dim = q.shape
        repeat = heads // k.shape[1]
        maps = q.new_zeros((batch, heads, length, length), dtype=torch.float32)
        first = [0] * batch if attention.start is None else attention.start.tolist()
        for b, begin in enumerate(first):
            for h in range(heads):
                scores = q[b, h, begin:].float() @ k[b, h // repeat, begin:].float().T * dim**-0.5
                if attention.causal:
                    later = torch.ones(scores.shape, dtype=torch.bool, device=q.device).triu_(1)
                    scores.masked_fill_(later, float("-inf"))
                maps[b, h, begin:, begin:] = torch.softmax(scores, -1)
        return maps
