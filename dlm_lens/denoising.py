"""The denoising loop: ask the policy for a plan, run the model once, let the sampler commit, repeat."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from dlm_lens.attention import Observer, StepContext
from dlm_lens.errors import DlmLensError
from dlm_lens.policies import Dense, Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.samplers import Candidates, DreamSampler, LeftToRight, LowConfidence, Sampler

if TYPE_CHECKING:
    from dlm_lens.models import DLM, Prompt, Spec

UNDECIDED = -2
"""``committed_at`` of generated positions that no finished step has decided; prompt and padding hold -1."""


class StepRecorder(Observer, Protocol):
    """What :func:`denoise` tells a recorder. With guidance, ``observe`` gets 2B rows, the guided first."""

    def begin_step(self, step: int, tokens: Tensor, plan: StepPlan) -> None:
        """Before the forward pass; ``tokens`` LongTensor [B, L] is the state that enters the step."""

    def end_step(
        self, step: int, confidence: Tensor, committed: Tensor, kind: str, ms: float, run: PolicyRun
    ) -> None:
        """After tokens were chosen: ``confidence`` float32 [B, L], the probability of the argmax (NaN where
        no logits were made), ``committed`` bool [B, L], and the milliseconds of the step."""


@dataclass(repr=False)
class Denoised:
    """A finished (or interrupted) denoising run.

    ``tokens`` LongTensor [B, L] with left padding up to ``start`` [B], then the prompt, then from
    ``prompt_length`` on the generated part, decoded in ``texts``. ``committed_at`` int32 [B, L] is the step
    that decided a position (-1 prompt and padding, -2 never decided). ``timings`` has one row per finished
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
    progress: bool = True,
) -> Denoised:
    """Generate ``gen_length`` tokens after ``prompt`` by denoising, attending as ``policy`` says.

    ``prompt`` is a string, a list of strings (a batch, left-padded; padding is never attended), chat
    messages or a token tensor. ``steps`` defaults to ``gen_length``, ``policy`` to :class:`Dense`, and
    ``sampler`` to the one the model was published with: :class:`LowConfidence` in blocks of at most 32 for
    LLaDA, :class:`DreamSampler` for Dream, :class:`LeftToRight` for autoregressive models, which go through
    the same loop.

    ``cfg_scale`` s > 0 guides by ``uncond + (s + 1) (cond − uncond)``, where the unconditional pass sees
    the prompt masked; both passes are one batch. ``seed`` starts the run's own random generator.
    ``recorder`` is shown every layer's ``q, k`` (:func:`capture` passes one). ``progress=False`` hides the
    bar.

    All steps are run even if an end-of-sequence token appears; only :class:`Threshold` stops when nothing
    is masked any more. Ctrl-C returns the steps finished so far with ``interrupted=True``.

    Raises ValueError or TypeError before the first step for arguments that cannot work together, and
    :class:`DlmLensError` naming the step if the model returns NaN.
    """
    steps = gen_length if steps is None else steps
    _check_positive(gen_length=gen_length, steps=steps)
    policy = Dense() if policy is None else policy
    sampler = default_sampler(dlm.spec, gen_length) if sampler is None else sampler
    _check_types(policy, sampler)
    sampler.check(gen_length, steps)
    _check_model(dlm.spec, sampler, cfg_scale)
    encoded = dlm.encode(prompt)
    _check_fits(dlm.spec, encoded, gen_length)

    loop = _begin(dlm, encoded, gen_length, steps, policy, sampler, cfg_scale, seed, recorder, history)
    interrupted = False
    with tqdm(total=steps, desc=policy.label, unit="step", disable=not progress) as bar, torch.no_grad():
        try:
            for step in range(steps):
                loop.advance(step)
                bar.update()
                if sampler.ends_early and not loop.open().any():
                    break
        except KeyboardInterrupt:
            interrupted = True
    return Denoised(
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


@dataclass
class _Loop:
    """The state of a run between two steps.

    ``start`` is None when nothing is padded; ``blank`` is the token that stands where nothing is decided yet.
    """

    dlm: DLM
    sampler: Sampler
    steps: int
    cfg_scale: float
    recorder: StepRecorder | None
    run: PolicyRun
    generator: torch.Generator
    tokens: Tensor
    blank: int
    start: Tensor | None
    prompt_length: int
    committed_at: Tensor
    keep_states: bool
    rows: list[tuple[int, str, float, int]] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def open(self) -> Tensor:
        """bool [B, n]: the positions of the generation region that are still to be decided."""
        if self.sampler.causal:
            return self.committed_at[:, self.prompt_length :] == UNDECIDED
        return self.tokens[:, self.prompt_length :].eq(self.blank)

    def history(self) -> Tensor:
        """LongTensor [T, B, L] on the CPU: the states that entered the finished steps."""
        return torch.stack(self.states) if self.states else self.tokens.cpu()[None][:0]

    def advance(self, step: int) -> None:
        """Run one step. Nothing of the loop's state changes before the step is complete."""
        entering, gen_length = self.tokens, self.tokens.shape[1] - self.prompt_length
        began = self._clock()
        plan = self.run.plan(step, entering)
        if self.recorder is not None:
            self.recorder.begin_step(step, entering, plan)
        positions = self.sampler.positions(step, gen_length)
        logits = self._logits(plan, positions)
        if logits.isnan().any():
            raise DlmLensError(
                f"step {step} of {self.steps}: the model returned NaN logits; check its weights and dtype"
                f" ({self.dlm.dtype}), and whether dense attention does the same"
            )
        chosen = self.sampler.commit(Candidates(step, self.steps, self.open(), logits, self.generator))
        committed = torch.zeros_like(entering, dtype=torch.bool)
        committed[:, self.prompt_length :] = chosen.where
        tokens = entering.clone()
        tokens[:, self.prompt_length :] = torch.where(
            chosen.where, chosen.tokens, tokens[:, self.prompt_length :]
        )
        committed_at = self.committed_at.masked_fill(committed, step)
        ms = (self._clock() - began) * 1000

        if self.recorder is not None:
            confidence = self._confidence(logits, positions)
            self.recorder.end_step(step, confidence, committed, plan.kind, ms, self.run)
        if self.keep_states:
            self.states.append(entering.cpu())
        self.rows.append((step, plan.kind, ms, int(committed.sum())))
        self.tokens, self.committed_at = tokens, committed_at

    def _logits(self, plan: StepPlan, positions: range) -> Tensor:
        """Logits [B, len(positions), V] of the generation region's ``positions``, guided if asked for."""
        keep = range(self.prompt_length + positions.start, self.prompt_length + positions.stop)
        tokens, start = self.tokens, self.start
        if self.cfg_scale:
            tokens = torch.cat([tokens, self._without_prompt()])
            start = None if start is None else start.repeat(2)
        context = StepContext(plan.step, plan, self.run, self.recorder, start, self.sampler.causal)
        logits = self.dlm.logits(tokens, start=start, keep=keep, context=context)
        if not self.cfg_scale:
            return logits
        conditional, unconditional = logits.chunk(2)
        return unconditional + (self.cfg_scale + 1) * (conditional - unconditional)

    def _without_prompt(self) -> Tensor:
        """The state with its prompt masked, for the unconditional pass; padding stays padding."""
        position = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        prompt = position < self.prompt_length
        if self.start is not None:
            prompt = prompt & (position >= self.start[:, None])
        return torch.where(prompt, self.blank, self.tokens)

    def _confidence(self, logits: Tensor, positions: range) -> Tensor:
        confidence = torch.full(self.tokens.shape, torch.nan, device=logits.device)
        region = confidence[:, self.prompt_length :]
        region[:, positions.start : positions.stop] = (logits.amax(-1) - logits.float().logsumexp(-1)).exp()
        return confidence

    def _clock(self) -> float:
        if self.tokens.is_cuda:
            torch.cuda.synchronize(self.tokens.device)
        return perf_counter()


def _begin(
    dlm: DLM,
    prompt: Prompt,
    gen_length: int,
    steps: int,
    policy: Policy,
    sampler: Sampler,
    cfg_scale: float,
    seed: int,
    recorder: StepRecorder | None,
    history: bool,
) -> _Loop:
    batch, prompt_length = prompt.tokens.shape
    device = dlm.device
    # What an autoregressive model has yet to write lies to the right of all it attends to: any token will do.
    blank = dlm.spec.pad_id if dlm.spec.mask_id is None else dlm.spec.mask_id
    undecided = torch.full((batch, gen_length), blank, device=device)
    tokens = torch.cat([prompt.tokens.to(device), undecided], dim=1)
    committed_at = torch.full(tokens.shape, -1, dtype=torch.int32, device=device)
    committed_at[:, prompt_length:] = UNDECIDED
    start = prompt.start.to(device) if prompt.start.any() else None
    passes = 2 if cfg_scale else 1
    info = RunInfo(
        spec=dlm.spec,
        prompt_length=prompt_length,
        gen_length=gen_length,
        steps=steps,
        batch=batch * passes,
        start=None if start is None else start.repeat(passes),
        device=device,
        seed=seed,
    )
    generator = torch.Generator(device).manual_seed(seed)
    return _Loop(
        dlm=dlm,
        sampler=sampler,
        steps=steps,
        cfg_scale=cfg_scale,
        recorder=recorder,
        run=policy.start(info),
        generator=generator,
        tokens=tokens,
        blank=blank,
        start=start,
        prompt_length=prompt_length,
        committed_at=committed_at,
        keep_states=history,
    )


def default_sampler(spec: Spec, gen_length: int) -> Sampler:
    """The sampler that models of this family were published with, in blocks of at most 32."""
    _check_positive(gen_length=gen_length)
    if spec.causal:
        return LeftToRight()
    if spec.family == "dream":
        return DreamSampler()
    return LowConfidence(block_length=min(32, gen_length))


def _check_types(policy: Policy, sampler: Sampler) -> None:
    if not isinstance(policy, Policy):
        raise TypeError(f"policy={policy!r} is a {type(policy).__name__}; expected a policy such as Dense()")
    if not isinstance(sampler, Sampler):
        raise TypeError(
            f"sampler={sampler!r} is a {type(sampler).__name__}; expected a sampler such as LowConfidence(),"
            " Threshold(), DreamSampler() or LeftToRight()"
        )


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
            f"a prompt of {length} tokens and gen_length={gen_length} exceed the {spec.max_length} positions"
            f" of {spec.name!r}; {advice}"
        )
