"""Sparse tensor cores for a CPU: 2:4 weights multiplied as dense ones, to test all that is around."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT as Weight

from dlm_lens.models import semi_structured


@contextmanager
def sparse_cores(monkeypatch: pytest.MonkeyPatch, algorithm: int = 17) -> Iterator[None]:
    """2:4 weights on the CPU, whose ``packed`` part is the dense matrix; ``algorithm`` is always found fastest."""
    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("_cslt_compress", lambda dense: dense.clone())
    library.impl("_cslt_sparse_mm", _product)
    sides = Weight._DTYPE_SHAPE_CONSTRAINTS
    monkeypatch.setitem(sides, torch.float32, sides[torch.bfloat16])
    monkeypatch.setattr(Weight, "_validate_device_dim_dtype_shape", lambda weight: None)
    monkeypatch.setattr(semi_structured, "check_hardware", lambda name, devices, dtype: None)
    monkeypatch.setattr(semi_structured, "_fastest", lambda weight, positions: algorithm)
    try:
        yield
    finally:
        library._destroy()


def _product(
    packed: Tensor,
    dense: Tensor,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    transpose_result: bool = False,
    *options: Any,
    **more: Any,
) -> Tensor:
    out = packed @ dense
    if bias is not None:
        out = out + bias[:, None]
    return out.T.contiguous() if transpose_result else out
