"""One trace, or two side by side, as the browser gets them: a manifest and a payload."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dlm_lens.explorer.data import Packed, pack
from dlm_lens.trace import Trace


@dataclass(frozen=True)
class Bundle:
    """``title`` of the whole, and the packed traces, the first of which leads."""

    title: str
    packs: tuple[Packed, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of any of the traces."""
        return tuple(dict.fromkeys(note for packed in self.packs for note in packed.manifest["notes"]))

    @cached_property
    def manifest_json(self) -> str:
        """The traces' manifests and the sizes of their payloads, which follow each other, as JSON."""
        manifest = {
            "title": self.title,
            "traces": [packed.manifest for packed in self.packs],
            "sizes": [len(packed.payload) for packed in self.packs],
        }
        # A lone surrogate, which a broken tokenizer could bring, has no UTF-8 form: replaced.
        text = json.dumps(manifest, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8", "replace").decode("utf-8")

    @cached_property
    def payload(self) -> bytes:
        return b"".join(packed.payload for packed in self.packs)


def bundle(
    traces: Sequence[Trace],
    *,
    title: str | None = None,
    labels: Sequence[str] | None = None,
    max_bytes: int = 25_000_000,
    on_demand: bool = False,
    progress: bool = False,
) -> Bundle:
    """Pack traces, evenly sharing ``max_bytes``; see :func:`dlm_lens.explorer.data.pack`.

    ``labels`` name them; by default what tells them apart does, their model or their policy.
    """
    labels = default_labels(traces) if labels is None else labels
    packs = tuple(
        pack(trace, title=label, max_bytes=max_bytes // len(traces), on_demand=on_demand, progress=progress)
        for trace, label in zip(traces, labels, strict=True)
    )
    return Bundle(title or " against ".join(labels), packs)


def default_labels(traces: Sequence[Trace]) -> list[str]:
    """The traces' models; if those are the same their policies; if those too, a letter each besides."""
    models = [str(trace.attrs.get("model", "Trace")) for trace in traces]
    if len(traces) == 1 or len(set(models)) == len(traces):
        return models
    policies = [str(trace.attrs.get("policy", "unknown policy")) for trace in traces]
    if len(set(policies)) == len(traces):
        return policies
    return [f"{model} {letter}" for model, letter in zip(models, "AB", strict=True)]
