"""Any transformers model with bidirectional attention as a :class:`DLM`, checked against itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dlm_lens import attention
from dlm_lens.models.dlm import DLM, language_head
from dlm_lens.models.spec import Spec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Head = Callable[[PreTrainedModel, Tensor], Tensor]

# Adapted logits may differ from the model's own by this share of the largest: rounding, and no more.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Positions of the sequence that an adapted model is checked with, if its windows are not wider.
_CHECKED = 256
_PADDING = 3


def adapt(
    model: PreTrainedModel,
    spec: Spec | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    head: Head | None = None,
) -> DLM:
    """A transformers model, whatever its architecture, as a diffusion language model.

    For models that attend to both sides and dispatch attention through transformers' ``AttentionInterface``: encoders
    trained to fill in masks (BERT, RoBERTa, ModernBERT), and decoders made bidirectional with
    ``config.is_causal = False`` and trained so. What :func:`dlm_lens.load` returns needs no adapting.

    Layers that attend within a window (every second or third of ModernBERT's and Gemma's) keep it: no policy replaces
    their attention, and a trace records what they do within it. They are named in ``dlm.spec.windowed``. Their mask of
    all pairs of positions is made at every step, so memory of such models grows with the square of the length.

    Parameters
    ----------
    model : with its language-model head, as from ``AutoModelForMaskedLM.from_pretrained``, in evaluation mode.
    spec : the facts of the model; :meth:`Spec.of` ``(model, tokenizer)`` by default, which see for what to state
        where configuration and tokenizer do not tell it: ``dl.adapt(model, dl.Spec.of(model, mask_id=103))``.
    tokenizer : of the prompts; without one they are token ids. A closing separator (BERT's ``[SEP]``) is left out
        of prompts, for the generation goes on where they end.
    head : makes logits [..., V] from the model and hidden states [..., D], where it is none of ``lm_head``, ``cls``
        and ``decoder(head(·))``. It is only ever given the positions whose logits are wanted.

    The model is not copied. Its attention implementation is set to ``"dlm_lens"``, which without a run is dense
    attention like any other and computes the same, but returns no attention weights;
    ``model.set_attn_implementation("sdpa")`` takes it back. Nothing else of it is changed.

    Before it is handed out the model is run once on a short sequence of random tokens, with padding, and its logits are
    held against those of its own forward pass under its own attention.

    Raises
    ------
    TypeError
        if ``model`` is no transformers model.
    ValueError
        for a model in training mode, an autoregressive one, one without a head that can be told, one that does not
        pass keywords down to attention or numbers its layers otherwise, and one whose logits turn out differently.
        The attention implementation is then as it was.
    """
    _check_kind(model)
    spec = Spec.of(model, tokenizer) if spec is None else spec
    if spec.causal:
        raise ValueError(f"{spec.name!r} is said to be causal; only models that attend to both sides denoise")
    own = model.config._attn_implementation
    if own == attention.NAME:
        model.set_attn_implementation("eager")
    try:
        tokens = _some_tokens(model, spec)
        expected = [_own_logits(model, tokens[:1]), _own_logits(model, tokens[1:, _PADDING:])]
        _check_sees_both_sides(model, spec, tokens[:1], expected[0])
        model.set_attn_implementation(attention.NAME)
        if model.config._attn_implementation != attention.NAME:
            raise ValueError(
                f"{type(model).__name__} does not dispatch attention through transformers' AttentionInterface, so no"
                " policy or recorder can reach it"
            )
        dlm = _agreeing(model, tokenizer, spec, head, tokens, expected)
    except BaseException:
        model.set_attn_implementation(own)
        raise
    return dlm


def _check_kind(model: Any) -> None:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"adapt takes a transformers model, not {type(model).__name__}")
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"{type(model).__name__} has an encoder and a decoder; adapt takes models of one stack of layers"
        )
    if model.base_model is model:
        raise ValueError(
            f"{type(model).__name__} has no language-model head; load it with one, as by"
            " AutoModelForMaskedLM.from_pretrained"
        )
    if model.training:
        raise ValueError(f"{type(model).__name__} is in training mode, with dropout; call model.eval() first")
    if model.dtype not in _TOLERANCE:
        raise ValueError(
            f"{type(model).__name__} is in {model.dtype}; expected {', '.join(map(str, _TOLERANCE))}"
        )


def _some_tokens(model: PreTrainedModel, spec: Spec) -> Tensor:
    """Two rows of random tokens [2, n], of which the second begins with padding; longer than a window, if they may."""
    window = getattr(model.config, "sliding_window", None) or 0
    length = min(spec.max_length, max(4 * _PADDING, min(2 * window + 4, _CHECKED)))
    generator = torch.Generator().manual_seed(0)
    ordinary = [token for token in range(min(spec.vocab, 1000)) if token not in (spec.pad_id, spec.mask_id)]
    tokens = torch.tensor(ordinary)[torch.randint(len(ordinary), (2, length), generator=generator)]
    tokens[1, :_PADDING] = spec.pad_id
    return tokens.to(model.device)


@torch.no_grad()
def _own_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """What the model says itself, alone and without padding: float32 [B, n, V]."""
    return model(input_ids=tokens).logits.float().to(tokens.device)


def _check_sees_both_sides(model: PreTrainedModel, spec: Spec, tokens: Tensor, logits: Tensor) -> None:
    other = tokens.clone()
    other[0, 1] = tokens[0, 0] if tokens[0, 1] != tokens[0, 0] else tokens[0, 2]
    if torch.equal(_own_logits(model, other)[:, 0], logits[:, 0]):
        raise ValueError(
            f"{spec.name!r} is autoregressive: what follows a position does not reach it. Set model.config.is_causal ="
            " False if its weights are those of a diffusion model; dl.load takes autoregressive ones"
        )


@dataclass(frozen=True)
class _Whole:
    """The plan of the checking step: everything is computed."""

    queries: None = None


class _Probe:
    """A run that attends densely and notes what reaches it of every layer."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.windowed: list[int] = []
        self.heads: set[tuple[int, int]] = set()

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: attention.StepContext) -> Tensor:
        return attention.dense_attention(q, k, v, start=context.start)

    def observe(self, layer: int, q: Tensor, k: Tensor, context: attention.StepContext) -> None:
        self.layers.append(layer)
        self.heads.add((q.shape[1], k.shape[1]))
        if context.mask is not None:
            self.windowed.append(layer)


def _agreeing(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | None,
    spec: Spec,
    head: Head | None,
    tokens: Tensor,
    expected: list[Tensor],
) -> DLM:
    """The model as a DLM whose logits are those ``expected`` of the two rows of ``tokens``."""
    chosen = _head_of(model) if head is None else head
    start = torch.tensor([0, _PADDING], device=tokens.device)
    if spec.logit_shift:
        expected = [torch.cat([own[:, :1], own[:, :-1]], dim=1) for own in expected]
    worst = {}
    # RoBERTa and its like number positions from one past the padding token's id.
    for first in (0, spec.pad_id + 1):
        if first + tokens.shape[1] > spec.max_length:
            continue  # more positions than there are embeddings of
        probe = _Probe()
        dlm = DLM(model, tokenizer, spec, None, head=chosen, first_position=first)
        context = attention.StepContext(0, _Whole(), probe, probe, start)  # type: ignore[arg-type]
        try:
            logits = dlm.logits(tokens, start=start, context=context).float()
        except TypeError as error:
            raise ValueError(
                f"{type(model.base_model).__name__} does not take what dlm-lens passes to it: {error}"
            ) from error
        _check_layers(spec, probe)
        found = [logits[:1], logits[1:, _PADDING:]]
        worst[first] = max(
            float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
        )
        if worst[first] <= _TOLERANCE[model.dtype]:
            facts = replace(spec, windowed=tuple(probe.windowed), max_length=spec.max_length - first)
            return DLM(model, tokenizer, facts, None, head=chosen, first_position=first)
    raise ValueError(
        f"the logits of {spec.name!r} as adapted differ from its own by {min(worst.values()):.2g} of the largest: its"
        " head is not the one found (give head=), or it needs inputs or attention that dlm-lens does not know of"
    )


def _check_layers(spec: Spec, probe: _Probe) -> None:
    if probe.layers != list(range(spec.layers)):
        raise ValueError(
            f"attention of {spec.name!r} was reached in the layers {probe.layers}, expected 0 … {spec.layers - 1} once"
            " each: the model does not pass the keyword lens= down to every layer, or spec.layers is wrong"
        )
    if probe.heads != {(spec.heads, spec.kv_heads)}:
        raise ValueError(
            f"attention of {spec.name!r} has (heads, kv_heads) {sorted(probe.heads)}, but its spec says"
            f" {(spec.heads, spec.kv_heads)}"
        )


def _head_of(model: PreTrainedModel) -> Head:
    """How transformers' language models of this make get from hidden states to logits."""
    if hasattr(model, "lm_head"):
        return language_head
    if hasattr(model, "cls"):
        return lambda model, hidden: model.cls(hidden)
    if hasattr(model, "head") and hasattr(model, "decoder"):
        return lambda model, hidden: model.decoder(model.head(hidden))
    raise ValueError(
        f"{type(model).__name__} has neither lm_head nor cls nor head and decoder; give head=, a function of the model"
        " and hidden states [..., D] that returns logits [..., V]"
    )
