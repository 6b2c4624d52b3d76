"""Rows of a measurement, kept in a file from the first on: one that is cut off holds what there was time for."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from dlm_lens.whole_file import whole_file

Row = dict[str, Any]


@dataclass
class Session:
    """The rows, and the time that is left.

    ``options`` say where the file is (``out``, None for nowhere) and how many ``minutes`` there are. ``about`` is where
    it is measured and ``facts`` what is kept beside the rows. ``line`` says in a line what a row holds.
    """

    options: argparse.Namespace
    about: dict[str, Any]
    facts: Row
    line: Callable[[Row], str]
    rows: list[Row] = field(default_factory=list)
    began: float = field(default_factory=perf_counter)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(self.line(row), flush=True)
        self.keep()

    def keep(self) -> None:
        if self.options.out:
            found = {"provenance": self.about, **self.facts, "rows": self.rows}
            with whole_file(self.options.out) as new:
                new.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    @property
    def over(self) -> bool:
        return perf_counter() - self.began > 60 * self.options.minutes
