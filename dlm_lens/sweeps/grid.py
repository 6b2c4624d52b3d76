"""The grid of a sweep, and the cells it is cut into."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dlm_lens.measure.lineup import labels_of, lineup_of, prompt_sets, sparsity_of
from dlm_lens.measure.rounds import fingerprint, weights_fingerprint
from dlm_lens.models import DLM
from dlm_lens.models.load import checkpoint_folder, dtype_of
from dlm_lens.policies import Policy
from dlm_lens.policy_names import at_sparsity
from dlm_lens.recording.base import Statistic
from dlm_lens.samplers import Sampler

if TYPE_CHECKING:
    from dlm_lens.measure.tasks import InfillingItem, TaskItem

# Of each file of weights so many pieces of so many bytes enter the fingerprint of a checkpoint.
_PIECES, _PIECE = 64, 64
# Arguments of dl.load that are not for Grid(load=…), and where they are given.
_SAID_ELSEWHERE = {"device": "sweep(device=…)", "dtype": "Grid(dtype=…)", "progress": "sweep(progress=…)"}


@dataclass(frozen=True)
class Grid:
    """What :func:`dlm_lens.sweep` measures: every policy × budget × prompt set × seed × length × number of steps.

    Parameters
    ----------
    model : a name, folder or hub id for :func:`dlm_lens.load`, which a cluster needs, or a loaded :class:`DLM`
    policies : :class:`Dense` is added where it is missing, as by :func:`dlm_lens.compare`
    prompts : one prompt set, or several by name. A set is what :func:`dlm_lens.denoise` takes, or a function that makes
        it from a seed
    sparsity : shares of the keys left out, 0-1. Each policy is measured at each, whatever it calls its budget; one that
        saves something else than keys stays as it is. None leaves all as they are
    seeds : a cell has one: for its samplers and random policies, its prompts and its tasks
    gen_length, steps : one or several; as many steps as tokens by default
    sampler : for all; by default the policy's own or the model's
    tasks : with known answers, from :func:`dlm_lens.tasks.retrieval` or :func:`dlm_lens.tasks.infilling`, or a function
        that makes them from a seed; or a dict of those by prompt set, where each has its own
    control : add :class:`RandomColumns` at the sparsity of every sparse policy
    capture : keep a trace of each cell, with the default statistics of :func:`dlm_lens.capture` or those listed here
    dtype : of the weights, as for :func:`dlm_lens.load`
    load : further arguments of :func:`dlm_lens.load`, such as ``{"max_length": 65536}``

    Raises ``TypeError`` or ``ValueError`` for what cannot be a grid. What a policy or sampler cannot do at some length
    shows when its cell is measured.
    """

    model: DLM | str | os.PathLike
    policies: Sequence[Policy]
    prompts: Any = field(repr=False)
    sparsity: Sequence[float] | float | None = None
    seeds: Iterable[int] | int = (0,)
    gen_length: Sequence[int] | int = 64
    steps: Sequence[int] | int | None = None
    sampler: Sampler | None = None
    tasks: Any = field(default=None, repr=False)
    control: bool = True
    capture: bool | Sequence[Statistic] = False
    dtype: torch.dtype | str | None = None
    load: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, DLM | str | os.PathLike):
            raise TypeError(f"model={self.model!r}: give a name, a folder, a hub id or a loaded model")
        if self.dtype is not None:
            object.__setattr__(self, "dtype", dtype_of(self.dtype))
        if own := sorted(_SAID_ELSEWHERE.keys() & self.load.keys()):
            raise ValueError(
                f"load={dict(self.load)!r} holds {own[0]!r}; say that by {_SAID_ELSEWHERE[own[0]]}"
            )
        if isinstance(self.model, DLM) and self.dtype not in (None, self.model.dtype):
            raise ValueError(f"dtype={self.dtype} asked for, but the model is loaded in {self.model.dtype}")
        if isinstance(self.model, DLM) and self.load:
            raise ValueError(f"load={dict(self.load)!r} asked for, but the model is loaded")
        # Iterators would be used up by the first look.
        for name in ("seeds", "gen_length", "steps"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        object.__setattr__(self, "policies", tuple(_at_budgets(self.policies, self.sparsity)))
        sets = prompt_sets(self.prompts)
        object.__setattr__(self, "prompts", sets)
        if isinstance(self.tasks, Mapping) and (unknown := set(self.tasks) - set(sets)):
            raise ValueError(
                f"tasks for unknown prompt sets {sorted(unknown)}; there are {', '.join(map(repr, sets))}"
            )

    def cells(self) -> list[Cell]:
        """All cells, policies first, with what their prompts and tasks are at their seed."""
        lineup = lineup_of(self.policies, control=self._control(), flash2=False)
        weights, shapes = self._weights(), list(self._shapes())
        return [
            Cell(
                model=self._model_name(),
                weights=weights,
                dtype=None if self.dtype is None else str(self.dtype).removeprefix("torch."),
                load=tuple(sorted(self.load.items())),
                policy=policy,
                label=label,
                prompts=name,
                prompt=prompt,
                tasks=tasks,
                seed=seed,
                gen_length=gen_length,
                steps=steps,
                sampler=self.sampler,
                trace=bool(self.capture),
                statistics=None if isinstance(self.capture, bool) else tuple(self.capture),
            )
            for name, seed, prompt, tasks in self._asked()
            for gen_length, steps in shapes
            for policy, label in zip(lineup, labels_of(lineup), strict=True)
        ]

    def _control(self) -> bool:
        return self.control and not (isinstance(self.model, DLM) and self.model.spec.causal)

    def _model_name(self) -> str:
        return self.model.spec.name if isinstance(self.model, DLM) else os.fspath(self.model)

    def _weights(self) -> str:
        if isinstance(self.model, DLM):
            return fingerprint(weights_fingerprint(self.model), asdict(self.model.spec), self.model.dtype)
        return checkpoint_fingerprint(os.fspath(self.model))

    def _shapes(self) -> Iterator[tuple[int, int]]:
        for gen_length in self.gen_length:  # type: ignore[union-attr]
            for steps in self.steps or (gen_length,):  # type: ignore[union-attr]
                yield gen_length, steps

    def _asked(self) -> Iterator[tuple[str, int, Any, tuple]]:
        """Prompt set, seed, and the prompt and tasks that go with them."""
        for name, prompt in self.prompts.items():
            tasks = self.tasks.get(name) if isinstance(self.tasks, Mapping) else self.tasks
            for seed in self.seeds:  # type: ignore[union-attr]
                yield name, seed, _plain(_at_seed(prompt, seed)), tuple(_at_seed(tasks, seed) or ())


@dataclass(frozen=True)
class Cell:
    """One policy with its budget on one prompt set with one seed: what is measured, kept and counted once.

    ``prompt`` is plain text, messages or token ids in lists, ``steps`` are those asked for. Everything travels to a
    worker but the model, of which ``model`` and ``weights`` say which it must be.
    """

    model: str
    weights: str
    dtype: str | None
    policy: Policy
    label: str
    prompts: str
    prompt: Any = field(repr=False)
    tasks: tuple[TaskItem | InfillingItem, ...] = field(repr=False)
    seed: int = 0
    gen_length: int = 64
    steps: int = 64
    sampler: Sampler | None = None
    trace: bool = False
    statistics: tuple[Statistic, ...] | None = None
    load: tuple[tuple[str, Any], ...] = ()

    @cached_property
    def key(self) -> str:
        """A digest of all that decides the measurement, whatever model and prompt set are called."""
        policy = f"{type(self.policy).__module__}.{type(self.policy).__qualname__}"
        return fingerprint(
            self.weights, self.dtype, self.load, policy, self.policy, json.dumps(self.prompt), self.seed,
            self.gen_length, self.steps, self.sampler, self.trace, self.statistics,
            *(value for item in self.tasks for value in vars(item).values()),
        )  # fmt: skip

    @property
    def coordinates(self) -> dict[str, Any]:
        """Where in the grid it lies, ready for JSON."""
        return {
            "key": self.key,
            "policy": self.label,
            "parameters": repr(self.policy),
            "sparsity": sparsity_of(self.policy),
            "prompts": self.prompts,
            "seed": self.seed,
            "gen_length": self.gen_length,
            "planned_steps": self.steps,
            "sampler": None if self.sampler is None else repr(self.sampler),
            "model": self.model,
        }

    def __str__(self) -> str:
        return f"{self.prompts}, seed {self.seed}: {self.label}"


def checkpoint_fingerprint(name_or_path: str) -> str:
    """A digest of a checkpoint without loading it: its small files, and samples of its weights' bytes.

    Copies of a folder have the same; another tokenizer, another shape or weights trained further have another.
    """
    with checkpoint_folder(name_or_path) as folder:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".jinja"))
        weights = sorted(folder.glob("*.safetensors"))
        return fingerprint(
            *(part for path in files for part in (path.name, path.read_bytes())),
            *(part for path in weights for part in (path.name, path.stat().st_size, _samples(path))),
        )


def _samples(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        found = []
        for at in np.linspace(0, max(0, size - _PIECE), _PIECES, dtype=np.int64):
            file.seek(int(at))
            found.append(file.read(_PIECE))
    return b"".join(found)


def _at_budgets(policies: Any, sparsity: Sequence[float] | float | None) -> Iterator[Policy]:
    for policy in [policies] if isinstance(policies, Policy) else policies:
        # What is no policy is refused by name when the line-up is made.
        if sparsity is None or not isinstance(policy, Policy):
            yield policy
        else:
            shares = [sparsity] if isinstance(sparsity, int | float) else sparsity
            yield from dict.fromkeys(at_sparsity(policy, share) for share in shares)


def _numbers(name: str, value: Any) -> tuple[int, ...] | None:
    if value is None and name == "steps":
        return None
    numbers = (value,) if isinstance(value, int) else tuple(dict.fromkeys(value))
    if not numbers:
        raise ValueError(f"{name} holds nothing; expected at least one number")
    for number in numbers:
        if not isinstance(number, int | np.integer):
            raise TypeError(f"{name} holds {number!r}, a {type(number).__name__}; expected ints")
    return tuple(int(number) for number in numbers)


def _at_seed(value: Any, seed: int) -> Any:
    return value(seed) if callable(value) else value


def _plain(prompt: Any) -> Any:
    """Texts, messages and token ids as JSON holds them."""
    if isinstance(prompt, torch.Tensor | np.ndarray):
        return prompt.tolist()
    if isinstance(prompt, Mapping):
        return {str(name): _plain(value) for name, value in prompt.items()}
    if isinstance(prompt, list | tuple):
        return [_plain(part) for part in prompt]
    if isinstance(prompt, str | int):
        return prompt
    raise TypeError(
        f"prompts holds {prompt!r}, a {type(prompt).__name__}; expected text, messages or token ids"
    )
