"""Time every operation against every peer that is present: ``python kernels/bench/run.py`` or ``make bench``.

Prints one table per operation and writes all rows with their provenance to ``figures/data/kernels-<device>.json``.
TFLOP/s count the kept work only, and efficiency is speed-up over the best dense backend times density: 1 means that
leaving keys out saves in time exactly what it saves in work. The best dense backend runs again in every race, in turns
with the others, because a chip that has just run hot is several per cent slower than one that has not.

Two floors stand beside each time. ``matmul floor``: the kept products at the rate of a plain bf16 product on this chip,
measured here. ``gather floor``: the listed rows of K and V once per list at the rate at which the level-2 cache
delivers them to gathers (6.3 TB/s on an H200). Whichever is higher binds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from dense import dense_rivals, flex_blocks, flex_columns
from dlm_kernels import (
    attention_statistics,
    block_sparse_attention,
    column_scores,
    column_sparse_attention,
    retained_mass,
    select_columns,
    share_columns,
)
from problems import Size, measured_share, random_lists
from timing import Timing, default_output, provenance, race
from torch import Tensor

from dlm_lens.attention import dense_attention_and_lse

Tensors = tuple[Tensor, Tensor, Tensor]
Rivals = dict[str, Callable[[], Any]]
# An operation's name, who takes part, the part of all pairs that they compute, and what else to note.
Contests = Iterator[tuple[str, Rivals, float, dict[str, Any]]]

SPARSITIES = (0.5, 0.8, 0.9)
_GATHER_RATE = 6.3e12  # bytes per second
_PASSES = ("statistics", "PulseCol refresh")  # done beside dense attention, not instead of it
_REFERENCE_UP_TO = 4096  # the PyTorch reference is timed on short sequences only


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--lengths", type=int, nargs="+", help="default: 4096 16384 65536 on a GPU, 1024 on a CPU"
    )
    parser.add_argument("--heads", type=int, help="default: 32 on a GPU, 4 on a CPU")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="default: figures/data/kernels-<device>.json")
    args = parser.parse_args()
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    rate = _product_rate(device)
    for length in args.lengths or ((4096, 16384, 65536) if gpu else (1024,)):
        size = Size(
            length,
            heads=args.heads or (32 if gpu else 4),
            dim=128 if gpu else 32,
            dtype=torch.bfloat16 if gpu else torch.float32,
            device=device,
        )
        for row in _measure(size, args.repeats, rate):
            _print(row, first=not rows or rows[-1]["op"] != row["op"] or rows[-1]["length"] != length)
            rows.append(row)
    out = args.out or default_output(device)
    out.parent.mkdir(parents=True, exist_ok=True)
    about = provenance(device) | {"product_tflops": rate / 1e12, "seed": 0}
    out.write_text(json.dumps({"provenance": about, "rows": rows}, indent=1) + "\n")
    print(f"\nwritten to {out}")


def _measure(size: Size, repeats: int, rate: float) -> Iterator[dict[str, Any]]:
    """All rows for one length: the dense backends, then every operation beside the best of those."""
    q, k, v = size.draw()
    backends = dense_rivals(q, k, v)
    dense = race(backends, size.device, repeats=repeats)
    best = min(dense, key=lambda peer: dense[peer].ms)
    everything = size.length**2

    def row(
        op: str, peer: str, timing: Timing, beside: Timing, density: float, **more: Any
    ) -> dict[str, Any]:
        work = size.flops(density * everything)
        return {
            "op": op,
            "peer": peer,
            "length": size.length,
            "heads": size.heads,
            "dim": size.dim,
            "dtype": str(size.dtype).removeprefix("torch."),
            "density": density,
            **asdict(timing),
            "tflops": work / timing.ms / 1e9,
            "speedup": beside.ms / timing.ms,
            "efficiency": beside.ms / timing.ms * density,
            "dense_backend": best,
            "dense_ms": beside.ms,
            "product_floor_ms": 1e3 * work / rate,
            **more,
        }

    for peer, timing in dense.items():
        yield row("dense", peer, timing, dense[best], 1.0)
    for op in (_columns, _small_groups, _blocks, _statistics, _refresh):
        for name, rivals, density, more in op(size, (q, k, v)):
            times = race({"": backends[best], **rivals}, size.device, repeats=repeats)
            beside = times.pop("")
            for peer, timing in times.items():
                yield row(name, peer, timing, beside, density, **more)
        if size.device.type == "cuda":
            torch.cuda.empty_cache()


def _columns(size: Size, qkv: Tensors) -> Contests:
    """Columns of groups of 128 queries: a tile of queries per list."""
    gpu = size.device.type == "cuda"
    for sparsity in SPARSITIES:
        columns, counts = random_lists(size, -(-size.length // 128), size.length, 1 - sparsity)
        attend = partial(column_sparse_attention, *qkv, columns, counts, group_size=128)
        rivals: Rivals = {"dlm_kernels": attend}
        if gpu and size.length <= 16384:
            rivals["FlexAttention, masked"] = flex_columns(*qkv, columns, 128)
        if gpu and size.length <= _REFERENCE_UP_TO:
            rivals["reference"] = partial(attend, impl="reference")
        floor = columns.numel() * 2 * size.dim * qkv[0].element_size() / _GATHER_RATE * 1e3
        more = {"sparsity": sparsity, "group_size": 128, "gather_floor_ms": floor}
        yield "columns, groups of 128", rivals, columns.shape[-1] / size.length, more


def _small_groups(size: Size, qkv: Tensors) -> Contests:
    """Columns of groups of 32 queries, PulseCol's: private lists, and the same lists shared by four groups."""
    for sparsity, share in product(SPARSITIES, (0.78, 0.88)):
        columns, counts = random_lists(size, -(-size.length // 32), size.length, 1 - sparsity, share)
        shared = share_columns(columns, counts, keys=size.length, group_size=32)
        rivals: Rivals = {
            "dlm_kernels, shared lists": partial(column_sparse_attention, *qkv, shared, group_size=32),
            "dlm_kernels, private lists": partial(
                column_sparse_attention, *qkv, columns, counts, group_size=32
            ),
        }
        entries, common = (float(shared.counts[..., i].double().mean()) for i in (3, 0))
        rows = 2 * size.dim * qkv[0].element_size() / _GATHER_RATE * 1e3
        more = {
            "sparsity": sparsity,
            "group_size": 32,
            "share": measured_share(columns),
            "union": entries / columns.shape[-1],
            "common": common / columns.shape[-1],
            "gather_floor_ms": float(shared.counts[..., 3].sum()) * rows,
        }
        yield "columns, groups of 32", rivals, columns.shape[-1] / size.length, more


def _blocks(size: Size, qkv: Tensors) -> Contests:
    """Blocks of keys for blocks of queries, as SparseD chooses them; small ones with lists that overlap."""
    for block_size, sparsity in product((128, 64, 32), SPARSITIES):
        there = -(-size.length // block_size)
        blocks, counts = random_lists(size, there, there, 1 - sparsity, 0.0 if block_size == 128 else 0.78)
        attend = partial(block_sparse_attention, *qkv, block_size=block_size)
        rivals: Rivals = {"dlm_kernels": partial(attend, blocks, counts)}
        if block_size < 128:
            shared = share_columns(blocks, counts, keys=there, group_size=block_size)
            rivals["dlm_kernels, shared lists"] = partial(attend, shared)
        if size.device.type == "cuda" and block_size >= 64:
            rivals["FlexAttention"] = flex_blocks(*qkv, blocks, block_size)
        more = {"sparsity": sparsity, "block_size": block_size}
        yield f"blocks of {block_size}", rivals, blocks.shape[-1] / there, more


def _statistics(size: Size, qkv: Tensors) -> Contests:
    """Everything that a capture keeps of a layer, with and without the forward pass's log-sum-exp."""
    q, k, _ = qkv
    lse = attention_statistics(q, k, bins=None).lse
    columns, counts = random_lists(size, -(-size.length // 128), size.length, 0.2)
    rivals: Rivals = {
        "statistics, log-sum-exp given": partial(attention_statistics, q, k, lse=lse),
        "the same without entropy": partial(attention_statistics, q, k, lse=lse, entropy=False),
        "statistics": partial(attention_statistics, q, k),
        "retained mass of 20% columns": partial(
            retained_mass, q, k, columns, counts, group_size=128, lse=lse
        ),
    }
    if size.device.type == "cuda" and size.length <= _REFERENCE_UP_TO:
        rivals["statistics, reference"] = partial(attention_statistics, q, k, impl="reference")
    yield "statistics", rivals, 1.0, {}


def _refresh(size: Size, qkv: Tensors) -> Contests:
    """What a PulseCol refresh does to one layer, part by part and in all: 80%, groups of 32."""
    q, k, _ = qkv
    width = max(1, size.length // 5)
    lse = attention_statistics(q, k, bins=None).lse

    def score() -> None:
        for _ in column_scores(q, k, group_size=32, lse=lse):
            pass

    def select() -> tuple[Tensor, Tensor]:
        pieces = column_scores(q, k, group_size=32, lse=lse)
        columns, counts = zip(*(select_columns(scores, width) for _, scores in pieces), strict=True)
        return torch.cat(columns, 2), torch.cat(counts, 2)

    def refresh() -> None:
        dense_attention_and_lse(*qkv)
        share_columns(*select(), keys=size.length, group_size=32)

    rivals: Rivals = {
        "dense with log-sum-exp": partial(dense_attention_and_lse, *qkv),
        "column scores": score,
        "column scores and selection": select,
        "sharing": partial(share_columns, *select(), keys=size.length, group_size=32),
        "refresh, all of it": refresh,
    }
    yield "PulseCol refresh", rivals, 1.0, {"sparsity": 0.8, "group_size": 32}


def _product_rate(device: torch.device) -> float:
    """FLOP/s of a large plain matrix product, bf16 on a GPU."""
    gpu = device.type == "cuda"
    n = 8192 if gpu else 1024
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16 if gpu else torch.float32)
    timing = race({"product": lambda: a @ b}, device, repeats=10)["product"]
    return 2.0 * n**3 / timing.ms * 1e3


def _print(row: dict[str, Any], *, first: bool) -> None:
    if first:
        print(
            f"\n{row['op']}, {row['length']:,} tokens, {row['heads']} heads of {row['dim']}, {row['dtype']}"
        )
    sparsity = f"{100 * row['sparsity']:3.0f}%" if "sparsity" in row else "    "
    share = f", {100 * row['share']:.0f}% shared" if "share" in row else ""
    line = f"  {sparsity} {row['peer'] + share:44s} {row['ms']:9.2f} ms ({row['low']:.2f}–{row['high']:.2f})"
    if row["op"] in _PASSES:
        line += f"  {1 / row['speedup']:5.2f} times the best dense"
    else:
        line += f" {row['tflops']:6.1f} TFLOP/s, {row['speedup']:5.2f}× the best dense"
        line += f", efficiency {row['efficiency']:.2f}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
