"""What all operations do alike with their arguments, and that PyTorch knows the compiled ones."""

import pytest
import torch
from dlm_kernels import (
    attention_statistics,
    block_sparse_attention,
    column_scores,
    column_sparse_attention,
    retained_mass,
    select_columns,
    share_columns,
)

from tests.kernels.strategies import DEVICE


def arguments(device=DEVICE):
    """Small tensors that fit together, by name."""
    q, k, v = torch.randn(3, 1, 2, 20, 16, device=device)
    columns = torch.zeros(1, 2, 2, 3, dtype=torch.int32, device=device)
    counts = torch.ones(1, 2, 2, dtype=torch.int32, device=device)
    lse = torch.zeros(1, 2, 20, device=device)
    start = torch.zeros(1, dtype=torch.int32, device=device)
    return {"q": q, "k": k, "v": v, "columns": columns, "counts": counts, "lse": lse, "start": start}


# Each takes what ``arguments`` returns and options.
OPS = {
    "attention_statistics": lambda a, **o: attention_statistics(
        a["q"], a["k"], start=a["start"], lse=a["lse"], bins=2, **o
    ),
    "column_scores": lambda a, **o: list(
        column_scores(a["q"], a["k"], start=a["start"], lse=a["lse"], group_size=16, **o)
    ),
    "column_sparse_attention": lambda a, **o: column_sparse_attention(
        a["q"], a["k"], a["v"], a["columns"], a["counts"], group_size=16, **o
    ),
    "block_sparse_attention": lambda a, **o: block_sparse_attention(
        a["q"], a["k"], a["v"], a["columns"], a["counts"], block_size=16, **o
    ),
    "retained_mass": lambda a, **o: retained_mass(
        a["q"], a["k"], a["columns"], a["counts"], start=a["start"], lse=a["lse"], group_size=16, **o
    ),
    "share_columns": lambda a, **o: share_columns(a["columns"], a["counts"], keys=20, group_size=16, **o),
    "select_columns": lambda a, **o: select_columns(a["q"].abs(), 3, **o),
}
READS = {
    "attention_statistics": "k start lse",
    "column_scores": "k start lse",
    "column_sparse_attention": "k v columns counts",
    "block_sparse_attention": "k v columns counts",
    "retained_mass": "k columns counts start lse",
    "share_columns": "counts",
}


@pytest.mark.parametrize("op", OPS)
def test_auto_is_the_reference_on_the_cpu(op, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    OPS[op](arguments("cpu"), impl="auto")


@pytest.mark.parametrize("op", OPS)
def test_triton_without_a_gpu_is_refused(op, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ValueError, match=rf'{op}: impl="triton" needs CUDA tensors, but \w+ \(1, 2, .*\) is on cpu'
    ):
        OPS[op](arguments("cpu"), impl="triton")


@pytest.mark.parametrize("op", OPS)
def test_an_unknown_implementation_is_named(op):
    with pytest.raises(ValueError, match=f"{op} has no implementation 'cuda'"):
        OPS[op](arguments(), impl="cuda")


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize(
    ("op", "name"), [(op, name) for op, names in READS.items() for name in names.split()]
)
def test_tensors_of_several_devices_are_named(op, name, impl):
    mixed = arguments()
    mixed[name] = mixed[name].to("meta")
    if (op, name) == ("block_sparse_attention", "columns"):
        name = "blocks"
    with pytest.raises(ValueError, match=rf"\b{name} .*on meta"):
        OPS[op](mixed, impl=impl)


@pytest.mark.parametrize("op", [op for op in OPS if op not in ("share_columns", "select_columns")])
def test_tensors_of_several_types_are_named(op):
    mixed = arguments()
    mixed["k"] = mixed["k"].half()
    with pytest.raises(
        ValueError, match=r"k is torch.float16 on .* but q is torch.float32 on .*; they must agree"
    ):
        OPS[op](mixed)


@pytest.mark.parametrize("op", [op for op in OPS if op not in ("share_columns", "select_columns")])
@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scales_that_are_none_are_named(op, impl, scale):
    with pytest.raises(ValueError, match=f"scale must be positive and finite, got {scale}"):
        OPS[op](arguments(), impl=impl, scale=scale)


@pytest.mark.parametrize("name", ["listed_attention", "listed_mass", "normalisers", "mass"])
def test_pytorch_knows_the_custom_operations(name):
    """Schemas are true, and fake implementations return what the real ones do."""
    a = arguments()
    for op in (
        "attention_statistics",
        "retained_mass",
    ):  # modules that register operations are imported by need
        OPS[op](a, impl="triton")
    bounds = torch.tensor([0, 9, 20], dtype=torch.int32, device=DEVICE)
    lists = a["columns"], torch.stack([a["counts"]] * 4, -1), 16, 1, 1, 0.25
    call = {
        "listed_attention": (a["q"], a["k"], a["v"], *lists),
        "listed_mass": (a["q"], a["k"], a["lse"], *lists),
        "normalisers": (a["q"], a["k"], a["start"], 0.25, False),
        "mass": (a["q"], a["k"], a["lse"], a["start"], bounds, 16, 1, 1, 0.25, False, True),
    }[name]
    operation = getattr(torch.ops.dlm_kernels, name).default
    torch.library.opcheck(operation, call, test_utils=("test_schema", "test_faketensor"))
