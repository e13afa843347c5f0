# Copyright (c) MONAI Consortium
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""How MONAI before 1.5 merged the patches of a Swin transformer, for the weights that were trained so."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["EarlyPatchMerging", "unsure_mergings"]

_NEIGHBORS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class EarlyPatchMerging(nn.Module):
    """
    Halve the size of a grid of tokens as ``downsample="merging"`` did in MONAI 0.9 to 1.4: of the eight tokens of a
    cube, two are taken twice and two never. MONAI 1.5 takes each of them once, under the same name, and so computes
    something else from the weights of before.

    Args:
        dim: width C of the tokens.
        norm_layer: builds the norm of the merged tokens from their width.
        spatial_dims: number of spatial axes; MONAI merged the tokens of images in 2-D as it does now.

    Example::

        net = SwinUNETR(in_channels=1, out_channels=14, feature_size=48, downsample=EarlyPatchMerging)
        load_checkpoint(net, "model_swinvit.pt", allow=("encoder*", "decoder*", "out*"))
    """

    def __init__(self, dim: int, norm_layer: type[nn.LayerNorm] = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        self.dim = dim
        parts = 2**spatial_dims
        self.reduction = nn.Linear(parts * dim, 2 * dim, bias=False)
        self.norm = norm_layer(parts * dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: tokens on their grid, (B, sizes, C).

        Returns:
            (B, half the sizes, rounded up, 2 C)
        """
        pad = [0, 0]
        for size in x.shape[-2:0:-1]:
            pad += [0, size % 2]
        x = F.pad(x, pad)
        if x.dim() == 4:
            parts = [x[:, first::2, second::2] for second in range(2) for first in range(2)]
        else:
            parts = [x[:, first::2, second::2, third::2] for first, second, third in _NEIGHBORS]
        out: torch.Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
        return out


def unsure_mergings(net: nn.Module) -> list[str]:
    """Names of the modules whose weights may come from MONAI before 1.5, where they merged other tokens."""
    return [
        name
        for name, module in net.named_modules()
        if (type(module).__module__, type(module).__name__) == ("monai.networks.nets.swin_unetr", "PatchMerging")
        and module.reduction.in_features == 8 * module.dim  # in 2-D nothing changed
    ]
