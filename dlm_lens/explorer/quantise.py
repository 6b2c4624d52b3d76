"""Arrays in one byte per value, and their packing into one buffer that the browser reads without copying.

A value is off by at most half a quantum. Logarithmic arrays (attention shares, which span many decades) have
quanta of constant *ratio*: ``x = lo · (hi / lo) ** (code / 255)``; what is below ``lo`` becomes ``lo``. Linear
ones have quanta of constant difference, ``x = lo + (hi − lo) · code / 254``, and code 255 for "no value".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

DECADES = 5  # a logarithmic array keeps five decades below its maximum: quanta of 4.6%, errors below 2.3%
_ALIGNMENT = 8
_DTYPES = {"uint8": "u1", "uint16": "u2", "uint32": "u4", "int32": "i4", "float32": "f4"}


@dataclass
class Extent:
    """The smallest positive and the largest of the non-negative shares seen so far."""

    smallest: float = np.inf
    largest: float = 0.0

    def include(self, values: np.ndarray) -> Extent:
        self.largest = max(self.largest, float(values.max(initial=0.0)))
        self.smallest = min(self.smallest, float(np.min(values, where=values > 0, initial=np.inf)))
        return self

    def log_scale(self) -> dict[str, Any]:
        """Scale from the smallest positive value, but at most five decades, to the largest."""
        hi = self.largest or 1.0
        return {"kind": "log", "lo": min(max(self.smallest, hi * 10.0**-DECADES), hi * 0.5), "hi": hi}


def encode(values: np.ndarray, scale: dict[str, Any]) -> np.ndarray:
    """Codes uint8 of the same shape as ``values``."""
    lo, hi = scale["lo"], scale["hi"]
    if scale["kind"] == "log":
        codes = np.clip(values, lo, hi)  # large: from here in place
        np.log(codes, out=codes)
        codes -= np.log(lo)
        codes *= 255 / np.log(hi / lo)
        return np.rint(codes, out=codes).astype(np.uint8)
    codes = np.rint(np.clip((values - lo) / (hi - lo), 0, 1) * 254)
    return np.where(np.isnan(values), 255, codes).astype(np.uint8)


def decode(codes: np.ndarray, scale: dict[str, Any]) -> np.ndarray:
    """Values float64 that the codes stand for; what the browser computes."""
    lo, hi = scale["lo"], scale["hi"]
    if scale["kind"] == "log":
        return lo * (hi / lo) ** (codes / 255)
    return np.where(codes == 255, np.nan, lo + (hi - lo) * codes / 254)


@dataclass
class Buffer:
    """Arrays laid one after another, each at a multiple of eight bytes, and what lies where."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    arrays: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(
        self, name: str, values: np.ndarray, scale: dict[str, Any] | None = None, along: int | None = None
    ) -> None:
        """Append ``values``; with a scale they are encoded to uint8 first.

        ``along`` is the axis of the steps in a uint8 array: what is stored are differences modulo 256 between
        neighbouring steps, which are mostly small, so that the buffer compresses to half the size.
        """
        stored = np.ascontiguousarray(values if scale is None else encode(values, scale))
        entry: dict[str, Any] = {
            "dtype": _DTYPES[stored.dtype.name],
            "shape": list(stored.shape),
            "offset": self.size,
        }
        if along is not None:
            stored = np.diff(stored, axis=along, prepend=np.uint8(0))
            entry["along"] = along
        self.arrays[name] = entry | ({"scale": scale} if scale else {})
        data = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        data += b"\0" * (-len(data) % _ALIGNMENT)
        self.parts.append(data)
        self.size += len(data)

    def add_bits(self, name: str, values: np.ndarray) -> None:
        """Append a boolean array as bits; each row of the last axis starts at a byte."""
        self.add(name, np.packbits(values, axis=-1))

    def tobytes(self) -> bytes:
        return b"".join(self.parts)
