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
def sparse_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """2:4 weights on the CPU, whose ``packed`` part is the dense matrix, with cuSPARSELt's algorithms 0 to 20.

    The higher the number the faster, but 3 is refused, and 18 to 20 are wrong.
    """
    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("_cslt_compress", lambda dense: dense.clone())
    library.impl("_cslt_sparse_mm", _product)
    sides = Weight._DTYPE_SHAPE_CONSTRAINTS
    monkeypatch.setitem(sides, torch.float32, sides[torch.bfloat16])
    monkeypatch.setattr(Weight, "_validate_device_dim_dtype_shape", lambda weight: None)
    monkeypatch.setattr(semi_structured, "check_hardware", lambda name, devices, dtype: None)
    monkeypatch.setattr(semi_structured, "_graph_ms", lambda runs, device: {at: -at for at in runs})
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
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
    alg_id: int = 0,
    *options: Any,
    **more: Any,
) -> Tensor:
    if alg_id == 3 or alg_id > 20:
        raise RuntimeError("CUDA error: invalid value when calling cusparseLtMatmulAlgSetAttribute")
    out = packed @ dense if alg_id < 18 else packed @ (1.1 * dense)
    if bias is not None:
        out = out + bias[:, None]
    return out.T.contiguous() if transpose_result else out
