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


"""
What windows change: error maps of windows and of a streamed decode against the whole decode, on a trained autoencoder.

``python -m benchmarks seams --png FILE``. The autoencoder is the demo's, which GenerativeModels trained on slices of a
scan; the slice is held out.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.result import percent
from demo.checkpoint import as_in_monai, read_checkpoints
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import AutoencoderKL
from monai.networks.volumes import StreamedAutoencoder

__all__ = ["SeamDecode", "Seams", "measure_seams", "save_seams"]

OVERLAP = 0.4
WINDOWS = (12, 16)
"""Latents along the sides of a window; the slice has 24."""
MEMORY = 256 * 1024
"""Budget of the streamed decode in bytes: less than one volume of the last level, 288 KiB, takes."""


@dataclass(frozen=True)
class SeamDecode:
    """
    One way to decode the slice.

    Args:
        name: the way.
        apart: absolute difference from the whole decode, (H, W).
        distance: L2 norm of the difference over that of the whole decode.
        error: mean absolute difference from the slice.
    """

    name: str
    apart: torch.Tensor = field(repr=False)
    distance: float
    error: float

    def __str__(self) -> str:
        return f"{self.name}: {percent(self.distance)} from the whole decode, {self.error:.4f} from the slice"


@dataclass(frozen=True)
class Seams:
    """The slice, its whole decode, and the other ways to decode it."""

    image: torch.Tensor = field(repr=False)
    whole: torch.Tensor = field(repr=False)
    decodes: Sequence[SeamDecode]


def measure_seams() -> Seams:
    """
    Decode a slice whole, streamed and in windows.

    Raises:
        DemoError: when the checkpoint of the demo is missing.
    """
    old = read_checkpoints().autoencoder
    torch.set_num_threads(1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of inferers, about how they index
        net = AutoencoderKL(**as_in_monai(old.options)).eval()
        old.load_into(net)
        latent = net.encode(old.input)[0]
        whole = net.decode(latent)
        streamed = StreamedAutoencoder(net, MEMORY)
        parts = streamed.needs("decode", latent).parts
        found = {f"streamed, {parts} parts": streamed.decode(latent)}
        for side in WINDOWS:
            inferer = SlidingWindowInferer((side, side), sw_batch_size=1, overlap=OVERLAP, mode="gaussian")
            size = latent.shape[-1]
            found[f"windows of {side} of {size}, overlap {OVERLAP}"] = inferer(latent, net.decode)
    decodes = [
        SeamDecode(
            name,
            (image - whole)[0, 0].abs(),
            float((image - whole).norm() / whole.norm()),
            float((image - old.input).abs().mean()),
        )
        for name, image in {"whole": whole, **found}.items()
    ]
    return Seams(old.input[0, 0], whole[0, 0], decodes)


def save_seams(path: Path, seams: Seams) -> None:
    """Write the PNG: the slice, its whole decode, and the error maps on one scale of colors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    others = seams.decodes[1:]
    figure, axes = plt.subplots(1, 2 + len(others), figsize=(3.4 * (2 + len(others)), 3.9), layout="constrained")
    _show(axes[0], seams.image, "the slice, held out", "gray", 1.0)
    _show(axes[1], seams.whole, "whole decode", "gray", 1.0)
    most = max(float(decode.apart.max()) for decode in others)
    for panel, decode in zip(axes[2:], others):
        colors = _show(panel, decode.apart, f"{decode.name}\nL2 {percent(decode.distance)}", "inferno", most)
    figure.colorbar(colors, ax=axes[2:], shrink=0.75, label="absolute difference from the whole decode")
    figure.suptitle("A trained AutoencoderKL: windows differ from the whole decode, parts do not", fontsize=11)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _show(axes: Any, image: torch.Tensor, title: str, colors: str, most: float) -> Any:
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()
    return axes.imshow(image.T, origin="lower", cmap=colors, vmin=0, vmax=most)
