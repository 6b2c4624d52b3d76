"""One model as the rest of the package sees it: its modules, its tokenizer and its facts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlm_lens.errors import DlmLensError
from dlm_lens.models import semi_structured
from dlm_lens.models.checkpoint import save_weights
from dlm_lens.models.chunked_mlp import ChunkedMLP
from dlm_lens.models.family import Family
from dlm_lens.models.placement import device_named
from dlm_lens.models.prompt import Prompt, encode_prompt
from dlm_lens.models.spec import Spec, layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from dlm_lens.attention import StepContext


def language_head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [..., V] of hidden states [..., D], by the head that language models of transformers call ``lm_head``."""
    return model.lm_head(hidden)


class DLM:
    """A diffusion language model (or its autoregressive twin), ready to denoise.

    Made by :func:`dlm_lens.load`, :func:`dlm_lens.random_model` or :func:`dlm_lens.adapt`.

    Attributes
    ----------
    model : the transformers module; its attention runs through ``dlm_lens.attention``.
    tokenizer : None for random models.
    spec : the facts of the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast | None,
        spec: Spec,
        family: Family | None,
        *,
        head: Callable[[PreTrainedModel, Tensor], Tensor] = language_head,
        first_position: int = 0,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self._family = family
        self._head = head
        self._first_position = first_position

    @property
    def backbone(self) -> nn.Module:
        """The model without its head: from token ids to the hidden states that predictions are read from."""
        return self.model.base_model

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, first to last."""
        return layers_of(self.backbone, self.spec.layers)

    @property
    def device(self) -> torch.device:
        """Where tokens go in and logits come out: the first device of a model on several."""
        return self.model.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that hold weights, in the order of the layers."""
        return tuple(dict.fromkeys(parameter.device for parameter in self.model.parameters()))

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @torch.no_grad()
    def logits(
        self,
        tokens: Tensor,
        *,
        start: Tensor | None = None,
        keep: range | Tensor | None = None,
        context: StepContext | None = None,
    ) -> Tensor:
        """Predictions for the tokens at chosen positions, from one forward pass.

        Parameters
        ----------
        tokens : int64 ``[B, L]``.
        start : int64 ``[B]``, the first valid position of each row; what stands before is padding, gets no
            attention and no position of its own. None: no padding.
        keep : the positions wanted, all by default, or int64 ``[B, m]`` where they differ by row; logits of other
            positions are never computed. ``L`` stands for none: what is returned there means nothing.
        context : the policy run, plan and recorder of a denoising step. Without one attention is dense. A plan may
            compute part of the positions; ``keep`` must be among them.

        Returns
        -------
        ``[B, len(keep), V]`` in the model's dtype. Row ``i`` always predicts position ``i``: models that read it
        at ``i − 1`` are shifted here, and their first valid position keeps its own.
        """
        length = tokens.shape[1]
        computed = None if context is None else context.plan.queries
        positions = torch.arange(length, device=tokens.device)[None]
        if computed is not None:
            positions = computed.clamp_max(length - 1)
            tokens = tokens.gather(1, positions)
        padding_mask = None
        if start is not None:
            if context is None:
                padding_mask = positions >= start[:, None]
            positions = (positions - start[:, None]).clamp_min(0)
        hidden = self.backbone(
            input_ids=tokens,
            attention_mask=padding_mask,
            position_ids=positions + self._first_position,
            use_cache=False,
            lens=context,
        ).last_hidden_state
        keep = range(length) if keep is None else keep
        return self._head(self.model, self._read(hidden, keep, computed, start)).to(tokens.device)

    def _read(
        self, hidden: Tensor, keep: range | Tensor, computed: Tensor | None, start: Tensor | None
    ) -> Tensor:
        """The hidden states ``[B, m, D]`` from which the positions in ``keep`` are predicted."""
        if isinstance(keep, range):
            if computed is None and not self.spec.logit_shift:
                return hidden[:, keep.start : keep.stop : keep.step]
            wanted = torch.arange(keep.start, keep.stop, keep.step, device=self.device)
            keep = wanted.expand(hidden.shape[0], -1)
        if self.spec.logit_shift:
            first = keep.new_zeros(hidden.shape[0]) if start is None else start
            keep = torch.where(keep > first[:, None], keep - 1, keep)
        if computed is not None:
            keep = torch.searchsorted(computed, keep.contiguous()).clamp_max(computed.shape[1] - 1)
        return hidden.gather(1, keep.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[-1]))

    def encode(self, prompt: Any) -> Prompt:
        """Token ids of a prompt: a string, a list of strings, chat messages, token ids or a list of those.

        Shorter prompts of a batch are padded on the left. Raises ``ValueError`` for an empty prompt and
        ``TypeError`` for what is no prompt.
        """
        return encode_prompt(prompt, self.tokenizer, self.spec)

    def decode(self, tokens: Tensor) -> list[str]:
        """Texts of rows of token ids ``[B, n]`` or ``[n]``, each up to its first end-of-text token."""
        rows = tokens.reshape(-1, tokens.shape[-1]).tolist()
        ends = {self.spec.eos_id, self.spec.pad_id}
        cut = [row[: next((at for at, token in enumerate(row) if token in ends), None)] for row in rows]
        if self.tokenizer is None:
            return [" ".join(self.token_texts(row)) for row in cut]
        return self.tokenizer.batch_decode(cut, skip_special_tokens=True)

    def token_texts(self, ids: Tensor | Sequence[int]) -> list[str]:
        """One text per token id, for display: special tokens as ``[MASK]``, ``<eos>``…, bytes that are no text
        as the replacement character. Without a tokenizer ``‹id›``."""
        flat = ids.flatten().tolist() if isinstance(ids, Tensor) else list(ids)
        special = {self.spec.pad_id: "<pad>", self.spec.eos_id: "<eos>", self.spec.mask_id: "[MASK]"}
        if self.tokenizer is None:
            return [special.get(token) or f"‹{token}›" for token in flat]
        known = {token: special.get(token) or self.tokenizer.decode([token]) for token in set(flat)}
        return [known[token] for token in flat]

    def save(self, folder: str | Path, *, max_shard_size: str | int = "5GB") -> None:
        """Write config, weights and tokenizer in the family's published layout, loadable by :func:`load`.

        Raises ``DlmLensError`` for an adapted model, whose layout is transformers' own.
        """
        if self._family is None:
            raise DlmLensError(
                f"{self.spec.name!r} was adapted and has no published layout here; save it as transformers does, with "
                "dlm.model.save_pretrained(folder)"
            )
        folder = Path(folder)
        config = self._family.write_config(self.model.config)
        save_weights(
            self.model, config, folder, rename=self._family.to_published, max_shard_size=max_shard_size
        )
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DLM:
        """This model moved or converted, in place. RoPE frequencies stay in float32 whatever ``dtype``.

        2:4 weights stay where and what they are: another ``device`` or ``dtype`` is a ``ValueError`` then.
        """
        if self.is_semi_structured:
            elsewhere = device is not None and device_named(device) != self.device
            if elsewhere or dtype not in (None, self.dtype):
                raise ValueError(
                    f"{self.spec.name!r} holds 2:4 weights in {self.dtype} on {self.device}, which are not moved or"
                    f" converted (asked for: device={device}, dtype={dtype}); call dlm.densify() first"
                )
            return self
        if device is not None:
            if len(self.devices) > 1:
                raise ValueError(
                    f"{self.spec.name!r} lies on {_names(self.devices)}; load it again with device={str(device)!r} to"
                    " have it on one device"
                )
            self.model.to(device=device)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype or self.dtype)
        return self

    def compile(self, **options: Any) -> DLM:
        """This model with every layer compiled, in place; ``options`` are those of ``torch.compile``.

        Norms, RoPE and SwiGLU are fused, which at long context is a quarter of all but attention; attention itself and
        whatever a policy does there stay as they are. One layer is compiled, for it serves all: at the first
        step, and once more, then for any length, at the first step of a second length; tens of seconds on a GPU. At
        LLaDA-8B's shape on an H200 a dense step shrinks from 131 to 106 ms at 4,096 tokens, from 1,873 to 1,681 at
        32,768 and from 5,493 to 5,099 at 65,536, and its activations by a quarter: worth it for runs of many steps.
        Needs a C++ compiler on a CPU. Rounding differs slightly.
        """
        for layer in self.layers:
            layer.compile(**options)
        return self

    @property
    def compiled(self) -> bool:
        """Whether layers are compiled."""
        return any(layer._compiled_call_impl is not None for layer in self.layers)

    def semi_structured(self, positions: int = 4096) -> DLM:
        """This model with the 2:4 weights of its layers stored as such, in place, to run on sparse tensor cores.

        For a model pruned by :func:`dlm_lens.prune` with ``pattern="2:4"``, on one GPU in bf16. Every matrix of
        every layer must be 2:4, or nothing is converted. The weights are the same and :meth:`densify` gives them back;
        outputs differ by rounding.

        cuSPARSELt multiplies them by one of some twenty algorithms. For each shape of matrix, the fastest for so many
        ``positions`` (rows × length) is looked for by timing them; call again for others. A call costs half a
        millisecond on the CPU besides, so that at short contexts launching takes longer than computing. Steps of
        ``Dense()`` therefore run as a CUDA graph where they compute at most 16,384 positions without padding and
        nothing is recorded, also with compiled layers. Steps of other policies do not.

        At LLaDA-8B's shape on an H200 the matrices alone are 1.56× as fast at 4,096 positions inside a graph, 0.42× as
        called, and as called 1.35× at 16,384 and 1.52× at 65,536. Dense steps are 1.36×, 1.24× and 1.10× as fast:
        attention, which stays as it is, grows. Where ``PulseCol`` makes attention cheaper, at 65,536, its sparse steps
        gain 1.25× in groups of 128 (``figures/pruned_speed.py``).

        Raises ``ValueError`` for a CPU, several GPUs, a GPU before Ampere, other dtypes, a PyTorch without cuSPARSELt,
        a matrix whose sides are no multiples of 16, and one that is not 2:4, naming the first group that is not;
        ``RuntimeError`` where no algorithm gives the result of the dense weights.
        """
        semi_structured.convert(self, positions)
        return self

    def densify(self) -> DLM:
        """This model with all weights stored as dense matrices again, in place; undoes :meth:`semi_structured`."""
        semi_structured.densify(self.layers)
        return self

    @property
    def is_semi_structured(self) -> bool:
        """Whether layers hold their weights as 2:4."""
        linears = semi_structured.linears_of(self.layers)
        return any(semi_structured.is_semi_structured(linear.weight) for _, linear in linears)

    def chunk_mlp(self, positions: int | None = 8192) -> DLM:
        """This model with its MLPs computed for so many positions at a time, in place; None for all at once.

        Their intermediates are what takes most memory at long context: 9 numbers a position for every one of LLaDA-8B's
        hidden ones, of 13 in all, and 16 of 20 in Dream-7B. The result is the same up to rounding. Runs that would not
        fit otherwise do this by themselves. Raises ``ValueError`` for a model whose layers have no ``mlp``.
        """
        if positions is not None and positions < 1:
            raise ValueError(f"positions={positions} must be at least 1, or None for all at once")
        if not self.has_mlp:
            raise ValueError(f"the layers of {self.spec.name!r} have no mlp that could be chunked")
        for layer in self.layers:
            mlp: Any = layer.mlp
            whole = mlp.whole if isinstance(mlp, ChunkedMLP) else mlp
            if positions is not None:
                layer.mlp = ChunkedMLP(whole, positions)
            elif whole is not mlp:
                layer.mlp = whole
        return self

    @property
    def has_mlp(self) -> bool:
        """Whether layers have an ``mlp``, which can be computed in chunks of positions."""
        return all(hasattr(layer, "mlp") for layer in self.layers)

    @property
    def mlp_chunk(self) -> int | None:
        """The positions that MLPs compute at a time; None for all."""
        mlp = getattr(self.layers[0], "mlp", None)
        return mlp.positions if isinstance(mlp, ChunkedMLP) else None

    def __deepcopy__(self, memo: dict[int, Any]) -> DLM:
        memo.update(semi_structured.copies(self.layers))
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    def __repr__(self) -> str:
        spec = self.spec
        millions = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        return (
            f"DLM({spec.name!r}, family={spec.family!r}, {millions:.1f} M parameters, {spec.layers} layers × "
            f"{spec.heads} heads, {str(self.dtype).removeprefix('torch.')} on {_names(self.devices)})"
        )


def _names(devices: Sequence[torch.device]) -> str:
    return ", ".join(map(str, devices))
