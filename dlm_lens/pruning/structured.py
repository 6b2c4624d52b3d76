"""Structured pruning: whole MLP channels and attention heads go, and the matrices really shrink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dlm_lens.pruning.amount import is_share
from dlm_lens.pruning.criteria import wanda_scores
from dlm_lens.pruning.sparsegpt import damped

if TYPE_CHECKING:
    from dlm_lens.models import DLM, Spec

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUT = "self_attn.o_proj"
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
DOWN = "mlp.down_proj"

# Matrix units are fast where widths are multiples of this; so are pruned MLPs where the whole ones were.
_CHANNELS = 8
_DAMPING = 0.01


@dataclass(frozen=True)
class Structure:
    """The share ``ratio`` in [0, 1) of the MLP channels and of the attention heads of every layer that goes.

    Heads that share a key head go together, so it is key heads that are counted. At least one stays, and channels are
    rounded to a multiple of 8 where the MLP was one.
    """

    ratio: float

    def __post_init__(self) -> None:
        if not is_share(self.ratio):
            raise ValueError(
                f"structured={self.ratio!r} must be in [0, 1): the share of heads and channels that is pruned"
            )

    @property
    def label(self) -> str:
        return f"structured {100 * self.ratio:g}%"

    def kv_heads(self, spec: Spec) -> int:
        """Key heads that stay in every layer."""
        return max(1, round((1 - self.ratio) * spec.kv_heads))

    def channels(self, spec: Spec) -> int:
        """MLP channels that stay in every layer."""
        step = 1 if spec.mlp % _CHANNELS else _CHANNELS
        return max(step, step * round((1 - self.ratio) * spec.mlp / step))

    def spec(self, spec: Spec) -> Spec:
        """The facts of the pruned model."""
        kv_heads = self.kv_heads(spec)
        heads = spec.heads // spec.kv_heads * kv_heads
        return replace(spec, heads=heads, kv_heads=kv_heads, mlp=self.channels(spec))

    def check(self, dlm: DLM) -> None:
        """Raise ValueError if the layers of a model are not made of the matrices that this knows how to cut."""
        for index, layer in enumerate(dlm.layers):
            names = {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
            if wrong := sorted(names ^ {*QKV, OUT, *GATE_UP, DOWN}):
                raise ValueError(
                    f"structured pruning knows layers of q, k, v, o, gate, up and down, but layer {index} of"
                    f" {dlm.spec.name!r} differs in {', '.join(wrong)}; give a sparsity or a pattern instead"
                )

    def apply(self, dlm: DLM) -> None:
        """Tell a model whose layers have been cut what shape it is now."""
        dlm.spec = self.spec(dlm.spec)
        config = dlm.model.config
        config.head_dim = dlm.spec.head_dim  # no longer follows from the number of heads
        config.num_attention_heads, config.num_key_value_heads = dlm.spec.heads, dlm.spec.kv_heads
        config.intermediate_size = dlm.spec.mlp


@torch.no_grad()
def cut_layer(
    layer: nn.Module, structure: Structure, spec: Spec, method: str, statistics: Mapping[str, Any]
) -> None:
    """Remove heads and MLP channels from a ``layer`` of a model of ``spec``, in place.

    Those go whose part in the layer's output counts least (:func:`saliency`), by ``"magnitude"`` those of the smallest
    weights (:func:`group_size`). By ``"sparsegpt"`` the output matrices are then refitted to make up for them
    (:func:`reconstruct`). ``statistics`` has what calibration kept of the inputs of the two output matrices, by name;
    ``"magnitude"`` needs none.
    """
    parts = dict(layer.named_modules())
    for out, sources, kept, groups in (
        (OUT, QKV, structure.kv_heads(spec), spec.kv_heads),
        (DOWN, GATE_UP, structure.channels(spec), spec.mlp),
    ):
        linear: Any = parts[out]
        incoming: list[Any] = [parts[name] for name in sources]
        statistic = statistics.get(out)
        if method == "magnitude":
            score = group_size(linear.weight, [source.weight for source in incoming], groups)
        else:
            score = saliency(linear.weight, statistic, groups)
        stay = score.argsort(descending=True, stable=True)[:kept].sort().values
        columns = spread(stay, linear.in_features // groups)
        weight = linear.weight[:, columns]
        if method == "sparsegpt":
            assert statistic is not None
            weight = reconstruct(linear.weight, statistic.hessian, columns)
        set_linear(linear, weight, linear.bias)
        for source in incoming:
            rows = spread(stay, source.out_features // groups)
            set_linear(source, source.weight[rows], None if source.bias is None else source.bias[rows])


def group_size(out: Tensor, sources: list[Tensor], groups: int) -> Tensor:
    """Σ w² over all weights that go with each group: its columns of ``out`` and its rows of ``sources``; [groups]."""
    total = out.float().square().sum(0).unflatten(0, (groups, -1)).sum(1)
    for source in sources:
        total += source.float().square().sum(1).unflatten(0, (groups, -1)).sum(1)
    return total


def saliency(weight: Tensor, statistic: Any, groups: int) -> Tensor:
    """What the output loses with each group of neighbouring columns S of ``weight`` [out, in]; [groups].

    From norms of the inputs (Wanda) Σ |W_ij| · ‖X_j‖₂ over the group. From a Hessian (SparseGPT) the least error that
    the group's removal alone leaves when all other columns make up for it, tr(W_S ([H⁻¹]_SS)⁻¹ W_Sᵀ).
    """
    if hasattr(statistic, "norms"):
        return wanda_scores(weight, statistic.norms).sum(0).unflatten(0, (groups, -1)).sum(1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(statistic.hessian, _DAMPING)))
    width = weight.shape[1] // groups
    # [groups, width, width]: the blocks on the diagonal
    blocks = inverse.unflatten(0, (groups, width)).unflatten(2, (groups, width)).diagonal(dim1=0, dim2=2)
    blocks = blocks.permute(2, 0, 1)
    columns = weight.double().unflatten(1, (groups, width)).permute(1, 2, 0)  # [groups, width, out]
    return (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))


def reconstruct(weight: Tensor, hessian: Tensor, columns: Tensor) -> Tensor:
    """The weights [out, n] of the ``columns`` K that stay, refitted so that ‖W X − W′ X_K‖² is least.

    W′ = W H_·K (H_KK)⁻¹ with the damped Hessian: what SparseGPT does when whole columns go, all at once. Computed in
    float64; returns the dtype of ``weight``.
    """
    full = damped(hessian, _DAMPING)
    factor = torch.linalg.cholesky(full[columns][:, columns])
    target = weight.double() @ full[:, columns]
    return torch.cholesky_solve(target.T, factor).T.to(weight.dtype).contiguous()


def spread(groups: Tensor, width: int) -> Tensor:
    """The indices of all members of ``groups`` of so many neighbours each, in order."""
    return (groups[:, None] * width + torch.arange(width, device=groups.device)).flatten()


def set_linear(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give a matrix other weights [out, in], of any shape."""
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    linear.register_parameter(
        "bias", None if bias is None else nn.Parameter(bias.contiguous(), requires_grad=False)
    )
    linear.out_features, linear.in_features = weight.shape
