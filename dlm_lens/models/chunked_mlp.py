"""The MLP of a layer, computed for a few positions at a time where its intermediates would take too much memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChunkedMLP(nn.Module):
    """An MLP computed for ``positions`` at a time: what it holds besides its output no longer grows with the length.

    It takes the place of ``mlp`` in a layer, and has the same parameters under the same names. Positions do not see
    each other in an MLP, so the result is the same up to the rounding of other shapes.
    """

    def __init__(self, mlp: nn.Module, positions: int) -> None:
        super().__init__()
        for name, child in mlp.named_children():
            self.add_module(name, child)
        self.positions = positions
        self._whole = (mlp,)  # in a tuple, or its parameters would be listed twice

    @property
    def whole(self) -> nn.Module:
        """The MLP that this computes."""
        return self._whole[0]

    # Unrolled by a compiler, the loop would be compiled anew for every length; its parts are compiled.
    @torch.compiler.disable(recursive=False)
    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] → [B, L, D]."""
        if x.shape[1] <= self.positions:
            return self.whole(x)
        out = torch.empty_like(x)
        for first in range(0, x.shape[1], self.positions):
            some = slice(first, first + self.positions)
            # As a tensor of its own: products with 2:4 weights take no slice of a longer one, even one without gaps.
            out[:, some] = self.whole(x[:, some].flatten(0, 1).unflatten(0, (len(x), -1)))
        return out
