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

"""The attention of one patch, as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
import torch.nn as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from demo.checkpoint import OldCheckpoint
from demo.checks import Check
from demo.masked import fill_in, from_patches, paint, to_patches
from demo.measure import difference
from monai.networks.blocks import SABlock

QUERY = (3, 3)
"""Column and row of the patch whose attention is shown, from the lower left corner."""
OUTLINE = "#00e5ff"
RECONSTRUCTION = (
    "a slice that was held out",
    "the same, through the latents of\nan AutoencoderKL without projection",
    "absolute difference",
)


class Attention:
    """What the picture shows, computed by a network that keeps its attention matrices.

    Args:
        net: the network of the checkpoint, built with ``save_attn=True``.
        checkpoint: its weights and head.
        image: the slice of the scan, ``(1, 1, H, W)``.
    """

    def __init__(self, net: nn.Module, checkpoint: OldCheckpoint, image: torch.Tensor) -> None:
        self.patch = tuple(checkpoint.options["patch_size"])
        self.grid = tuple(s // p for s, p in zip(checkpoint.options["img_size"], self.patch))
        query = QUERY[0] * self.grid[1] + QUERY[1]
        mask = checkpoint.hidden.clone()
        mask[0, query] = True
        self.image, self.hidden = image, paint(image, mask, self.patch)
        checkpoint.load_into(net)
        with torch.no_grad():
            filled = fill_in(net.eval(), checkpoint.head_layer(), self.hidden)
        whole = torch.where(mask.unsqueeze(2), filled, to_patches(image, self.patch))
        self.filled = from_patches(whole, self.grid, self.patch)
        last = [block for block in net.modules() if isinstance(block, SABlock)][-1]
        self.weights = last.att_mat[0].mean(0)[query].reshape(self.grid)

    def checks(self) -> tuple[Check, ...]:
        """The attention of a patch is a distribution."""
        return (
            Check("sum of the attention of a patch, less one", difference(self.weights.sum(), torch.ones(())), 1e-5),
        )

    def save(self, path: Path, title: str, reconstruction: torch.Tensor | None = None) -> None:
        """Write the PNG, beside it a slice and its reconstruction, (2, H, W), if there is one."""
        over = self.weights.repeat_interleave(self.patch[0], 0).repeat_interleave(self.patch[1], 1)
        rows = 1 if reconstruction is None else 2
        figure = Figure(figsize=(12, 4.4 * rows), layout="constrained")
        figure.suptitle(title)
        panels = figure.subplots(rows, 3, squeeze=False)
        left, middle, right = panels[0]
        seen = self.hidden[0, 0].masked_fill(self.hidden[0, 0] < 0, float("nan"))
        _show(left, seen, "what the network sees\n(hidden patches in blue)")
        _show(middle, self.image[0, 0], "where the outlined patch looks\n(last block, mean of the heads)")
        colors = middle.imshow(100 * over.T, origin="lower", cmap="inferno", alpha=0.65)
        bar = figure.colorbar(colors, ax=middle, shrink=0.8)
        bar.set_label("attention in %")
        _show(right, self.filled[0, 0], "hidden patches filled in\nby the network")
        for axes in (left, middle, right):
            corner = (QUERY[0] * self.patch[0] - 0.5, QUERY[1] * self.patch[1] - 0.5)
            axes.add_patch(Rectangle(corner, *self.patch, fill=False, edgecolor=OUTLINE, linewidth=2))
        if reconstruction is not None:
            images = (*reconstruction, (reconstruction[0] - reconstruction[1]).abs())
            for axes, image, words in zip(panels[1], images, RECONSTRUCTION):
                _show(axes, image, words)
        figure.savefig(path, dpi=120)


def _show(axes: Axes, image: torch.Tensor, title: str) -> None:
    gray = matplotlib.colormaps["gray"].with_extremes(bad="#1f3a68")
    axes.imshow(image.T, origin="lower", cmap=gray, vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
