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

"""The scan of the demo: a real functional MR volume that nibabel ships, read through MONAI transforms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from demo.checks import DemoError
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    EnsureType,
    GridPatch,
    LoadImage,
    Orientation,
    ScaleIntensityRangePercentiles,
)

SIDE = 96
"""Rows and columns of a slice; the head lies well inside."""


def scan_path() -> Path:
    """The path of ``example4d.nii.gz`` in the installed nibabel.

    Raises:
        DemoError: when nibabel, or its test data, is not installed.
    """
    try:
        path = Path(str(resources.files("nibabel") / "tests" / "data" / "example4d.nii.gz"))
    except ModuleNotFoundError:
        raise DemoError(
            "the demo reads a scan that nibabel ships, and nibabel is missing: pip install nibabel"
        ) from None
    if not path.is_file():
        raise DemoError(
            f"{path} is missing, this nibabel came without its test data: pip install --force-reinstall nibabel"
        )
    return path


@dataclass(frozen=True)
class Scan:
    """Two volumes of one head, float32 in [0, 1], shape ``(2, 1, 96, 96, 24)``."""

    volumes: torch.Tensor

    @cached_property
    def slices(self) -> torch.Tensor:
        """The axial slices of the first volume, bottom to top: ``(24, 1, 96, 96)``."""
        return self.volumes[0].movedim(-1, 0).contiguous()

    @cached_property
    def held_out(self) -> torch.Tensor:
        """Which slices no network is trained on: every fourth, a bool mask ``(24,)``."""
        return torch.arange(len(self.slices)) % 4 == 0

    @cached_property
    def training_slices(self) -> torch.Tensor:
        """The slices to train on: ``(18, 1, 96, 96)``."""
        return self.slices[~self.held_out]

    @cached_property
    def test_slices(self) -> torch.Tensor:
        """The slices to judge by: ``(6, 1, 96, 96)``."""
        return self.slices[self.held_out]

    @cached_property
    def blocks(self) -> torch.Tensor:
        """The first volume cut into four blocks by ``GridPatch``: ``(4, 1, 48, 48, 24)``."""
        grid = GridPatch(patch_size=(SIDE // 2, SIDE // 2, self.volumes.shape[-1]))
        return torch.as_tensor(np.stack(list(grid(self.volumes[0].numpy()))))

    def tokens(self, side: int, levels: int) -> torch.Tensor:
        """Every slice as a sequence of intensity levels.

        A slice is averaged down to ``side x side`` and read row by row. Level 0 is the background,
        the other levels hold equal shares of the head.

        Returns:
            int64 tensor of shape ``(24, side * side)`` with values in ``[0, levels)``.
        """
        small = F.adaptive_avg_pool2d(self.slices, side).flatten(1)
        background = small.max() / 20
        inner = torch.linspace(0, 1, levels)[1:-1]
        edges = torch.cat([background[None], torch.quantile(small[small > background], inner)])
        return torch.bucketize(small, edges)


@lru_cache(maxsize=1)
def load_scan() -> Scan:
    """Read and prepare the scan.

    Raises:
        DemoError: when the scan cannot be found.
    """
    prepare = Compose(
        [
            LoadImage(reader="NibabelReader", image_only=True, ensure_channel_first=True),
            Orientation(axcodes="RAS", labels=None),
            CenterSpatialCrop((SIDE, SIDE, -1)),
            ScaleIntensityRangePercentiles(lower=0, upper=99.8, b_min=0.0, b_max=1.0, clip=True),
            EnsureType(track_meta=False),
        ]
    )
    return Scan(prepare(scan_path()).float().unsqueeze(1).contiguous())
