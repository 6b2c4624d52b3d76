"""Means over prompts and their standard errors, for plots of tables that have a ``prompt`` column."""

from __future__ import annotations

import pandas as pd


def over_prompts(table: pd.DataFrame, by: list[str], value: str, weight: str | None = None) -> pd.DataFrame:
    """``mean`` and ``se`` of ``value`` over prompts, for every group of the columns ``by``, sorted by them.

    The mean of each prompt comes first, weighted by the column ``weight`` if one is named, so that every prompt counts
    once; ``se`` is the standard error over prompts, NaN for a single one.
    """
    weights = pd.Series(1.0, index=table.index) if weight is None else table[weight].astype(float)
    keys = [table[name] for name in (*by, "prompt")]
    prompts = (table[value] * weights).groupby(keys).sum() / weights.groupby(keys).sum()
    return prompts.groupby(level=list(range(len(by)))).agg(["mean", "sem"]).rename(columns={"sem": "se"})
