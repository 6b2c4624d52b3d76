"""One step of denoising after the other: what :func:`dlm_lens.denoise` does between asking and answering."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dlm_lens.attention import Observer, StepContext
from dlm_lens.errors import DlmLensError
from dlm_lens.policies import Policy, PolicyRun, RunInfo, StepPlan
from dlm_lens.samplers import Candidates, Sampler
from dlm_lens.step_graphs import StepGraphs

if TYPE_CHECKING:
    from dlm_lens.models import DLM, Prompt

UNDECIDED = -2
"""``committed_at`` of generated positions that no finished step has decided; prompt and padding hold -1."""


class StepRecorder(Observer, Protocol):
    """What a loop tells a recorder. With guidance, ``observe`` gets 2B rows, the guided first."""

    def begin_step(self, step: int, tokens: Tensor, plan: StepPlan) -> None:
        """Before the forward pass; ``tokens`` LongTensor [B, L] is the state that enters the step."""

    def end_step(
        self, step: int, confidence: Tensor, committed: Tensor, kind: str, ms: float, run: PolicyRun
    ) -> None:
        """After tokens were chosen: ``confidence`` float32 [B, L], the probability of the argmax (NaN where
        no logits were made), ``committed`` bool [B, L], and the milliseconds of the step."""


@dataclass
class Loop:
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
    graphs: StepGraphs
    devices: tuple[torch.device, ...]
    rows: list[tuple[int, str, float, int]] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        dlm: DLM,
        prompt: Prompt,
        *,
        gen_length: int,
        steps: int,
        policy: Policy,
        sampler: Sampler,
        cfg_scale: float,
        seed: int,
        recorder: StepRecorder | None,
        keep_states: bool,
    ) -> Loop:
        """The state before the first step."""
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
        return cls(
            dlm=dlm,
            sampler=sampler,
            steps=steps,
            cfg_scale=cfg_scale,
            recorder=recorder,
            run=policy.start(info),
            generator=torch.Generator(device).manual_seed(seed),
            tokens=tokens,
            blank=blank,
            start=start,
            prompt_length=prompt_length,
            committed_at=committed_at,
            keep_states=keep_states,
            graphs=StepGraphs(dlm),
            devices=dlm.devices,
        )

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
        entering = self.tokens
        began = self._clock()
        plan = self.run.plan(step, entering.repeat(2, 1) if self.cfg_scale else entering)
        if self.recorder is not None:
            self.recorder.begin_step(step, entering, plan)
        wanted = self.wanted(plan)
        logits = self.predict(plan, wanted)
        if logits.amax(-1).isnan().any():  # NaN wins; a mask of all logits would be half as large as they are
            raise DlmLensError(
                f"step {step} of {self.steps}: the model returned NaN logits; check its weights and dtype"
                f" ({self.dlm.dtype}), and whether dense attention does the same"
            )
        tokens, committed = self._commit(step, wanted, logits)
        given_up = self.run.given_up(tokens)
        if given_up is not None:
            tokens = tokens.masked_fill(given_up, self.dlm.spec.eos_id)
        committed_at = self.committed_at.masked_fill(committed, step)
        ms = (self._clock() - began) * 1000

        if self.recorder is not None:
            confidence = self._confidence(logits, wanted)
            self.recorder.end_step(step, confidence, committed, plan.kind, ms, self.run)
        if self.keep_states:
            self.states.append(entering.cpu())
        self.rows.append((step, plan.kind, ms, int(committed.sum())))
        self.tokens, self.committed_at = tokens, committed_at

    def wanted(self, plan: StepPlan) -> range | Tensor:
        """The positions [B, m] whose logits the sampler is to see; L stands for none."""
        if plan.candidates is not None:
            return plan.candidates[: len(self.tokens)]
        inside = self.sampler.positions(plan.step, self.tokens.shape[1] - self.prompt_length)
        return range(self.prompt_length + inside.start, self.prompt_length + inside.stop)

    def predict(self, plan: StepPlan, wanted: range | Tensor) -> Tensor:
        """Logits [B, m, V] of the positions ``wanted``, guided if asked for."""
        tokens, start = self.tokens, self.start
        if self.cfg_scale:
            tokens = torch.cat([tokens, self._without_prompt()])
            start = None if start is None else start.repeat(2)
            wanted = wanted if isinstance(wanted, range) else wanted.repeat(2, 1)
        context = StepContext(plan.step, plan, self.run, self.recorder, start, self.sampler.causal)
        logits = self.graphs.logits(tokens, start=start, keep=wanted, context=context)
        if not self.cfg_scale:
            return logits
        conditional, unconditional = logits.chunk(2)
        return unconditional + (self.cfg_scale + 1) * (conditional - unconditional)

    def _commit(self, step: int, wanted: range | Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The state after the sampler's choice, LongTensor [B, L], and where it changed, bool [B, L]."""
        batch, length = self.tokens.shape
        whole = isinstance(wanted, range) and len(wanted) == length - self.prompt_length
        if isinstance(wanted, range):
            wanted = torch.arange(wanted.start, wanted.stop, device=self.tokens.device).expand(batch, -1)
        # One position more than there are, for the L that stands for none.
        still_open = torch.zeros(batch, length + 1, dtype=torch.bool, device=self.tokens.device)
        still_open[:, self.prompt_length : -1] = self.open()
        candidates = Candidates(
            step=step,
            steps=self.steps,
            gen_length=length - self.prompt_length,
            positions=wanted - self.prompt_length,
            open=still_open.gather(1, wanted),
            undecided=still_open.sum(-1),
            logits=logits,
            generator=self.generator,
            whole=whole,
        )
        chosen = self.sampler.commit(candidates)
        committed = torch.zeros_like(still_open).scatter_(1, wanted, chosen.where)[:, :-1]
        proposed = self.tokens.new_zeros(still_open.shape).scatter_(1, wanted, chosen.tokens)[:, :-1]
        return torch.where(committed, proposed, self.tokens), committed

    def _without_prompt(self) -> Tensor:
        """The state with its prompt masked, for the unconditional pass; padding stays padding."""
        position = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        prompt = position < self.prompt_length
        if self.start is not None:
            prompt = prompt & (position >= self.start[:, None])
        return torch.where(prompt, self.blank, self.tokens)

    def _confidence(self, logits: Tensor, wanted: range | Tensor) -> Tensor:
        batch, length = self.tokens.shape
        confidence = torch.full((batch, length + 1), torch.nan, device=logits.device)
        # In pieces: in float32 the logits of all would be twice as large.
        lse = [part.float().logsumexp(-1) for part in logits.split(256, dim=1)]
        best = (logits.amax(-1) - torch.cat(lse, dim=1)).exp()
        if isinstance(wanted, range):
            confidence[:, wanted.start : wanted.stop] = best
        else:
            confidence.scatter_(1, wanted, best)
        return confidence[:, :-1]

    def _clock(self) -> float:
        for device in self.devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return perf_counter()
