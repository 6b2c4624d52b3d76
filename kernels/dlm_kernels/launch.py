"""How Triton kernels are launched: tile sizes per type, head dimension and architecture, strides, offsets.

Tiles were measured on an H200; anything older or smaller gets tiles that fit into 99 KB of shared memory. Nothing is
tuned at run time: a cold notebook must not wait for it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class Tiles:
    """Most queries and keys per tile, warps per program, depth of the software pipeline, most registers per thread (so
    that two programs fit on a multiprocessor: one computes scores while the other exponentiates), and precision of
    float32 products."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None
    precision: str = "ieee"

    @property
    def options(self) -> dict[str, Any]:
        """Compiler options of a launch."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}

    @classmethod
    def for_listed(cls, dtype: torch.dtype, dim: int, span: int) -> "Tiles":
        """For attention over lists that serve ``span`` queries each."""
        if dtype == torch.float32:
            return cls._float32(dim, span)
        rows = _fitting(span, 128)
        warps = 8 if rows == 128 else 4
        if dim > 128:
            return cls(rows, 32, warps, 2)
        if rows < 128 or not hopper():
            return cls(rows, 64, warps, 3 if hopper() else 2)
        return cls(rows, 64, 8, 2, registers=128)

    @classmethod
    def for_scores(cls, dtype: torch.dtype, dim: int, queries: int) -> "Tiles":
        """For passes over the scores in tiles of at most ``queries`` queries."""
        if dtype == torch.float32:
            return cls._float32(dim, queries)
        warps = 8 if queries == 128 else 4
        if dim > 128 or not hopper():
            return cls(queries, 64, warps, 1)
        return cls(queries, 128, warps, 2, registers=128)

    @classmethod
    def _float32(cls, dim: int, span: int) -> "Tiles":
        """Float32 products on a GPU take tf32 thrice, whose parts all lie in shared memory."""
        precision = "tf32x3" if hopper() else "ieee"
        if dim > 128:
            return cls(_fitting(span, 16), 16, 4, 1, precision=precision)
        return cls(_fitting(span, 64 if dim <= 64 else 32), 32, 4, 2, precision=precision)


def _fitting(span: int, most: int) -> int:
    """Rows of a tile for ``span`` queries: a power of two, at least 16."""
    return min(most, max(16, triton.next_power_of_2(span)))


def hopper() -> bool:
    """Whether the current device has Hopper's shared memory, matrix instructions and copy engine."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def copy_engine(*tensors: Tensor) -> bool:
    """Whether tiles of these tensors can come through the copy engine: addresses and strides in units of 16 bytes."""
    units = (
        t.data_ptr() % 16 == 0 and all(s * t.element_size() % 16 == 0 for s in t.stride()[:3])
        for t in tensors
    )
    return hopper() and all(units)


def tile_descriptor(tensor: Tensor, rows: int) -> TensorDescriptor:
    """Descriptor of tiles of ``rows`` rows of a head of ``tensor [B, H, L, D]``; what lies outside reads as zero."""
    block = [1, 1, rows, padded_dim(tensor.shape[3])]
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), block)


def padded_dim(dim: int) -> int:
    """Head dimension as the matrix instructions want it: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(dim))


def head_strides(tensor: Tensor) -> tuple[int, int, int]:
    """Strides of batch, head and row, in elements."""
    return tensor.stride(0), tensor.stride(1), tensor.stride(2)


def wide(*tensors: Tensor) -> bool:
    """Whether offsets within a head exceed 32 bits; the others are always computed in 64."""
    return any(t.stride(2) * t.shape[2] + t.shape[3] >= 1 << 31 for t in tensors)
