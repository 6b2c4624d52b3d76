"""The one attention function of dlm-lens, registered with transformers under the name ``"dlm_lens"``.

A model loaded with ``attn_implementation="dlm_lens"`` calls :func:`lens_attention` in every layer. What is
to happen there travels as the keyword ``lens`` from the model's forward, so nothing is patched and two runs
cannot see each other; without that keyword the model behaves like any other transformers model.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from dlm_lens.policies.base import PolicyRun, StepPlan

NAME = "dlm_lens"

# Fastest first, as measured on Hopper; PyTorch itself would prefer FlashAttention-2 to cuDNN.
_CUDA_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# What some models add to the scores or the softmax, and nothing here knows how to.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


class Observer(Protocol):
    """What a context needs of a recorder: to be shown ``q, k`` of every layer."""

    def observe(self, layer: int, q: Tensor, k: Tensor, context: StepContext) -> None: ...


@dataclass
class StepContext:
    """What one forward pass of a run needs to know inside the attention layers.

    ``start`` is a LongTensor [B] with the first valid position of each left-padded sample, or None when
    nothing is padded. ``causal`` is True for autoregressive models. ``lse`` [B, H, L] is the log-sum-exp of the
    scores of the layer being computed, where a policy's dense attention has told it: statistics of the same
    layer then need one pass over the scores, not two. ``mask`` bool [B, 1, L, L] is what that layer may attend
    to where it attends within a window only, and None where it may attend to everything.
    """

    step: int
    plan: StepPlan
    run: PolicyRun
    recorder: Observer | None = None
    start: Tensor | None = None
    causal: bool = False
    lse: Tensor | None = None
    mask: Tensor | None = None
    _copies: dict[torch.device, StepContext] = field(default_factory=dict, init=False, repr=False)

    def on(self, device: torch.device) -> StepContext:
        """This context with its tensors on ``device``, for a layer there; itself where they are already.

        Everything of a run that a layer is told comes through here, so policies need not know that a model lies on
        several devices: what they keep of a layer is made from its own ``q, k, v``.
        """
        tensors = [self.start, *tensors_of(self.plan).values()]
        if all(tensor is None or tensor.device == device for tensor in tensors):
            return self
        if device not in self._copies:
            plan = replace(self.plan, **_moved(tensors_of(self.plan), device))
            start = None if self.start is None else self.start.to(device)
            self._copies[device] = replace(self, plan=plan, start=start)
        return self._copies[device]


def tensors_of(plan: StepPlan) -> dict[str, Tensor]:
    """The tensors among the fields of a plan, by name."""
    values = {each.name: getattr(plan, each.name) for each in fields(plan)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


@torch.compiler.disable  # a policy is Python that decides; layers are compiled up to here and from here on
def lens_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    lens: StepContext | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: the policy's where a run is under way, plain dense attention otherwise.

    ``query`` is [B, H, Lq, D], ``key`` and ``value`` [B, Hkv, Lk, D], all after RoPE. Returns the output as
    [B, Lq, H, D], which transformers expects, and no weights: they are never materialised. A layer that attends
    within a window does so in either case, and its policy is not asked. Raises ``ValueError`` for scores that are
    capped, biased or shared with a sink.
    """
    for name in _UNSUPPORTED:
        if more.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} asks for attention with {name}, which dlm-lens does not compute; run this"
                ' model with another attention implementation, as by model.set_attn_implementation("eager")'
            )
    if lens is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = causal and getattr(module.config, "is_causal", True)
        return _sdpa(query, key, value, attention_mask, causal, scaling, dropout).transpose(1, 2), None
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise ValueError(
            f"{type(module).__name__} does not say which layer it is (layer_idx), so no policy can tell layers apart"
        )
    width = query.shape[3] ** -0.5
    if scaling is not None and scaling != width:  # policies and statistics know one scale only
        query = query * (scaling / width)
    lens = lens.on(query.device)
    lens.lse = None
    lens.mask = attention_mask if attention_mask is not None and attention_mask.ndim == 4 else None
    with _current(query.device):
        if lens.mask is None:
            out = lens.run.attend(int(layer), query, key, value, lens)
        else:
            out = _windowed_attention(query, key, value, lens)
        if lens.recorder is not None:
            lens.recorder.observe(int(layer), query, key, lens)
    return out.transpose(1, 2), None


def _windowed_attention(q: Tensor, k: Tensor, v: Tensor, lens: StepContext) -> Tensor:
    """What the model itself computes in a layer with a window, over each sample's valid range; [B, H, L, D]."""
    mask = lens.mask
    assert mask is not None
    if lens.plan.queries is not None:
        raise ValueError(
            f"step {lens.step} computes part of the positions, but layers of this model attend within a window;"
            " choose a policy that computes all of them"
        )
    if lens.start is None:
        return _sdpa(q, k, v, mask, False, None)
    out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
    for b, first in enumerate(lens.start.tolist()):
        one, valid = slice(b, b + 1), slice(first, None)
        out[one, :, valid] = _sdpa(
            q[one, :, valid], k[one, :, valid], v[one, :, valid], mask[one, :, valid, valid], False, None
        )
    return out


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    start: Tensor | None = None,
    causal: bool = False,
    backend: SDPBackend | None = None,
) -> Tensor:
    """Full softmax attention by the fastest backend present; the baseline that every policy is compared with.

    ``q`` is [B, H, Lq, D], ``k, v`` [B, Hkv, Lk, D] with ``Hkv`` dividing ``H``; ``start`` LongTensor [B]
    holds the first valid position of each sample. If ``causal``, fewer queries than keys are taken for the
    last positions; otherwise they may stand anywhere. Queries known to be padding return zeros. Scale is
    ``D ** -0.5`` unless given. With a ``backend``, that one or ``RuntimeError``. Returns [B, H, Lq, D].

    Every padded sample attends over its own valid range, so no mask is built at all: masks cost more than the
    separate calls and would rule out the fastest backends.
    """
    starts = None if start is None else start.tolist()
    if starts is None or not any(starts):
        return _sdpa(q, k, v, None, causal, scale, backend=backend)
    more_keys = k.shape[2] - q.shape[2]
    aligned = causal or more_keys == 0
    out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
    for b, first in enumerate(starts):
        one, queries, keys = (
            slice(b, b + 1),
            slice(max(0, first - more_keys) if aligned else 0, None),
            slice(first, None),
        )
        out[one, :, queries] = _sdpa(
            q[one, :, queries], k[one, :, keys], v[one, :, keys], None, causal, scale, backend=backend
        )
    return out


def dense_attention_and_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    start: Tensor | None = None,
    causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """:func:`dense_attention`, and the log-sum-exp of the scaled scores that it computes on the way.

    The log-sum-exp is float32 [B, H, L], −inf for padding, and costs nothing where the backend is cuDNN; elsewhere
    (on a CPU, in float32, for causal models) it is None, for it would cost a second pass.
    """
    told = q.is_cuda and not causal and q.shape[2] == k.shape[2]
    if not (told and _suits_cudnn(q, k, v)):
        return dense_attention(q, k, v, scale=scale, start=start, causal=causal), None
    starts = None if start is None else start.tolist()
    if starts is None or not any(starts):
        return _cudnn(q, k, v, scale)
    out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
    lse = q.new_full(q.shape[:3], float("-inf"), dtype=torch.float32)
    for b, first in enumerate(starts):
        one, valid = slice(b, b + 1), slice(first, None)
        out[one, :, valid], lse[one, :, valid] = _cudnn(
            q[one, :, valid], k[one, :, valid], v[one, :, valid], scale
        )
    return out, lse


def _suits_cudnn(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return cuda.can_use_cudnn_attention(cuda.SDPAParams(q, k, v, None, 0.0, False, q.shape[1] != k.shape[1]))


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    # F.scaled_dot_product_attention keeps the log-sum-exp to itself.
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, False, False, scale=scale
    )
    return out, lse.reshape(q.shape[:3])


def _sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float = 0.0,
    backend: SDPBackend | None = None,
) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    if mask is not None or (causal and 1 < queries != keys):
        mask, causal = _full_mask(mask, causal, queries, keys, q.device), False
    causal = causal and queries > 1  # a single query is the last position: it sees every key
    grouped = q.shape[1] != k.shape[1]
    with _fastest_backend(q) if backend is None else sdpa_kernel(backend):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
        )


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current CUDA device, wherever the tensors are; a layer may lie on another."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _fastest_backend(q: Tensor) -> AbstractContextManager[Any]:
    return sdpa_kernel(_CUDA_BACKENDS, set_priority=True) if q.is_cuda else nullcontext()


def _full_mask(mask: Tensor | None, causal: bool, queries: int, keys: int, device: torch.device) -> Tensor:
    """What SDPA needs where its ``is_causal`` does not say it all; True marks what may be attended.

    ``mask`` is what came through transformers: [B, Lk] for padding, or a ready 4-D mask, taken as it is.
    """
    if mask is not None and mask.ndim == 4:
        return mask
    padding = torch.ones(1, keys, dtype=torch.bool, device=device) if mask is None else mask.bool()
    if not causal:
        return padding[:, None, None, :]
    position = torch.arange(keys, device=device)
    own = position[keys - queries :, None]
    # A padding query may see itself: a row with nothing to attend to would be NaN.
    return (padding[:, None, None, :] & (position <= own)) | (position == own)


def _key_mask(*, attention_mask: Tensor | None, local_size: int | None = None, **more: Any) -> Tensor | None:
    """Mask function for transformers: the caller's 2-D mask, if any, and one of L × L for windows alone."""
    if local_size is None:
        return attention_mask
    # Made whole even where the window holds everything, so that a layer is of one kind at every length.
    more |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(attention_mask=attention_mask, local_size=local_size, **more)


AttentionInterface.register(NAME, lens_attention)
AttentionMaskInterface.register(NAME, _key_mask)
