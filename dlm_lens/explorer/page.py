"""The explorer as one HTML file that needs neither kernel nor network."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dlm_lens.explorer.bundle import Bundle, bundle
from dlm_lens.explorer.policy_choices import controls
from dlm_lens.explorer.source import page_script, page_styles
from dlm_lens.trace import Trace

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{styles}</style>
</head>
<body>
<main id="dl-host" data-settings="{settings}"><noscript>The explorer needs JavaScript.</noscript></main>
<script type="application/json" id="dl-manifest">{manifest}</script>
<script type="application/json" id="dl-policy">{policy}</script>
<script type="text/plain" id="dl-payload">{payload}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def json_in_html(text: str) -> str:
    """JSON that cannot end the script element it stands in, whatever its strings hold."""
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def page(
    trace: Trace,
    title: str | None = None,
    max_bytes: int = 25_000_000,
    *,
    against: Trace | None = None,
    labels: Sequence[str] | None = None,
    measured: Sequence[dict[str, Any]] = (),
    progress: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """The HTML text, of at most ``max_bytes`` UTF-8 bytes, of a trace, or of two side by side.

    ``settings``, by the trace's own numbers, say what it shows when it is opened; see :attr:`Explorer.settings`.
    It shows what the policy panel has ``measured``.

    What does not fit is left out as :func:`dlm_lens.explorer.data.pack` does, and the page says so.
    Raises ``ValueError`` if even the smallest reduction does not fit.
    """
    traces = [trace] if against is None else [trace, against]
    frame = len(page_script().encode()) + len(page_styles().encode()) + len(_PAGE)
    policy = {"controls": controls(trace, with_model=False), "measured": list(measured)}
    room = max_bytes - frame
    while room > 0:
        packed = bundle(traces, title=title, labels=labels, max_bytes=room * 3 // 4, progress=progress)
        text = _render(packed, settings or {}, json.dumps(policy, ensure_ascii=False, allow_nan=False))
        surplus = len(text.encode()) - max_bytes
        if surplus <= 0:
            return text
        room -= surplus + 3
    raise ValueError(f"max_bytes={max_bytes:,} is too small: the page alone takes {frame:,} bytes")


def _render(packed: Bundle, settings: Mapping[str, Any], policy: str) -> str:
    return _PAGE.format(
        title=html.escape(f"{packed.title} · dlm-lens"),
        styles=page_styles(),
        settings=html.escape(json.dumps(dict(settings), allow_nan=False), quote=True),
        manifest=json_in_html(packed.manifest_json),
        policy=json_in_html(policy),
        payload=base64.b64encode(packed.payload).decode(),
        script=page_script(),
    )
