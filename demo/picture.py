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

"""What the demo draws: the attention of one patch, and what autoencoders make of a slice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib
import torch
import torch.nn as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from demo.checkpoint import ViTCheckpoint
from demo.checks import Check
from demo.masked import fill_in, from_patches, paint, to_patches
from demo.measure import difference
from demo.work import Strip
from monai.networks.blocks import SABlock
from monai.visualize.attention.figure import LETTERS

QUERY = (3, 3)
"""Column and row of the patch whose attention is shown, from the lower left corner."""
OUTLINE = "#00e5ff"
ENDS = "LRPA"
"""The ends of a slice of the scan, left, right, bottom, top: its axes point to the right ear and to the face."""
WIDTH, TITLES = 13.0, 0.9
"""Of the picture, and the height of what stands above a row of it, in inches."""


class Attention:
    """What the picture shows, computed by a network that keeps its attention matrices.

    Args:
        net: the network of the checkpoint, built with ``save_attn=True``.
        checkpoint: its weights and head.
        image: the slice of the scan, ``(1, 1, H, W)``.
    """

    def __init__(self, net: nn.Module, checkpoint: ViTCheckpoint, image: torch.Tensor) -> None:
        self.patch = tuple(checkpoint.options["patch_size"])
        self.grid = tuple(s // p for s, p in zip(checkpoint.options["img_size"], self.patch))
        query = QUERY[0] * self.grid[1] + QUERY[1]
        mask = checkpoint.hidden.clone()
        mask[0, query] = True
        self.title = f"ViT trained by {checkpoint.writer}: slice {checkpoint.slice} of the scan"
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

    def draw(self, figure: FigureBase) -> None:
        """Show what the network sees, where the patch looks, and what the network fills in."""
        over = self.weights.repeat_interleave(self.patch[0], 0).repeat_interleave(self.patch[1], 1)
        figure.suptitle(self.title)
        left, middle, right = figure.subplots(1, 3)
        seen = self.hidden[0, 0].masked_fill(self.hidden[0, 0] < 0, float("nan"))
        _show(left, seen, "what the network sees\n(hidden patches in blue)")
        _show(middle, self.image[0, 0], "where the outlined patch looks\n(last block, mean of the heads)")
        colors = middle.imshow(100 * over.T, origin="lower", cmap="inferno", alpha=0.65)
        figure.colorbar(colors, ax=middle, shrink=0.8, label="attention in %")
        _show(right, self.filled[0, 0], "hidden patches filled in\nby the network")
        for axes in (left, middle, right):
            corner = (QUERY[0] * self.patch[0] - 0.5, QUERY[1] * self.patch[1] - 0.5)
            axes.add_patch(Rectangle(corner, *self.patch, fill=False, edgecolor=OUTLINE, linewidth=2))


def draw_strip(strip: Strip, figure: FigureBase) -> None:
    """Show the images of a strip and the difference of two of them."""
    figure.suptitle(strip.title)
    *panels, last = figure.subplots(1, len(strip.images) + 1)
    for axes, image, caption in zip(panels, strip.images, strip.captions):
        _show(axes, image, caption)
    first, second = strip.compared
    colors = last.imshow((strip.images[first] - strip.images[second]).abs().T, origin="lower", cmap="inferno", vmin=0)
    figure.colorbar(colors, ax=last, shrink=0.8)
    last.set_title(f"absolute difference of\npanels {first + 1} and {second + 1}", fontsize=10)
    last.set_axis_off()


def save(path: Path, attention: Attention | None, strips: Sequence[Strip]) -> None:
    """Write the PNG, a row for the attention and one for each strip."""
    draws = [attention.draw] if attention else []
    columns = [3] * len(draws) + [len(strip.images) + 1 for strip in strips]
    draws += [partial(draw_strip, strip) for strip in strips]
    heights = [TITLES + 0.88 * WIDTH / count for count in columns]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout=ConstrainedLayoutEngine(h_pad=0.08))
    for draw, part in zip(draws, figure.subfigures(len(draws), 1, height_ratios=heights, squeeze=False)[:, 0]):
        draw(part)
    figure.savefig(path, dpi=110)


def _show(axes: Axes, image: torch.Tensor, title: str) -> None:
    """Draw a slice of the scan: the left side of the head is on the left, the face at the top."""
    gray = matplotlib.colormaps["gray"].with_extremes(bad="#1f3a68")
    axes.imshow(image.T, origin="lower", cmap=gray, vmin=0, vmax=1)
    for letter, place in zip(ENDS, LETTERS):
        axes.text(s=letter, transform=axes.transAxes, color="white", fontsize=9, **place)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
