"""What quality the policies leave on the bundled model, against the speed-up that their operations allow.

Reads ``figures/data/policies-*.json``, which ``python -m dlm_lens.measure.policy_table`` writes, a table of a GPU if
there is one, or the file given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from common import run, stored
from matplotlib.figure import Figure

from dlm_lens.plots import pareto
from dlm_lens.plots.pareto import pareto_front
from dlm_lens.plots.policy_styles import CONTROL

COLUMNS = [
    "policy", "context", "density", "speedup", "amdahl_bound", "kl", "token_agreement", "retained_mass", "accuracy",
]  # fmt: skip


def measure(*files: Path) -> pd.DataFrame:
    """A row per policy and context, medians over repetitions; ``questions`` is how many ``accuracy`` rests on."""
    (source,) = files or stored("policies-nvidia-h200.json", "policies-nvidia-*.json", "policies-*.json")[:1]
    found: dict[str, Any] = json.loads(source.read_text())
    rows = pd.DataFrame(found["rows"])
    about = found["provenance"]
    table = rows.reindex(columns=COLUMNS).astype({"speedup": float})
    table = table.groupby(["context", "policy"], sort=False).median().reset_index()[COLUMNS]
    items = about["items"]
    table["questions"] = [
        items[str(context)] if isinstance(items, dict) else items for context in table["context"]
    ]
    # Its caches are those of the same policy without a threshold, and so is its KL.
    table = table[~table["policy"].str.contains("τ")].reset_index(drop=True)
    table.attrs["provenance"] = about
    return table


def draw(table: pd.DataFrame) -> Figure:
    contexts = sorted(table["context"].unique())
    figure, axes = plt.subplots(
        2, len(contexts), figsize=(11, 7), layout="constrained", sharex=True, sharey="row", squeeze=False
    )
    for column, context in enumerate(contexts):
        here = table[table["context"] == context]
        for row, quality in enumerate(("kl", "accuracy")):
            ax = pareto(here, quality, speed="amdahl_bound", ax=axes[row, column])
            ax.set_title(
                f"{context:,} tokens" if row == 0 else "", loc="left", fontsize="medium", fontweight="bold"
            )
            ax.set_xlabel("bound on the speed-up, ×" if row else "")
            if column:
                ax.set_ylabel("")
        axes[1, column].set_ylim(-4, 104)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small")
    return figure


def caption(table: pd.DataFrame) -> str:
    about = table.attrs["provenance"]
    device = "a CPU" if about["device"] == "cpu" else about["device"]
    fewest, most = int(table["questions"].min()), int(table["questions"].max())
    control = table[table["policy"].str.startswith(CONTROL) & (table["density"] <= 0.5)]
    said = [
        f"Every policy on the bundled tiny-dlm, on {device}, at several budgets: quality against Amdahl's bound on the"
        " speed-up of the run, which counts operations and is not a measured time.",
        "Wide grey line: the Pareto front, without the oracle.",
        *(on_the_front(table, context) for context in sorted(table["context"].unique())),
        f"Random columns, the control, answer {control['accuracy'].mean():.0%} with half of the keys or fewer.",
        # The lower end of Wilson's 95% interval where all n of n are right.
        f"Questions per point: {fewest if fewest == most else f'{fewest} to {most}'}; where all are answered, the true"
        f" share is above {fewest / (fewest + 1.96**2):.0%} with 95% confidence.",
        "KL is a mean over all steps, of which in short runs many are dense or refresh steps.",
    ]
    return " ".join(said)


def on_the_front(table: pd.DataFrame, context: int) -> str:
    """Which policies are on both fronts at a context."""
    here = table[(table["context"] == context) & ~table["policy"].str.startswith("Oracle")]
    speed = here["amdahl_bound"].to_numpy()
    names = [
        ", ".join(here.loc[pareto_front(speed, here[quality].to_numpy(), more_is_better=more), "policy"])
        for quality, more in (("kl", False), ("accuracy", True))
    ]
    return f"At {context:,} tokens it holds, of KL: {names[0]}; of accuracy: {names[1]}."


if __name__ == "__main__":
    run(__file__, measure, draw, caption)
