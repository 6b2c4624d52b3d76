"""The share of tasks that a model solves exactly under a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dlm_lens.denoising import denoise
from dlm_lens.measure.speed import uninterrupted
from dlm_lens.measure.tasks.infilling import InfillingItem, infill
from dlm_lens.measure.tasks.retrieval import TaskItem, correct
from dlm_lens.progress import Bar, Progress

if TYPE_CHECKING:
    from dlm_lens.models import DLM
    from dlm_lens.policies import Policy
    from dlm_lens.samplers import Sampler


def accuracy(
    dlm: DLM,
    items: Sequence[TaskItem | InfillingItem],
    *,
    policy: Policy | None = None,
    sampler: Sampler | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    progress: bool | Progress = True,
) -> float:
    """Share of ``items``, 0-1, that the model answers or fills exactly under ``policy``.

    Questions are denoised in batches of ``batch_size``; ``sampler``, ``steps`` and ``seed`` as in
    :func:`dlm_lens.denoise`, by default one step per generated token. Holes are filled by :func:`infill`, which tells
    more than this share. A function as ``progress`` is told after every step, as by :func:`denoise`, how many of a kind
    of task are done.
    """
    if not items:
        raise ValueError("accuracy needs at least one task item")
    how: dict[str, Any] = {
        "policy": policy,
        "sampler": sampler,
        "steps": steps,
        "seed": seed,
        "batch_size": batch_size,
        "progress": progress,
    }
    questions = [item for item in items if isinstance(item, TaskItem)]
    holes = [item for item in items if isinstance(item, InfillingItem)]
    if len(questions) + len(holes) < len(items):
        kinds = sorted({type(item).__name__ for item in items})
        raise TypeError(f"task items come from retrieval() or infilling(); these are {', '.join(kinds)}")
    right = _answered(dlm, questions, **how)
    if holes:
        right += int(infill(dlm, holes, **how)["exact"].sum())
    return right / len(items)


def _answered(
    dlm: DLM,
    questions: Sequence[TaskItem],
    *,
    steps: int | None,
    batch_size: int,
    progress: bool | Progress,
    **how: Any,
) -> int:
    """How many questions are answered exactly."""
    right = 0
    by_length: dict[int, list[TaskItem]] = {}
    for item in questions:
        by_length.setdefault(item.gen_length, []).append(item)
    with Bar(progress, total=len(questions), desc="answering", unit="question", leave=False) as bar:
        for gen_length, group in by_length.items():
            for at in range(0, len(group), batch_size):
                batch = group[at : at + batch_size]
                prompts = [item.prompt for item in batch]
                told = bar.within(counts=False)
                out = denoise(dlm, prompts, gen_length=gen_length, steps=steps, progress=told, **how)
                answers = uninterrupted(out).texts
                right += sum(correct(item, text) for item, text in zip(batch, answers, strict=True))
                bar.update(len(batch))
    return right
