"""The denoising loop: ask the policy for a plan, run the model once, let the sampler commit, repeat."""

from __future__ import annotations

import textwrap
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from dlm_lens.denoising_loop import Loop, StepRecorder
from dlm_lens.errors import OutOfMemoryError
from dlm_lens.memory import Demand, advice, release, room_for, run_estimate
from dlm_lens.policies import Dense, Policy
from dlm_lens.progress import Bar, Progress
from dlm_lens.samplers import DreamSampler, LeftToRight, LowConfidence, Sampler

if TYPE_CHECKING:
    from dlm_lens.models import DLM, Prompt, Spec


@dataclass(repr=False)
class Denoised:
    """A finished (or interrupted) denoising run.

    ``tokens`` LongTensor [B, L] with left padding up to ``start`` [B], then the prompt, then from
    ``prompt_length`` on the generated part, decoded in ``texts``. ``committed_at`` int32 [B, L] is the step
    that decided a position (-1 prompt and padding, -2 never decided or given up). ``timings`` has one row per finished
    step: step, kind, ms, committed (tokens, over the batch). ``history`` LongTensor [T, B, L], if asked
    for, holds the state that entered each step. All tensors are on the CPU.
    """

    tokens: Tensor
    start: Tensor
    prompt_length: int
    gen_length: int
    texts: list[str]
    committed_at: Tensor
    timings: pd.DataFrame
    history: Tensor | None
    spec: Spec
    policy: Policy
    sampler: Sampler
    seed: int
    interrupted: bool

    def ms_by_kind(self) -> pd.DataFrame:
        """Milliseconds per step of each kind: how many steps, their median, minimum, maximum and sum."""
        return self.timings.groupby("kind")["ms"].agg(["count", "median", "min", "max", "sum"])

    def __repr__(self) -> str:
        seconds = self.timings["ms"].sum() / 1000
        end = ", interrupted" if self.interrupted else ""
        head = (
            f"Denoised: {self.spec.name}, {self.policy.label}, {self.sampler}, seed {self.seed}\n"
            f"  {len(self.texts)} × ({self.prompt_length} + {self.gen_length} tokens), "
            f"{len(self.timings)} steps in {seconds:.2f} s{end}"
        )
        shown = [textwrap.shorten(text, 100, placeholder=" …") for text in self.texts[:4]]
        more = [f"  and {len(self.texts) - 4} more"] if len(self.texts) > 4 else []
        return "\n".join([head, *(f"  {text!r}" for text in shown), *more])


def denoise(
    dlm: DLM,
    prompt: Any,
    *,
    gen_length: int = 128,
    steps: int | None = None,
    policy: Policy | None = None,
    sampler: Sampler | None = None,
    cfg_scale: float = 0.0,
    seed: int = 0,
    history: bool = False,
    recorder: StepRecorder | None = None,
    progress: bool | Progress = True,
) -> Denoised:
    """Generate ``gen_length`` tokens after ``prompt`` by denoising, attending as ``policy`` says.

    ``prompt`` is a string, a list of strings (a batch, left-padded; padding is never attended), chat
    messages or a token tensor. ``steps`` defaults to ``gen_length``, ``policy`` to :class:`Dense`, and
    ``sampler`` to the one the model was published with: :class:`LowConfidence` in blocks of at most 32 for
    LLaDA, :class:`DreamSampler` for Dream, :class:`LeftToRight` for autoregressive models, which go through
    the same loop; a policy that is published with a sampler of its own brings it.

    ``cfg_scale`` s > 0 guides by ``uncond + (s + 1) (cond − uncond)``, where the unconditional pass sees
    the prompt masked; both passes are one batch. ``seed`` starts the run's own random generator.
    ``recorder`` is shown every layer's ``q, k`` (:func:`capture` passes one). ``progress=False`` hides the
    bar; a function takes its place: ``progress(done, total, what)`` is called after every step, and may raise
    ``KeyboardInterrupt`` to end the run there.

    A run ends after ``steps``, or as soon as nothing is masked any more; an end-of-text token alone does not end it,
    unless the policy gives up what follows. Ctrl-C returns the steps finished so far with ``interrupted=True``.

    Raises ValueError or TypeError before the first step for arguments that cannot work together, and
    :class:`DlmLensError` naming the step if the model returns NaN. On a GPU, :class:`MemoryBudgetError` before the
    first step if the run surely does not fit, with an estimate (:func:`dlm_lens.estimate`) and what to change; where
    it is only the MLP that is too large, that is computed in parts. Running out of memory midway is an
    :class:`OutOfMemoryError`, which holds the finished steps and leaves the model usable.
    """
    steps = gen_length if steps is None else steps
    _check_positive(gen_length=gen_length, steps=steps)
    policy = Dense() if policy is None else policy
    _check_type("policy", policy, Policy, "a policy such as Dense()")
    sampler = sampler_of(policy, dlm.spec, gen_length) if sampler is None else sampler
    _check_type(
        "sampler",
        sampler,
        Sampler,
        "a sampler such as LowConfidence(), Threshold(), DreamSampler() or LeftToRight()",
    )
    _check_model(dlm.spec, sampler, cfg_scale)
    sampler.check(gen_length, steps)
    encoded = dlm.encode(prompt)
    _check_fits(dlm.spec, encoded, gen_length)

    loop = Loop.begin(
        dlm,
        encoded,
        gen_length=gen_length,
        steps=steps,
        policy=policy,
        sampler=sampler,
        cfg_scale=cfg_scale,
        seed=seed,
        recorder=recorder,
        keep_states=history,
    )
    demand = Demand.of(
        dlm,
        rows=len(loop.tokens) * (2 if cfg_scale else 1),
        length=loop.tokens.shape[1],
        gen_length=gen_length,
        policy=policy,
        sampler=sampler,
        recorder=getattr(recorder, "device_bytes", 0),  # a recorder need not say
    )
    interrupted, short = False, None
    with (
        room_for(dlm, demand) as demand,
        Bar(progress, total=steps, desc=policy.label, unit="step") as bar,
        torch.no_grad(),
    ):
        try:
            for step in range(steps):
                loop.advance(step)
                bar.update()
                if not loop.open().any():
                    break
        except KeyboardInterrupt:
            interrupted = True
        except torch.OutOfMemoryError as error:
            interrupted, short = True, _let_go(error)
    done = Denoised(
        tokens=loop.tokens.cpu(),
        start=encoded.start.cpu(),
        prompt_length=loop.prompt_length,
        gen_length=gen_length,
        texts=dlm.decode(loop.tokens[:, loop.prompt_length :]),
        committed_at=loop.committed_at.cpu(),
        timings=pd.DataFrame(loop.rows, columns=["step", "kind", "ms", "committed"]),
        history=loop.history() if history else None,
        spec=dlm.spec,
        policy=policy,
        sampler=sampler,
        seed=seed,
        interrupted=interrupted,
    )
    if short is not None:
        del loop  # with all that the policy keeps
        release(dlm.device)
        raise _out_of_memory(dlm, demand, done, steps, short)
    return done


def _let_go(error: torch.OutOfMemoryError) -> str:
    """What the error says; the tensors in the frames that it went through are dropped."""
    traceback.clear_frames(error.__traceback__)
    return str(error).splitlines()[0]


def _out_of_memory(dlm: DLM, demand: Demand, done: Denoised, steps: int, said: str) -> OutOfMemoryError:
    needed, step = run_estimate(dlm, demand), len(done.timings)
    return OutOfMemoryError(
        f"out of memory in step {step} of {steps} ({said}). Finished before it: {step or 'no'} steps, which are in"
        " .result of this error, and in .trace if they were captured."
        f" Estimated before the run: {needed}\n{advice(needed)}",
        step=step,
        result=done,
    )


def sampler_of(policy: Policy, spec: Spec, gen_length: int) -> Sampler:
    """The sampler of a run in which none is asked for: the policy's own, or :func:`default_sampler`."""
    return policy.sampler or default_sampler(spec, gen_length)


def default_sampler(spec: Spec, gen_length: int) -> Sampler:
    """The sampler that models of this family were published with, in blocks of at most 32."""
    _check_positive(gen_length=gen_length)
    if spec.causal:
        return LeftToRight()
    if spec.family == "dream":
        return DreamSampler()
    return LowConfidence(block_length=min(32, gen_length))


def _check_type(name: str, value: Any, kind: type, expected: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; expected {expected}")


def _check_positive(**lengths: int) -> None:
    for name, value in lengths.items():
        if not isinstance(value, int):
            raise TypeError(f"{name}={value!r} is a {type(value).__name__}; expected an int")
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def _check_model(spec: Spec, sampler: Sampler, cfg_scale: float) -> None:
    if spec.causal and not sampler.causal:
        raise ValueError(
            f"{spec.name!r} is autoregressive; {sampler} needs a diffusion model, use LeftToRight()"
        )
    if sampler.causal and not spec.causal:
        raise ValueError(f"{spec.name!r} is a diffusion model; {sampler} needs an autoregressive one")
    if not spec.causal and spec.mask_id is None:
        raise ValueError(
            f"{spec.name!r} names no mask token, so there is nothing to denoise; set spec.mask_id"
        )
    if cfg_scale < 0:
        raise ValueError(f"cfg_scale={cfg_scale} must not be negative; 0 turns guidance off")
    if cfg_scale and spec.causal:
        raise ValueError(
            f"cfg_scale={cfg_scale} masks the prompt, but {spec.name!r} has no mask token to do so"
        )


def _check_fits(spec: Spec, prompt: Prompt, gen_length: int) -> None:
    length = prompt.tokens.shape[1]
    room = spec.max_length - length
    if gen_length > room:
        advice = f"generate at most {room} tokens or shorten the prompt" if room > 0 else "shorten it"
        raise ValueError(
            f"a prompt of {length} {'token' if length == 1 else 'tokens'} and gen_length={gen_length} exceed the"
            f" {spec.max_length} positions of {spec.name!r}; {advice}"
        )
