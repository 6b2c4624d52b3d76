"""Rows as a study of pruning keeps them, with a known effect of discounting sinks."""

from typing import Any

import numpy as np

BLOCKS = 20
AMOUNTS = ("0.5", "0.75", "2:4", "structured-0.3", "structured-0.5")


def study_rows(
    sinks: float = 0.0, random: float = 0.0, *, at_more: float = 1.0, seeds: int = 5, noise: float = 0.002
) -> list[dict[str, Any]]:
    """``sinks`` and ``random`` are the nats gained by either discount, times ``at_more`` where more is pruned; shares
    right do not depend on them."""
    rng = np.random.default_rng(0)
    pieces = rng.normal(size=BLOCKS)
    rows = [_row(None, "plain", "", 2.0, 0, 3.0 + 0.1 * pieces)]
    rows += [_row("magnitude", "plain", amount, 2.0, 0, 3.6 + 0.1 * pieces) for amount in AMOUNTS]
    for seed in range(seeds):
        drawn = rng.normal(scale=0.05)
        for method in ("wanda", "sparsegpt"):
            for amount in AMOUNTS:
                factor = at_more if amount in ("0.75", "structured-0.5") else 1.0
                for discount, gain in {"plain": 0.0, "sinks": sinks, "random": random}.items():
                    nats = 3.3 + drawn + 0.1 * pieces - factor * gain + rng.normal(scale=noise, size=BLOCKS)
                    rows.append(_row(method, discount, amount, 2.0, seed, nats))
                    if amount == "0.75" and discount != "plain":
                        rows.append(_row(method, discount, amount, 1.0, seed, nats))
    return rows


def _row(
    method: str | None, discount: str, amount: str, kappa: float, seed: int, nats: np.ndarray
) -> dict[str, Any]:
    shares = [0.5, 0.25] * (BLOCKS // 2)
    blocks = {"nats": nats.tolist(), "retrieval": shares, "infilling": shares, "infilling_tokens": shares}
    return {
        "method": method, "discount": discount, "amount": amount, "kappa": kappa, "seed": seed,
        "sparsity": 0.5 if method else 0.0, "error": 0.1, "discounted": None if discount == "plain" else 0.2 / kappa,
        "ppl": float(np.exp(nats.mean())), "by_block": blocks,
        **{name: float(np.mean(values)) for name, values in blocks.items()},
    }  # fmt: skip
