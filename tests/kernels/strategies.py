"""Random problems of every admissible shape, on the GPU if there is one."""

from dataclasses import dataclass

import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from torch import Tensor

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
IMPLS = ("reference", "triton")
# Triton's interpreter cannot do bfloat16.
DTYPES = [torch.float32, torch.float16, *[torch.bfloat16] * GPU]
DIMS = {"reference": [1, 4, 8, 24], "triton": [16, 24, 32, 64, *[96, 128, 256] * GPU]}


def effort(impl: str, reference: int, triton: int) -> settings:
    """Examples to try. Triton's interpreter is slow, and would take minutes to shrink one that fails."""
    if impl == "reference":
        return settings(max_examples=reference)
    return settings(max_examples=triton, phases=set(Phase) - {Phase.shrink})


@dataclass
class Problem:
    """Queries, keys, values and left padding; ``start`` is None where nothing is padded."""

    q: Tensor
    k: Tensor
    v: Tensor
    start: Tensor | None
    random: torch.Generator

    @property
    def length(self) -> int:
        return self.q.shape[2]


@st.composite
def problems(draw: st.DrawFn, impl: str, padding: bool = True) -> Problem:
    # Triton's tiles are 128 by 32 … 128: some problems need several. Those have few heads, for the interpreter's sake.
    long = impl == "triton" and draw(st.booleans())
    length = draw(st.integers(129, 300) if long else st.integers(1, 40))
    few = st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 3)])
    several = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3))
    batch, kv_heads, repeat = draw(few if long else several)
    dim, dtype = draw(st.sampled_from(DIMS[impl])), draw(st.sampled_from(DTYPES))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    # Up to tens of nats apart, so that rows are sometimes all but one-hot.
    sharpness = draw(st.sampled_from([0.1, 1.0, 5.0]))
    order = draw(st.sampled_from([(0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2)]))

    def normal(heads: int) -> Tensor:
        shape = (batch, heads, length, dim)
        laid_out = torch.randn([shape[i] for i in order], generator=random).permute(order)
        return laid_out.to(DEVICE, dtype)

    q, k, v = sharpness * normal(kv_heads * repeat), normal(kv_heads), normal(kv_heads)
    start = None
    if padding and draw(st.booleans()):
        start = torch.tensor([draw(st.integers(0, length - 1)) for _ in range(batch)], device=DEVICE)
    return Problem(q, k, v, start, random)


def group_sizes(problem: Problem) -> st.SearchStrategy[int]:
    """Queries per group: powers of two and others, below and above a tile's 128 queries."""
    if problem.length <= 40:
        return st.integers(1, 12) | st.sampled_from([16, 32])
    return st.integers(20, 220) | st.sampled_from([32, 64, 128])


@st.composite
def lists(draw: st.DrawFn, problem: Problem, group_size: int, block_size: int = 1) -> tuple[Tensor, Tensor]:
    """Keys or blocks of each group and how many of them count; keys of padding are not listed, as policies do it."""
    entries = -(-problem.length // block_size)
    width = draw(st.integers(1, entries))
    batch, heads, length, _ = problem.q.shape
    shape = (batch, heads, -(-length // group_size))
    begin = torch.zeros(batch, dtype=torch.long) if problem.start is None else problem.start.cpu()
    order = torch.rand(*shape, entries, generator=problem.random)
    order -= 2.0 * (torch.arange(entries) < begin[:, None])[:, None, None]
    most = (entries - begin).clamp_max(width)[:, None, None]
    counts = torch.rand(shape, generator=problem.random) * (most + 1)
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    columns = order.argsort(-1, descending=True)[..., :width]
    return columns.to(DEVICE, dtype), counts.long().to(DEVICE, dtype)
