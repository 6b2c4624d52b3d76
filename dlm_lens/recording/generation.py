"""Capture of a model that denoises in its own ``generate``: DiffusionGemma, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlm_lens.byte_sizes import parse_bytes
from dlm_lens.denoising_loop import UNDECIDED
from dlm_lens.models import DLM, Spec
from dlm_lens.models.own_attention import watched_attention
from dlm_lens.policies import StepPlan
from dlm_lens.progress import Bar, Progress
from dlm_lens.recording.base import LayerAttention, Statistic
from dlm_lens.recording.capturing import chosen_numbers, chosen_statistics
from dlm_lens.recording.masked import Positions
from dlm_lens.recording.memory import check_budget, estimate_memory
from dlm_lens.recording.provenance import provenance
from dlm_lens.recording.recorder import Recorder, Selection
from dlm_lens.trace import Trace
from dlm_lens.trace_store import check_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NOT_BEGUN = -1
"""Token id of positions whose canvas has not been begun."""


def capture_generate(
    model: PreTrainedModel,
    inputs: Tensor | Mapping[str, Tensor],
    *,
    max_new_tokens: int | None = None,
    max_denoising_steps: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    statistics: Sequence[Statistic] | None = None,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    record_steps: Iterable[int] | None = None,
    path: str | PathLike | None = None,
    memory_budget: int | str = "2 GB",
    progress: bool | Progress = True,
    overwrite: bool = False,
    **generate: Any,
) -> Trace:
    """Run ``model.generate`` of transformers' DiffusionGemma once and record statistics of its attention.

    DiffusionGemma writes a *canvas* of ``config.canvas_length`` tokens after the other. An encoder puts prompt and
    finished canvases into a cache of keys and values; a decoder denoises the canvas, whose positions attend to the
    cache and to each other. The model has no mask token: a canvas begins as random tokens, at every step some
    predictions are accepted and all other positions drawn anew at random, and at its end the canvas becomes the
    model's best guess as a whole. The generation runs as it would without recording and gives the same tokens from the
    same state of PyTorch's random generator.

    In the trace a step is one pass of the decoder, counted through all canvases, a position is one of the prompt (with
    its padding) or of a canvas, and the variables mean

    - ``tokens``: the state that enters the pass, in the canvas accepted predictions and random tokens alike, for
      ``generate`` does not tell them apart; −1 in canvases that are not begun;
    - ``committed_at``: the last step of the position's canvas, which decides all of it; −2 if that was not reached;
    - ``masked``: not decided yet, which is the present canvas and all after it;
    - ``confidence``: of the present canvas, from the logits before temperature and other processors; NaN elsewhere;
    - ``column_mass``: mean over the queries of the canvas, over all keys there are; 0 for keys out of a layer's reach
      (layers with a window see the canvas and only the end of the cache, ``trace.spec["windowed"]``) and for positions
      that are not begun;
    - ``pooled_map``, ``row_entropy``: over bins of all positions; bins without a query of the canvas are 0;
    - ``final_tokens``: what ``generate`` returns, and −1 after its end.

    Parameters
    ----------
    model : a ``DiffusionGemmaForBlockDiffusion`` whose attention implementation is ``"sdpa"`` or ``"eager"``.
    inputs : token ids [B, P], or what its processor returns: ``input_ids``, ``attention_mask`` and so on.
    max_new_tokens, max_denoising_steps : as of ``generate``: tokens in all, rounded up to whole canvases, and steps per
        canvas, of which it may need fewer. By default those of the model's generation config, or 256 and 48.
    tokenizer : for the texts of tokens in the trace.
    statistics : some of ``ColumnMass()``, ``PooledMap(…)`` and ``RowEntropy(…)``; all three by default.
    generate : passed on to ``generate``.

    ``layers``, ``heads``, ``record_steps``, ``path``, ``memory_budget``, ``progress`` and ``overwrite`` are those of
    :func:`dlm_lens.capture`, and Ctrl-C returns the trace of the finished steps as there. Two hooks tell when encoder
    and decoder begin; they and the attention implementation are taken back at the end, whatever it is.

    Raises ``TypeError`` for another model, ``ValueError`` for arguments that cannot be recorded, and what ``capture``
    raises, all before anything is run.
    """
    config = model.config.get_text_config()
    if getattr(model.config, "model_type", None) != "diffusion_gemma":
        raise TypeError(
            f"capture_generate records DiffusionGemma, not {type(model).__name__}; dl.load or dl.adapt other models"
            " and capture them with dl.capture"
        )
    inputs = {"input_ids": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    tokens_at_most, steps_per_canvas = _planned(model, max_new_tokens, max_denoising_steps, generate)
    canvases = math.ceil(tokens_at_most / model.config.canvas_length)
    batch, prompt_length = inputs["input_ids"].shape
    length = prompt_length + canvases * model.config.canvas_length
    chosen = Selection(
        statistics=chosen_statistics(statistics),
        steps=chosen_numbers("record_steps", record_steps, canvases * steps_per_canvas),
        layers=chosen_numbers("layers", layers, config.num_hidden_layers),
        heads=chosen_numbers("heads", heads, config.num_attention_heads),
    )
    for statistic in chosen.statistics:
        if not statistic.of_windows:
            raise ValueError(
                f"{statistic} describes attention from all positions; a canvas is a part of them"
            )
    if path is not None:
        check_path(path, overwrite)
    estimate = estimate_memory(
        chosen.statistics,
        batch=batch,
        length=length,
        layers=len(chosen.layers),
        heads=len(chosen.heads),
        steps=len(chosen.steps),
        on_gpu=model.device.type == "cuda",
    )
    check_budget(estimate, parse_bytes(memory_budget), chosen.statistics, len(chosen.steps))
    if progress is True:
        print(f"capture: at most {estimate}")

    described = DLM(model, tokenizer, _spec(model), None)
    run = {
        "policy": "Dense()",
        "sampler": f"{type(model).__name__}.generate",
        "prompt_length": prompt_length,
        "gen_length": length - prompt_length,
        "steps": canvases * steps_per_canvas,
    }
    valid = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    start = valid.long().argmax(-1).cpu()
    recorder = Recorder(
        chosen,
        start=start,
        prompt_length=prompt_length,
        token_texts=lambda ids: ["·" if i == NOT_BEGUN else described.token_texts([i])[0] for i in ids],
        attrs=provenance(described) | run,
        path=path,
        overwrite=overwrite,
    )
    with Bar(progress, total=canvases * steps_per_canvas, desc="Capture", unit="step") as bar:
        watch = _Generation(recorder, start, torch.full((batch, length), NOT_BEGUN), prompt_length, bar)
        generate |= {
            "max_new_tokens": tokens_at_most,
            "max_denoising_steps": steps_per_canvas,
            "max_length": None,
        }
        with watched_attention(model), watch.hooks(model):
            watch.run(model, inputs | generate)
    return recorder.finish(watch.tokens, watch.committed_at, watch.interrupted)


def _planned(
    model: PreTrainedModel, tokens: int | None, steps: int | None, generate: Mapping[str, Any]
) -> tuple[int, int]:
    """New tokens and steps per canvas at most, as ``generate`` would work them out."""
    if generate.get("max_length") is not None:
        raise ValueError(f"max_length={generate['max_length']} counts the prompt; give max_new_tokens")
    if generate.get("past_key_values") is not None:
        raise ValueError("past_key_values hide the tokens that are attended to; give them all as inputs")
    settings = generate.get("generation_config") or model.generation_config
    cache = generate.get("cache_implementation") or settings.cache_implementation
    if cache not in (None, "dynamic"):
        raise ValueError(
            f"cache_implementation={cache!r} is compiled or moved about; only the default is recorded"
        )
    planned = {
        "max_new_tokens": tokens or settings.max_new_tokens or 256,
        "max_denoising_steps": steps or settings.max_denoising_steps or 48,
    }
    for name, value in planned.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive integer")
    return planned["max_new_tokens"], planned["max_denoising_steps"]


def _spec(model: PreTrainedModel) -> Spec:
    """The facts of the model, for the trace; key heads and width of heads differ by layer: they are the first one's."""
    config = model.config.get_text_config()
    first = model.model.decoder.layers[0].self_attn
    eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    return Spec(
        name=model.config._name_or_path or "DiffusionGemma",
        family="diffusion_gemma",
        mask_id=None,
        eos_id=eos,
        pad_id=eos if config.pad_token_id is None else config.pad_token_id,
        bos_id=config.bos_token_id,
        logit_shift=False,
        causal=False,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads // first.num_key_value_groups,
        head_dim=first.head_dim,
        hidden=config.hidden_size,
        mlp=config.intermediate_size,
        vocab=config.vocab_size,
        max_length=config.max_position_embeddings,
        windowed=tuple(i for i, kind in enumerate(config.layer_types) if kind == "sliding_attention"),
    )


class _Generation:
    """Follows one call of ``generate`` and tells a recorder what happens in it.

    It goes through the model as the keyword ``lens``, so other calls of the same model are not taken for this one. A
    step is handed on when it is known whether it was the last of its canvas: when the encoder, or the next step,
    begins.
    """

    def __init__(
        self, recorder: Recorder, start: Tensor, tokens: Tensor, prompt_length: int, bar: Bar
    ) -> None:
        self.tokens = tokens
        self.committed_at = torch.full(tokens.shape, -1, dtype=torch.int32)
        self.committed_at[:, prompt_length:] = UNDECIDED
        self.interrupted = False
        self._recorder, self._start, self._bar = recorder, start, bar
        self._step = 0
        self._encoded = 0
        self._canvas: range | None = None  # while a pass of the decoder is under way
        self._pending: tuple[range, Tensor, float] | None = None

    def run(self, model: Any, arguments: dict[str, Any]) -> None:
        """Call ``generate``, and note how it ended."""
        from transformers import LogitsProcessorList

        processors = LogitsProcessorList([self._scored, *(arguments.pop("logits_processor", None) or [])])
        try:
            result = model.generate(**arguments, logits_processor=processors, lens=self)
        except KeyboardInterrupt:
            self.interrupted = True
            self._hand_on(last=False)
            return
        self._hand_on(last=True)
        sequences = getattr(result, "sequences", result).cpu()
        self.tokens = torch.full_like(self.tokens, NOT_BEGUN)
        self.tokens[:, : sequences.shape[1]] = sequences

    @contextmanager
    def hooks(self, model: Any) -> Iterator[None]:
        """While inside, be told when encoder and decoder begin."""
        handles = []
        try:
            for part, begins in ((model.model.encoder, self._encode), (model.model.decoder, self._decode)):
                handles.append(part.register_forward_pre_hook(begins, with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _encode(self, module: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        """The encoder takes in what is decided: the prompt, or the canvas just finished."""
        if options.get("lens") is not self:
            return
        self._hand_on(last=True)
        taken = options["input_ids"].cpu()
        self.tokens[:, self._encoded : self._encoded + taken.shape[1]] = taken
        self._encoded += taken.shape[1]

    def _decode(self, module: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        if options.get("lens") is not self:
            return
        self._hand_on(last=False)
        self._began = self._clock(options["decoder_input_ids"])
        canvas = options["decoder_input_ids"].cpu()
        self._canvas = range(self._encoded, self._encoded + canvas.shape[1])
        self.tokens[:, self._canvas.start : self._canvas.stop] = canvas
        self._recorder.begin_step(self._step, self.tokens.clone(), StepPlan(self._step, "dense"))

    def see(self, module: nn.Module, q: Tensor, k: Tensor, mask: Tensor | None, scale: float | None) -> None:
        """Reduce the attention of a layer of the decoder; the encoder's is not recorded."""
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if self._canvas is None or not self._recorder.records(layer):
            return
        end = self._canvas.stop
        attention = LayerAttention(
            q=q,
            k=k,
            start=self._start,
            causal=False,
            mask=mask if mask is None or mask.dtype == torch.bool else mask == 0,
            place=Positions(self._canvas, range(end - k.shape[2], end), self.tokens.shape[1]),
            scale=scale,
            **self._recorder.reductions,
        )
        self._recorder.reduce(layer, attention)

    def _scored(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Told the logits of the canvas as the first of the processors; leaves them as they are."""
        if self._canvas is None:
            return scores
        best = (scores.amax(-1).float() - scores.float().logsumexp(-1)).exp()
        confidence = torch.full(self.tokens.shape, torch.nan)
        confidence[:, self._canvas.start : self._canvas.stop] = best.cpu()
        self._pending = self._canvas, confidence, (self._clock(scores) - self._began) * 1000
        self._canvas = None
        self._bar.update()
        return scores

    def _hand_on(self, *, last: bool) -> None:
        """Append the finished step to the trace; if it was the ``last`` of its canvas, that is decided now."""
        if self._pending is None:
            return
        canvas, confidence, ms = self._pending
        decided = torch.zeros(self.tokens.shape, dtype=torch.bool)
        decided[:, canvas.start : canvas.stop] = last
        self._recorder.end_step(self._step, confidence, decided, "dense", ms)
        self.committed_at[decided] = self._step
        self._step, self._pending = self._step + 1, None

    def _clock(self, tensor: Tensor) -> float:
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)
        return perf_counter()
