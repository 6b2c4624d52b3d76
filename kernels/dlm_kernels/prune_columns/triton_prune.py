"""Pruning columns in Triton: a program keeps some rows of the block in registers and goes through all its columns.

Column after column in PyTorch is ten launches each, of which a layer of LLaDA-8B has 25,000 columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 16


@triton.jit
def prune_kernel(
    weight_ptr,  # float32 [rows, width], pruned in place
    factor_ptr,  # float32 [width, width]
    gone_ptr,  # uint8 [rows, width], read where the pattern is not PRUNED of AMONG
    errors_ptr,  # float32 [rows, width]
    rows,
    width,
    PRUNED: tl.constexpr,  # of every AMONG columns; 0 for what gone says
    AMONG: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    at = row[:, None] * width + column[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0)
    diagonal = tl.load(factor_ptr + column * (width + 1), mask=column < width, other=1.0)
    if PRUNED == 0:
        gone = tl.load(gone_ptr + at, mask=inside, other=0).to(tl.int32)
    else:
        gone = tl.zeros([ROWS, WIDTH], dtype=tl.int32)
    for first in range(0, width, AMONG):
        if PRUNED > 0:
            score = weight / diagonal[None, :]
            score = score * score
            rank = tl.zeros([ROWS, WIDTH], dtype=tl.int32)
            for other in range(first, first + AMONG):
                its = tl.sum(tl.where((column == other)[None, :], score, 0.0), axis=1)[:, None]
                before = (its < score) | ((its == score) & (other < column)[None, :])
                rank += before.to(tl.int32)
            own = (column >= first) & (column < first + AMONG)
            gone = tl.where(own[None, :] & (rank < PRUNED), 1, gone)
        for turn in range(first, first + AMONG):
            right = (column >= turn) & (column < width)
            factors = tl.load(factor_ptr + turn * width + column, mask=right, other=0.0)
            mine = (column == turn)[None, :] & (gone > 0)
            error = tl.sum(tl.where(mine, weight, 0.0), axis=1) / tl.load(factor_ptr + turn * (width + 1))
            weight -= error[:, None] * factors[None, :]
            tl.store(errors_ptr + row * width + turn, error, mask=row < rows)
    tl.store(weight_ptr + at, tl.where(gone > 0, 0.0, weight), mask=inside)


def prune(
    weight: Tensor, factor: Tensor, gone: Tensor | None, pattern: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """See :func:`dlm_kernels.prune_columns`."""
    weight = weight.clone(memory_format=torch.contiguous_format)
    errors = torch.empty_like(weight)
    rows, width = weight.shape
    kept, among = pattern or (1, 1)
    # Without a list the kernel reads none, but wants a pointer.
    given = errors if gone is None else gone.contiguous().view(torch.uint8)
    with torch.cuda.device_of(weight):  # Triton launches on the current device, wherever the tensors are
        prune_kernel[(triton.cdiv(rows, _ROWS),)](
            weight, factor.contiguous(), given, errors, rows, width,
            PRUNED=among - kept, AMONG=among, ROWS=_ROWS, WIDTH=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip
    return weight, errors
