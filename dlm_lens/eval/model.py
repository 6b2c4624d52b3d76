"""The model type itself: what lm-eval asks of a model, answered by denoising and by the diffusion bound."""

from __future__ import annotations

import inspect
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

import dlm_lens as dl
from dlm_lens.denoising import Denoised, denoise
from dlm_lens.eval.arguments import Generation, Method
from dlm_lens.measure import provenance
from dlm_lens.measure.speed import uninterrupted
from dlm_lens.measure.tasks.held_out import tokenizer_of
from dlm_lens.measure.tasks.likelihood import Pair, greedy, likelihoods
from dlm_lens.progress import Bar

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from dlm_lens.models import DLM
    from dlm_lens.policies import Policy

_log = logging.getLogger("lm_eval.dlm_lens")  # under lm-eval's own, which alone it shows

_ASKED_BY_DEFAULT = "cuda:0"  # the device that lm-eval's command line names where its user names none


@register_model("dlm_lens")
class DlmLens(TemplateLM):
    """A diffusion language model (or an autoregressive one) under a policy, as lm-eval sees it.

    Generation denoises as many tokens as a task allows after its prompt, with the prompts of a batch left-padded, and
    cuts the text at the first end-of-text token or stop string. Likelihoods are minus the diffusion bound of
    :func:`dlm_lens.tasks.likelihood`, so they are too low by what the bound leaves open; those of an autoregressive
    model are exact. A text longer than the model is cut into windows. "Greedy" is a continuation that decoding writes,
    the most confident token first, one a step.

    Parameters
    ----------
    pretrained : what :func:`dlm_lens.load` takes, or a loaded model.
    policy, sparsity : a name such as ``"pulsecol"`` and the share of keys it leaves out; or a policy.
    sampler : ``"low-confidence"``, ``"threshold"``, ``"dream"`` or ``"left-to-right"``; by default the policy's own or
        the one that the model was published with.
    steps : denoising steps of an answer; by default one per token. ``gen_length`` : tokens of an answer, whatever the
        task asks for; by default what it does. Samplers in blocks fill whole blocks, of which the surplus is cut off.
    cfg_scale, seed : as in :func:`dlm_lens.denoise`.
    mc_samples : draws of a likelihood that has too many ways to hide tokens to go through them all; an even number.
    check_greedy : False saves decoding in tasks of likelihood; nothing counts as greedy then, so ``acc`` of tasks with
        one continuation and ``exact_match`` of multiple choice mean nothing.
    batch_size : prompts, or predictions of a likelihood, at a time.
    device, dtype, device_map, max_length, rope_theta : as in :func:`dlm_lens.load`. Prompts that leave no room within
        ``max_length`` lose their beginning.
    **parameters : any other parameter of the policy or of the sampler, such as ``refresh_count`` or ``block_length``.

    Raises ValueError for names and values that do not exist, saying what there is.
    """

    def __init__(
        self,
        pretrained: str | Path | DLM = "tiny",
        *,
        policy: str | Policy = "dense",
        sparsity: float | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        gen_length: int | None = None,
        cfg_scale: float = 0.0,
        mc_samples: int = 128,
        check_greedy: bool = True,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: str | dict[str, int | str] | None = None,
        rope_theta: float | str | None = None,
        seed: int = 0,
        **parameters: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a number; dlm_lens does not look for one")
        self.batch_size = int(batch_size)
        for name, count in (("steps", steps), ("gen_length", gen_length)):
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{name}={count!r} must be a whole number, at least 1, or be left out")
        own = [name for name in inspect.signature(DlmLens).parameters if name != "parameters"]
        self.method = Method.of(policy, sparsity, sampler, parameters, own)
        self.dlm = _load(
            pretrained,
            device=device,
            dtype=dtype,
            device_map=device_map,
            max_length=max_length,
            rope_theta=rope_theta,
        )
        self.tokenizer = tokenizer_of(self.dlm, "tasks of lm-eval")
        self.max_length = self.dlm.spec.max_length
        self.method.generation(self.dlm.spec, {}, gen_length)  # refuses what its sampler does not know
        self.steps, self.gen_length, self.cfg_scale, self.seed = steps, gen_length, cfg_scale, seed
        self.mc_samples, self.check_greedy = mc_samples, check_greedy
        self._special = set(self.tokenizer.get_added_vocab())
        self._generated = 0
        self._samplers: dict[str, None] = {}
        self._requests: Counter[str] = Counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._ms: dict[str, list[float]] = defaultdict(list)

    @property
    def device(self) -> torch.device:
        return self.dlm.device

    @property
    def eot_token_id(self) -> int:
        return self.dlm.spec.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context with an autoregressive model; a diffusion model needs nothing there."""
        return self.eot_token_id if self.dlm.spec.bos_id is None else self.dlm.spec.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:  # a chat template may have written the first one already
            first = self.tokenizer.bos_token
            add_special_tokens = first is None or not string.startswith(first)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    # Chat templates

    @property
    def tokenizer_name(self) -> str:
        return self.dlm.spec.name.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{self.dlm.spec.name!r} has no chat template; leave out --apply_chat_template")
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # Generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers: dict[int, str] = {}
        with self._bar("generate_until", len(requests), disable_tqdm) as bar:
            for how, batch in self._batches([request.args for request in requests]):
                out = self._denoise([prompt for _, prompt in batch], how)
                generated = out.tokens[:, out.prompt_length : out.prompt_length + how.tokens]
                for (index, _), row in zip(batch, generated, strict=True):
                    answers[index] = self._text(row, how.until)
                    self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
                bar.update(len(batch))
        return [answers[index] for index in range(len(requests))]

    def _batches(
        self, requests: Sequence[tuple[str, dict[str, Any]]]
    ) -> Iterator[tuple[Generation, list[tuple[int, torch.Tensor]]]]:
        """Requests answered alike, with their indices: the longest prompts first, those of one length in their order.

        All arguments are read before the first batch.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for index, (_, arguments) in enumerate(requests):
            groups[json.dumps(arguments, sort_keys=True)].append(index)
        todo = []
        for members in groups.values():
            how = self.method.generation(self.dlm.spec, requests[members[0]][1], self.gen_length)
            how.sampler.check(how.positions, how.positions if self.steps is None else self.steps)
            room = self.max_length - how.positions
            if room < 1:
                raise ValueError(
                    f"{how.positions} tokens to generate leave none of {self.max_length} for a prompt"
                )
            encoded = [self._prompt(requests[index][0]) for index in members]
            if cut := sum(len(prompt) > room for prompt in encoded):
                _log.warning("%d of %d prompts are cut to their last %d tokens", cut, len(encoded), room)
            todo.append(
                (how, [(index, prompt[-room:]) for index, prompt in zip(members, encoded, strict=True)])
            )
        for how, prompts in todo:
            prompts.sort(key=lambda prompt: -len(prompt[1]))
            for at in range(0, len(prompts), self.batch_size):
                yield how, prompts[at : at + self.batch_size]

    def _prompt(self, text: str) -> torch.Tensor:
        return torch.tensor(self.tok_encode(text) or [self.prefix_token_id])

    def _denoise(self, prompts: list[torch.Tensor], how: Generation) -> Denoised:
        out = denoise(
            self.dlm,
            prompts,
            gen_length=how.positions,
            steps=self.steps,
            policy=self.method.policy,
            sampler=how.sampler,
            cfg_scale=self.cfg_scale,
            # Where tokens are drawn, requests that are repeated must be drawn anew.
            seed=self.seed + (self._generated if how.random else 0),
            progress=False,
        )
        self._generated += len(prompts)
        self._samplers[repr(how.sampler)] = None
        for kind, ms in out.timings.groupby("kind")["ms"]:
            self._ms[str(kind)] += ms.tolist()
        return uninterrupted(out)

    def _text(self, tokens: torch.Tensor, until: Sequence[str]) -> str:
        """The answer up to the first end-of-text token or stop string; special tokens may be stop strings too."""
        stops = {self.tokenizer.convert_tokens_to_ids(text) for text in until if text in self._special}
        row = tokens.tolist()
        end = next((at for at, token in enumerate(row) if token in stops), len(row))
        (text,) = self.dlm.decode(tokens[:end]) if end else ("",)
        return text[: min((text.find(stop) for stop in until if stop in text), default=len(text))]

    # Likelihoods

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        encoded = []
        for context, continuation in (request.args for request in requests):
            if context:
                ids = self._encode_pair(context, continuation)
            else:
                ids = self._alone(self.tok_encode(continuation, add_special_tokens=False))
            encoded.append(((context, continuation), *ids))
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _alone(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """Context and continuation of a text that nothing precedes."""
        if not self.dlm.spec.causal:
            return [], ids
        return ([], ids) if ids[:1] == [self.prefix_token_id] else ([self.prefix_token_id], ids)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        if cut := sum(
            len(pair[0]) < len(context) for pair, (_, context, _) in zip(pairs, requests, strict=True)
        ):
            _log.warning("%d of %d contexts are cut, to fit into %d tokens", cut, len(pairs), self.max_length)
        is_greedy: dict[int, bool] = {}
        if self.check_greedy:
            with self._bar("greedy decoding", len(pairs), disable_tqdm) as bar:
                for index, right in greedy(self.dlm, pairs, **self._how()):
                    is_greedy[index] = right
                    bar.update()
        found: dict[int, tuple[float, bool]] = {}
        with self._bar("loglikelihood", len(pairs), disable_tqdm) as bar:
            for index, estimate in likelihoods(self.dlm, pairs, samples=self.mc_samples, **self._how()):
                found[index] = (-estimate.nats, is_greedy.get(index, False))
                self.cache_hook.add_partial("loglikelihood", requests[index][0], found[index])
                bar.update()
        return [found[index] for index in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        pairs: list[Pair] = []
        of: list[int] = []
        for index, request in enumerate(requests):
            windows = self._windows(self.tok_encode(request.args[0], add_special_tokens=False))
            pairs += windows
            of += [index] * len(windows)
        totals = [0.0] * len(requests)
        with self._bar("loglikelihood_rolling", len(pairs), disable_tqdm) as bar:
            for index, estimate in likelihoods(self.dlm, pairs, samples=self.mc_samples, **self._how()):
                totals[of[index]] -= estimate.nats
                bar.update()
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _how(self) -> dict[str, Any]:
        return {
            "policy": self.method.policy,
            "seed": self.seed,
            "cfg_scale": self.cfg_scale,
            "batch_size": self.batch_size,
        }

    def _fitting(self, context: list[int], continuation: list[int]) -> Pair:
        """As many of the last tokens of the context as there is room for before the continuation."""
        room = self.max_length - len(continuation)
        if room < self.dlm.spec.causal:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens does not fit into max_length={self.max_length}"
            )
        kept = context[max(0, len(context) - room) :]
        return torch.tensor(kept, dtype=torch.long), torch.tensor(continuation, dtype=torch.long)

    def _windows(self, ids: list[int]) -> list[Pair]:
        """A text in pieces, each token in one, that fill ``max_length``: the last with as much as fits before it."""
        first = [self.prefix_token_id] if self.dlm.spec.causal else []
        step, ids = self.max_length - len(first), first + ids
        pairs = []
        for at in range(len(first), len(ids), step):
            stop = min(at + step, len(ids))
            pairs.append(self._fitting(ids[max(0, stop - self.max_length) : at], ids[at:stop]))
        return pairs

    # What lm-eval keeps beside the results

    @contextmanager
    def _bar(self, what: str, total: int, disable_tqdm: bool) -> Iterator[Bar]:
        """A bar over the requests of a kind, whose number and seconds are kept."""
        began = perf_counter()
        policy = self.method.policy.label
        with Bar(
            not disable_tqdm, total=total, desc=f"Running {what} requests, {policy}", unit="request"
        ) as bar:
            yield bar
        self._requests[what] += total
        self._seconds[what] += perf_counter() - began
        _log.info("%s: %d requests in %.1f s under %s", what, total, perf_counter() - began, policy)

    def get_model_info(self) -> dict[str, Any]:
        """For the ``config`` of the results: what was run where, and how long it took."""
        model = self.dlm.model
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "model_dtype": str(self.dlm.dtype),
            "dlm_lens": {
                "policy": self.method.policy.label,
                "policy_parameters": repr(self.method.policy),
                "samplers": list(self._samplers),
                "steps": self.steps,
                "gen_length": self.gen_length,
                "cfg_scale": self.cfg_scale,
                "mc_samples": self.mc_samples,
                "max_length": self.max_length,
                "batch_size": self.batch_size,
                "provenance": provenance(self.dlm, seed=self.seed),
                "requests": dict(self._requests),
                "seconds": dict(self._seconds),
                "denoising_steps": {kind: len(ms) for kind, ms in self._ms.items()},
                "ms_per_step": {kind: median(ms) for kind, ms in self._ms.items()},
            },
        }


def _load(pretrained: str | Path | DLM, **options: Any) -> DLM:
    """The model, loaded with those ``options`` that say something; lm-eval's ``"auto"`` dtype is ours by default."""
    if options["dtype"] == "auto":
        options["dtype"] = None
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(pretrained, dl.DLM):
        if given:
            raise ValueError(
                f"{', '.join(given)}: {pretrained.spec.name!r} is loaded already; give its name instead"
            )
        return pretrained
    if given.get("device") == _ASKED_BY_DEFAULT and "device_map" in given:
        del given["device"]
    elif given.get("device") == _ASKED_BY_DEFAULT and not torch.cuda.is_available():
        _log.warning(
            "lm-eval asks for %s unless --device says more; there is no GPU, taking the CPU",
            given.pop("device"),
        )
    return dl.load(pretrained, **given)
