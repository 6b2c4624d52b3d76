"""Every policy on the bundled model, at several budgets and lengths: what it loses, and what a step takes.

python -m dlm_lens.measure.policy_table --lengths 512 1024 2048 --items 256 --out figures/data/policies-<device>.json

For each length, :func:`dlm_lens.compare` denoises held-out code (agreement, KL, retained mass, milliseconds) and asks
retrieval questions of that length (share answered exactly). Measurements are kept in ``--path`` as they finish.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

import dlm_lens as dl
from dlm_lens.measure.tables import format_summary

if TYPE_CHECKING:
    from dlm_lens.models import DLM
    from dlm_lens.policies import Policy


def policies_at(sparsity: float) -> list[Policy]:
    """Every policy that has a budget, at the same one; random columns, the control, are among them."""
    kept = round(1 - sparsity, 6)
    return [
        dl.PulseCol(sparsity),
        dl.PulseCol(sparsity, refresh="adaptive"),
        dl.SparseD.short(select=kept),
        dl.SinkAwareKV(budget=kept),
        dl.SinkAwareKV(budget=kept, mode="drop_transient"),
        dl.StreamingLLM(sparsity),
        dl.SlidingWindow(sparsity),
        dl.OracleColumns(sparsity),
        dl.RandomColumns(sparsity),
    ]


def policies_without_budget() -> list[Policy]:
    """Those that save something else than keys: heads, or positions and steps."""
    return [
        dl.SinkAwareHeads(0.25),
        dl.SinkAwareHeads(0.5),
        dl.WindowDiffusion.llada(),
        dl.FastDLLM(),
        dl.FastDLLM(threshold=None),
    ]


def code_prompts(dlm: DLM, count: int, length: int) -> list[torch.Tensor]:
    """Pieces of held-out code of ``length`` tokens, at even distances."""
    assert dlm.tokenizer is not None
    ids = dlm.tokenizer.encode(dl.tasks.held_out_text(), add_special_tokens=False)
    stride = (len(ids) - length) // max(1, count - 1)
    return [torch.tensor(ids[at * stride : at * stride + length]) for at in range(count)]


def table_at(dlm: DLM, length: int, policies: Sequence[Policy], options: argparse.Namespace) -> pd.DataFrame:
    """The comparison at one length, a row per policy and repetition."""
    items = dl.tasks.retrieval(dlm, options.items, length=length) if options.items else None
    return dl.compare(
        dlm,
        {f"code {length}": code_prompts(dlm, options.prompts, length - options.gen_length)},
        policies,
        gen_length=options.gen_length,
        steps=options.steps,
        repeats=options.repeats,
        tasks=items,
        path=options.path / str(length) if options.path else None,
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write JSON where ``--out`` asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048], help="prompt and answer")
    parser.add_argument("--sparsities", type=float, nargs="*", default=[0.5, 0.8, 0.9])
    parser.add_argument("--items", type=int, default=64, help="retrieval questions per length; 0 for none")
    parser.add_argument("--prompts", type=int, default=2, help="pieces of code per length, run as one batch")
    parser.add_argument("--gen-length", type=int, default=64, help="of the code (%(default)s)")
    parser.add_argument("--steps", type=int, help="of the code (default: as many as tokens)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quality", action="store_true", help="keep no times: lengths were run side by side")
    parser.add_argument("--path", type=Path, help="folder to keep measurements in, and to take them up from")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    dlm = dl.load("tiny")
    policies = [policy for sparsity in options.sparsities for policy in policies_at(sparsity)]
    policies += policies_without_budget()
    rows: list[dict[str, Any]] = []
    for length in options.lengths:
        table = table_at(dlm, length, policies, options)
        print(f"\n{length} tokens\n{format_summary(table)}", flush=True)
        if options.quality:
            timed = [
                name for name in map(str, table) if "ms" in name.split("_") or name.startswith("speedup")
            ]
            table = table.drop(columns=timed)
        rows += json.loads(table.to_json(orient="records"))
    if options.out:
        about = table.attrs["provenance"] | {"items": options.items, "code_prompts": options.prompts}
        options.out.write_text(json.dumps({"provenance": about, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
