"""Amounts of memory as people write them."""

import re

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(size: int | str) -> int:
    """Bytes from a number or a text such as ``"2 GB"`` (10⁹) or ``"512 MiB"`` (2²⁰)."""
    if isinstance(size, int) and not isinstance(size, bool):
        value = float(size)
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)\s*", str(size).upper())
        if not match or match[2] not in _UNITS:
            raise ValueError(
                f"{size!r} is no amount of memory; expected bytes or a text such as '2 GB' or '512 MiB'"
            )
        value = float(match[1]) * _UNITS[match[2]]
    if value <= 0:
        raise ValueError(f"an amount of memory must be positive, got {size!r}")
    return int(value)


def format_bytes(size: int) -> str:
    """The size with a decimal unit: ``format_bytes(2_100_000) == "2.1 MB"``."""
    for unit in ("TB", "GB", "MB", "KB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.1f} {unit}"
    return f"{size} B"
