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


"""Attention drawn over the image, a row for each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from monai.utils.module import optional_import

from .maps import AttentionMap
from .on_image import (
    Plane,
    affine_of,
    attention_of_query,
    captured_voxel,
    chosen_heads,
    covered_part,
    image_planes,
    maximum_voxel,
    on_voxels,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_attention"]

WIDTH, LOWEST, HIGHEST = 11.0, 1.4, 4.5
"""Width of a figure, and the least and greatest height of a row's highest panel, in inches."""
BAR, TITLES, LINE = 1.6, 0.95, 0.25
"""Width of a color bar, height of the titles of a row, and of a further line of them, in inches."""
MOST_ROWS, LONGEST_LINE = 100, 110
CROSS = "#00e5ff"
LETTERS: tuple[dict[str, Any], ...] = (  # where the letters of a panel's left, right, bottom and top end stand
    {"x": 0.02, "y": 0.5, "ha": "left", "va": "center"},
    {"x": 0.98, "y": 0.5, "ha": "right", "va": "center"},
    {"x": 0.5, "y": 0.02, "ha": "center", "va": "bottom"},
    {"x": 0.5, "y": 0.98, "ha": "center", "va": "top"},
)


def plot_attention(
    image: torch.Tensor,
    maps: AttentionMap | Sequence[AttentionMap],
    query: Sequence[int] | str | None = None,
    head: int | str | None = None,
    *,
    batch: int = 0,
    channel: int = 0,
    mode: str = "linear",
    alpha: float = 0.55,
    label: str = "attention weight",
    name_voxel: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None,
) -> Figure:
    """
    Draw what a query attends to over the image, a row for each layer.

    A 2-D image is drawn beside its overlay. Of a 3-D image three orthogonal planes are drawn: through the query, which
    a cross marks, below a row with the image alone; or else through the maximum of each row. An image with an affine is
    drawn with the spacing of its voxels and with the letters R, L, A, P, S and I at the ends of its axes, turned as
    :func:`monai.visualize.attention.on_image.image_planes` says. The colors of a row range over what it shows.

    Args:
        image: ``(C, *size)`` with 2 or 3 axes; a MetaTensor has an affine.
        maps: what was captured, with keys on a grid.
        query: a voxel of the image, or "class"; by default the one that was captured, or the mean of several.
        head: which, or "all" for a row each; None takes the mean.
        batch: which image of the batch.
        channel: which channel of the image.
        mode: see :func:`upsample_attention`.
        alpha: how opaque the attention is.
        label: of the color bars.
        name_voxel: from a voxel of the image to the one that titles name, as that of a scan which the image was cut
            from; by default itself.

    Returns:
        a figure that pyplot does not know of: ``figure.savefig("attention.png")``.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is no map, no such query, head, image or channel, or too many rows; if the image has other
            axes than the grid.
    """
    maps = [maps] if isinstance(maps, AttentionMap) else list(maps)
    size, affine = tuple(image.shape[1:]), affine_of(image)
    planes = image_planes(len(size), affine)
    if not maps:
        raise ValueError("there is no map to draw: capture a block.")
    if not 0 <= channel < len(image):
        raise ValueError(f"the image has {len(image)} channels, there is no {channel}: count from 0.")
    mark = _mark(maps[0], query, size)
    chosen = [(attention, which) for attention in maps for which in chosen_heads(attention, head)]
    if len(chosen) > MOST_ROWS:
        raise ValueError(f"{len(chosen)} rows do not fit into a figure, {MOST_ROWS} do: choose fewer layers or heads.")
    rows = []
    for attention, which in chosen:
        weights = attention_of_query(attention, size, query, which, batch)
        rows.append(_row(attention, which, weights, size, planes, mark, mode, name_voxel))
    pixels = np.asarray(torch.as_tensor(image)[channel].detach().cpu().float())
    return _Sheet(pixels, planes, mark, alpha, label, name_voxel).draw(rows)


@dataclass(frozen=True)
class _Row:
    """A layer in the figure: its title, the voxel that its planes go through, and the weights on each plane."""

    title: str
    voxel: tuple[int, ...]
    cuts: list[np.ndarray]


def _row(
    attention: AttentionMap,
    head: Any,
    weights: torch.Tensor,
    size: Sequence[int],
    planes: Sequence[Plane],
    mark: tuple[int, ...] | None,
    mode: str,
    name_voxel: Callable[[tuple[int, ...]], tuple[int, ...]] | None,
) -> _Row:
    maximum = maximum_voxel(attention, weights, size)
    name = attention.name if head is None else f"{attention.name}, head {head}"
    named = name_voxel(maximum) if name_voxel else maximum
    title = fill(f"{name}: maximum {float(weights.max()):.3g} at voxel {named}", LONGEST_LINE)
    voxels = on_voxels(weights, covered_part(attention, size), size, mode).detach().cpu().numpy()
    voxel = mark or maximum
    return _Row(title, voxel, [plane.cut(voxels, voxel).copy() for plane in planes])  # without the rest of the volume


def _mark(attention: AttentionMap, query: Sequence[int] | str | None, size: Sequence[int]) -> tuple[int, ...] | None:
    """The voxel that the cross marks."""
    if query is None:
        return captured_voxel(attention, size)
    return None if isinstance(query, str) else tuple(int(place) for place in query)


@dataclass(frozen=True)
class _Sheet:
    """
    Draws rows of panels.

    Args:
        pixels: the image, ``(*size)``.
        planes: a panel each.
        mark: the voxel with the cross.
        alpha: how opaque the weights are.
        label: of the weights' color bars.
        name_voxel: from a voxel of the image to the one that titles name.
    """

    pixels: np.ndarray
    planes: Sequence[Plane]
    mark: tuple[int, ...] | None
    alpha: float
    label: str
    name_voxel: Callable[[tuple[int, ...]], tuple[int, ...]] | None

    def draw(self, rows: Sequence[_Row]) -> Figure:
        figure_class, found = optional_import("matplotlib.figure", name="Figure")
        if not found:
            raise ImportError("matplotlib draws the attention and is not installed: pip install matplotlib.")
        flat = self.pixels.ndim == 2
        above = [] if flat or self.mark is None else [self.mark]  # of the rows with weights, one for the image
        extents = [plane.extent(self.pixels.shape) for plane in self.planes] * (2 if flat else 1)
        widths, highest = [width for width, _ in extents], max(height for _, height in extents)
        lines = max(row.title.count("\n") for row in rows) + (not self.planes[0].codes)
        height = TITLES + LINE * lines + max(highest * min((WIDTH - BAR) / sum(widths), HIGHEST / highest), LOWEST)
        draws = [partial(self._image_row, voxel=voxel) for voxel in above]
        draws += [partial(self._weights_row, row=row) for row in rows]
        figure = figure_class(figsize=(WIDTH, height * len(draws)), layout="constrained")
        for part, draw in zip(figure.subfigures(len(draws), 1, squeeze=False)[:, 0], draws):
            draw(part, part.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0])
        out: Figure = figure
        return out

    def _image_row(self, part: Any, panels: Sequence[Any], voxel: Sequence[int]) -> None:
        named = self.name_voxel(tuple(voxel)) if self.name_voxel else tuple(voxel)
        part.suptitle(f"image, with the query at voxel {named}", fontsize=11)
        shown = [self._panel(axes, plane, voxel) for axes, plane in zip(panels, self.planes)]
        part.colorbar(shown[0], ax=list(panels), label="image intensity", pad=0.01)

    def _weights_row(self, part: Any, panels: Sequence[Any], row: _Row) -> None:
        part.suptitle(row.title, fontsize=11)
        if len(panels) > len(self.planes):  # of a 2-D image
            self._panel(panels[0], self.planes[0], row.voxel, "image")
            panels = panels[1:]
        colors = {"vmin": min(cut.min() for cut in row.cuts), "vmax": max(cut.max() for cut in row.cuts)}
        colors |= {"cmap": "inferno", "alpha": self.alpha, "zorder": 1}
        for axes, plane, cut in zip(panels, self.planes, row.cuts):
            self._panel(axes, plane, row.voxel)
            over = axes.imshow(cut, origin="lower", aspect=axes.get_aspect(), **colors)
        part.colorbar(over, ax=list(panels), label=self.label, pad=0.01).solids.set_alpha(1)

    def _panel(self, axes: Any, plane: Plane, voxel: Sequence[int], title: str = "") -> Any:
        """The image's pixels with the letters of its axes and the cross."""
        low, high = _window(self.pixels)
        aspect = plane.spacing[1] / plane.spacing[0]
        pixels = plane.cut(self.pixels, voxel)
        shown = axes.imshow(pixels, origin="lower", aspect=aspect, cmap="gray", vmin=low, vmax=high)
        axes.set(xticks=[], yticks=[])
        # where voxels go by other names, the axes of these may be others, too: the title of the row has all of them
        named = plane.title(voxel) if self.name_voxel is None else plane.name
        axes.set_title(", ".join(filter(None, (title, named))), fontsize=10)
        if not plane.codes:
            axes.set_xlabel(f"axis {plane.across} →")
            axes.set_ylabel(f"← axis {plane.up}")
        for code, place in zip(plane.codes, LETTERS):
            box = {"facecolor": "black", "edgecolor": "none", "alpha": 0.5, "pad": 1}
            axes.text(s=code, transform=axes.transAxes, color="white", fontsize=9, bbox=box, zorder=3, **place)
        if self.mark is not None:
            column, row = plane.point(self.mark, self.pixels.shape)
            cross = {"marker": "+", "color": CROSS, "markersize": 14, "markeredgewidth": 1.6, "zorder": 4}
            axes.plot(column, row, clip_on=False, scalex=False, scaley=False, **cross)
        return shown


def _window(pixels: np.ndarray) -> tuple[float, float]:
    """From black to white: without the half percent of darkest and brightest voxels."""
    finite = pixels[np.isfinite(pixels)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, (0.5, 99.5))
    return (float(low), float(high)) if low < high else (float(finite.min()), float(finite.max()))
