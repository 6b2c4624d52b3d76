"""Reading and writing the tables that :func:`dlm_lens.compare` returns."""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path

import pandas as pd

KINDS = ("dense", "refresh", "sparse", "cached")

# Columns that tell of pruned models, where there are some: their heads, and the factors to their units.
_OF_MODELS = {
    "linear_ms": ("matrices ms", 1),
    "linear_speedup": ("matrices ×", 1),
    "weight_sparsity": ("weights gone %", 100),
}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The table to read: one row per policy and prompt set, medians over repetitions, units in the heads."""
    keys = ["policy"] if table["prompts"].nunique() == 1 else ["prompts", "policy"]
    middle = table.groupby(keys, sort=False).median(numeric_only=True)
    columns = {
        "ms / step": middle["ms_per_step"],
        **{f"{kind} ms": middle[f"ms_{kind}"] for kind in KINDS},
        "total s": middle["total_ms"] / 1000,
        "speed-up ×": middle["speedup"],
        "over FA-2 ×": middle["speedup_vs_flash2"],
        "bound ×": middle["amdahl_bound"],
        **{head: factor * middle[name] for name, (head, factor) in _OF_MODELS.items() if name in middle},
        "peak MB": middle["peak_memory_mb"].round(),
        "same tokens %": 100 * middle["token_agreement"],
        "KL nats": middle["kl"],
        "kept mass %": 100 * middle["retained_mass"],
        "worst layer %": 100 * middle["retained_worst_layer"],
        "correct %": 100 * middle["accuracy"],
    }
    return pd.DataFrame(columns).dropna(axis="columns", how="all")


def format_summary(table: pd.DataFrame) -> str:
    """:func:`summary` as text for a terminal, one column per policy; what does not apply is a dash."""

    def number(value: float) -> str:
        digits = 0 if abs(value) >= 100 else 4 if 0 < abs(value) < 0.01 else 2
        return "–" if math.isnan(value) else f"{value:.{digits}f}"

    return summary(table).map(number).T.rename_axis(columns=None).to_string()


def save_table(table: pd.DataFrame, path: str | PathLike) -> None:
    """Write a table as CSV, or as JSON together with its provenance, by the suffix of ``path``."""
    path = check_table_path(path)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
        return
    rows = json.loads(table.to_json(orient="records"))
    path.write_text(json.dumps({"provenance": table.attrs["provenance"], "rows": rows}, indent=1) + "\n")


def check_table_path(path: str | PathLike) -> Path:
    """``path``, if a table can be written there; ValueError or FileNotFoundError otherwise."""
    path = Path(path)
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"cannot write a table as {path.name!r}: use a name ending in .csv or .json")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    return path
