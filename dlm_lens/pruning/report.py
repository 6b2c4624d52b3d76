"""What pruning did to each layer, to be read and to be computed with."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from os import PathLike
from typing import Any

import pandas as pd

from dlm_lens.measure.tables import check_table_path


@dataclass(frozen=True, repr=False)
class PruningReport:
    """What pruning did to a model.

    Attributes
    ----------
    label : the method and how much, such as ``"sink-aware Wanda 2:4"``.
    table : one row per layer: ``layer``; ``weights``, those of its matrices before; ``nonzero``, those left;
        ``sparsity`` = 1 − nonzero / weights; ``error``, Σ ‖f′(x) − f(x)‖² / Σ ‖f(x) − x‖² over the calibration tokens
        for the layer f and the pruned one f′, both fed with what the pruned model gives; ``discounted``, the mean of φ,
        NaN where no sinks were discounted. ``table.attrs["provenance"]`` says where it was computed.
    settings : the arguments, and fingerprints of weights and calibration.
    """

    label: str
    table: pd.DataFrame
    settings: dict[str, Any]

    @property
    def sparsity(self) -> float:
        """Share of the weights of all layers' matrices that is gone. Embeddings and head are never pruned."""
        return 1 - int(self.table["nonzero"].sum()) / int(self.table["weights"].sum())

    @property
    def error(self) -> float:
        """Mean of the layers' errors."""
        return float(self.table["error"].mean())

    def save(self, path: str | PathLike) -> None:
        """Write the table as CSV, or as JSON with label, settings and provenance, by the suffix of ``path``.

        Raises ``ValueError`` for another suffix, ``FileNotFoundError`` where there is no such folder.
        """
        path = check_table_path(path)
        if path.suffix == ".csv":
            self.table.to_csv(path, index=False)
            return
        facts = {"label": self.label, "settings": self.settings, "provenance": self.table.attrs["provenance"]}
        rows = json.loads(self.table.to_json(orient="records", double_precision=15))
        path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        return f"{self._headline()}\n{self._shown().to_string(index=False)}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self._headline())}</p>{self._shown().to_html(index=False, border=0)}"

    def _headline(self) -> str:
        worst = self.table.iloc[int(self.table["error"].argmax())]
        return (
            f"{self.label}: {100 * self.sparsity:.2f}% of {self.table['weights'].sum():,} weights gone in"
            f" {len(self.table)} layers; error {100 * self.error:.3g}% on average, {100 * worst['error']:.3g}% in layer"
            f" {worst['layer']:.0f}"
        )

    def _shown(self) -> pd.DataFrame:
        """The table to read, in percent."""
        return pd.DataFrame(
            {
                "layer": self.table["layer"],
                "sparsity %": (100 * self.table["sparsity"]).round(2),
                "error %": (100 * self.table["error"]).map("{:.3g}".format),
                "φ %": (100 * self.table["discounted"]).round(2),
            }
        ).dropna(axis="columns", how="all")
