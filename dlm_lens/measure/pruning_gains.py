"""What discounting sinks is worth: differences of pruned models, calibration by calibration, and how sure they are.

The rows are those of :mod:`dlm_lens.measure.pruning_study`. Two errors are told apart. The interval of a gain is over
calibrations, for the text and the questions that were asked; ``asked_error`` is over what was asked, for the mean of
these calibrations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

Row = dict[str, Any]

DISCOUNTS = ("plain", "sinks", "random")
AMOUNTS = ("0.5", "0.75", "2:4", "structured-0.3", "structured-0.5")
# What is measured, and whether less of it is better.
MEASURES = {"nats": True, "retrieval": False, "infilling": False}
AGAINST = ("plain", "random")
_KAPPA = 2.0


def gains(rows: Sequence[Row], *, confidence: float = 0.95) -> pd.DataFrame:
    """How much better sink-aware pruning is than plain pruning and than the random control.

    Gains are positive where discounting sinks helps: nats per token of the control less those with sinks discounted, or
    the share right with sinks discounted less that of the control. Calibrations are paired by their seed; a seed that
    either lacks is left out.

    Returns a row per ``method``, ``amount``, ``kappa``, ``measure`` and ``against``: ``gain``, the mean over the
    ``seeds``; ``low`` and ``high``, Student's interval at ``confidence`` for one difference by itself, and ``p``,
    two-sided, of no difference, all three NaN with one seed; ``adjusted``, p after Holm's correction over all rows with
    the same ``against``, those of the default κ and of others apart; ``asked_error``, one standard error over the
    blocks of what was asked.
    """
    by_cell = {
        (row["method"], row["amount"], row["kappa"], row["discount"], row["seed"]): row for row in rows
    }
    found = []
    settings = dict.fromkeys(
        (row["method"], row["amount"], row["kappa"]) for row in rows if row["discount"] == "sinks"
    )
    for method, amount, kappa in settings:
        for measure, less in MEASURES.items():
            for against in AGAINST:
                pairs = []
                for row in rows:
                    # Plain pruning knows no κ.
                    other_kappa = _KAPPA if against == "plain" else kappa
                    other = by_cell.get((method, amount, other_kappa, against, row["seed"]))
                    same = (row["method"], row["amount"], row["kappa"]) == (method, amount, kappa)
                    if same and row["discount"] == "sinks" and other is not None:
                        pairs.append((row, other))
                if pairs:
                    values = _difference(pairs, measure, less)
                    found.append(
                        {
                            "method": method, "amount": amount, "kappa": kappa, "measure": measure, "against": against,
                            **interval([value.mean() for value in values], confidence),
                            "asked_error": _standard_error(np.mean(values, axis=0)),
                        }
                    )  # fmt: skip
    table = pd.DataFrame(found)
    if len(table):
        family = [table["against"], table["kappa"] == _KAPPA]
        table["adjusted"] = table.groupby(family)["p"].transform(holm)
    return table


def growth(
    rows: Sequence[Row], pairs: Sequence[tuple[str, str]], *, confidence: float = 0.95
) -> pd.DataFrame:
    """Whether sinks matter more where more is pruned: by how much the gain in nats at the second amount of each pair
    exceeds that at the first, paired by seed; with the default κ.

    Returns a row per ``method``, pair (``less``, ``more``) and ``against``, with the columns of :func:`interval`.
    """
    nats = {
        (row["method"], row["amount"], row["discount"], row["seed"]): row["nats"]
        for row in rows
        if row["kappa"] == _KAPPA
    }
    methods = dict.fromkeys(method for method, _, discount, _ in nats if discount == "sinks")
    seeds = sorted({seed for _, _, discount, seed in nats if discount == "sinks"})
    found = []
    for method in methods:
        for less, more in pairs:
            for against in AGAINST:
                own = [
                    [nats.get((method, amount, discount, seed), math.nan) for seed in seeds]
                    for amount in (more, less)
                    for discount in (against, "sinks")
                ]
                high, high_sinks, low, low_sinks = np.array(own)
                values = (high - high_sinks) - (low - low_sinks)
                if len(values := values[~np.isnan(values)]):
                    row = {"method": method, "less": less, "more": more, "against": against}
                    found.append(row | interval(values.tolist(), confidence))
    return pd.DataFrame(found)


def _difference(pairs: Sequence[tuple[Row, Row]], measure: str, less: bool) -> list[np.ndarray]:
    """By how much the first of each pair is better, block by block."""
    sign = -1.0 if less else 1.0
    return [
        sign * (np.array(ours["by_block"][measure]) - np.array(theirs["by_block"][measure]))
        for ours, theirs in pairs
    ]


def interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, float]:
    """Mean of paired differences, Student's interval ``low`` … ``high``, the two-sided ``p`` of none, and ``seeds``."""
    count, mean = len(values), float(np.mean(values))
    error = _standard_error(np.asarray(values))
    if count < 2:
        return {"gain": mean, "low": math.nan, "high": math.nan, "p": math.nan, "seeds": count}
    half = student_quantile(confidence, count - 1) * error
    p = 1.0 if mean == 0 else 0.0 if error == 0 else 1 - student_within(abs(mean) / error, count - 1)
    return {"gain": mean, "low": mean - half, "high": mean + half, "p": p, "seeds": count}


def student_within(t: float, degrees: int) -> float:
    """P(|T| < t) of Student's T with a whole number of degrees of freedom."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def student_quantile(confidence: float, degrees: int) -> float:
    """The t within which Student's |T| lies with a probability of ``confidence``."""
    low, high = 0.0, 1.0
    while student_within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, degrees) < confidence else (low, middle)
    return high


def holm(p: pd.Series) -> pd.Series:
    """Holm's adjusted p-values: below 5% only where a family of true nulls would have any such in 5% of all cases.

    NaN, where nothing was tested, stays NaN and is none of the family.
    """
    tested = p.dropna().sort_values()
    steps = [min(1.0, (len(tested) - rank) * value) for rank, value in enumerate(tested)]
    return pd.Series(np.maximum.accumulate(steps), tested.index, dtype=float).reindex(p.index)


def summary(rows: Sequence[Row]) -> pd.DataFrame:
    """A row per method, discount, amount and κ: means over seeds, and ``_sd``, standard deviations over seeds (NaN for
    one seed); ``_asked``, one standard error over the blocks of what was asked. ``method`` is "dense" for the model
    that is not pruned."""
    found = []
    table = pd.DataFrame(rows).assign(method=lambda t: t["method"].fillna("dense"))
    for key, own in table.groupby(["method", "amount", "kappa", "discount"], sort=False):
        line: Row = dict(zip(("method", "amount", "kappa", "discount"), key, strict=True))
        line["seeds"] = len(own)
        for name in (*MEASURES, "infilling_tokens", "ppl", "error", "sparsity", "discounted"):
            line[name] = own[name].astype(float).mean()
            line[f"{name}_sd"] = own[name].astype(float).std()
        for name in (*MEASURES, "infilling_tokens"):
            blocks = np.mean([row[name] for row in own["by_block"]], axis=0)
            line[f"{name}_asked"] = _standard_error(blocks)
        found.append(line)
    return pd.DataFrame(found)


def short_table(rows: Sequence[Row]) -> str:
    """The summary as text for a terminal: mean ± standard deviation over calibrations."""
    if not rows:
        return "nothing is measured yet"
    return formatted(summary(rows)).to_string(index=False)


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """A :func:`summary` to read: ``mean ± standard deviation over calibrations``, "–" where nothing can be. Magnitude
    with sinks discounted is such a hole: it looks at no activations."""
    shown = pd.DataFrame(
        {
            "method": table["method"],
            "amount": table["amount"],
            "discounted": table["discount"],
            "κ": [f"{kappa:g}" if discount != "plain" else "" for kappa, discount in _two(table)],
        }
    )
    for title, name, factor, digits in (
        ("perplexity", "ppl", 1, 2),
        ("retrieval %", "retrieval", 100, 1),
        ("infilling %", "infilling", 100, 1),
        ("layer error %", "error", 100, 2),
        ("sparsity %", "sparsity", 100, 2),
        ("mean φ %", "discounted", 100, 2),
    ):
        values = zip(factor * table[name], factor * table[f"{name}_sd"], strict=True)
        shown[title] = [_with_error(mean, error, digits) for mean, error in values]
    for amount in dict.fromkeys(table.loc[table["method"] == "magnitude", "amount"]):
        hole = dict.fromkeys(shown, "–") | {
            "method": "magnitude",
            "amount": amount,
            "discounted": "sinks",
            "κ": "",
        }
        at = int(((shown["method"] == "magnitude") & (shown["amount"] == amount)).to_numpy().argmax())
        shown = pd.concat([shown[: at + 1], pd.DataFrame([hole]), shown[at + 1 :]], ignore_index=True)
    return shown


def _two(table: pd.DataFrame) -> zip[tuple[float, str]]:
    return zip(table["kappa"], table["discount"], strict=True)


def _with_error(mean: float, error: float, digits: int) -> str:
    if math.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def _standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
