"""Random problems of every admissible shape."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass
class Problem:
    """Queries, keys, values and left padding; ``start`` is None where nothing is padded."""

    q: Tensor
    k: Tensor
    v: Tensor
    start: Tensor | None


@st.composite
def problems(draw: st.DrawFn, max_length: int = 40, padding: bool = True) -> Problem:
    batch, kv_heads, repeat = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    length, dim = draw(st.integers(1, max_length)), draw(st.sampled_from([1, 4, 8]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    # Up to tens of nats apart, so that rows are sometimes all but one-hot.
    sharpness = draw(st.sampled_from([0.1, 1.0, 5.0]))
    q = sharpness * torch.randn(batch, kv_heads * repeat, length, dim, generator=random)
    k, v = torch.randn(2, batch, kv_heads, length, dim, generator=random)
    start = None
    if padding and draw(st.booleans()):
        start = torch.tensor([draw(st.integers(0, length - 1)) for _ in range(batch)])
    return Problem(q, k, v, start)
