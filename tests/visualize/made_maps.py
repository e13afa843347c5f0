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

"""Maps of attention to lay over images and to draw: made up, or captured in a network that looks at a voxel."""

from __future__ import annotations

import numpy as np
import torch

from monai.data import MetaTensor
from monai.visualize.attention.capture import capture_attention
from monai.visualize.attention.maps import AttentionMap
from tests.visualize.pointing import SIZE, pointing_vit, tilted, turned_affines

FLIPPED = np.diag([-2.0, 3.0, 4.0, 1.0])
PERMUTED = turned_affines()[-1]  # the axes run towards I, P, L
AFFINES = [("flipped", FLIPPED), ("permuted", PERMUTED), ("tilted", tilted(PERMUTED))]


def made_map(grid=(2, 3), heads=2, queries=(0, 1, 4), class_tokens=0, batch=1, **options) -> AttentionMap:
    """A map with random weights."""
    keys = int(np.prod(grid)) + class_tokens
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(batch, heads, len(queries), keys, generator=generator).softmax(-1)
    options = {"query_grid": grid, "key_grid": grid, "image_size": tuple(4 * n for n in grid), **options}
    return AttentionMap("block", 0, weights, torch.tensor(queries), class_tokens=class_tokens, **options)


def captured(voxel, query, affine=None) -> tuple[torch.Tensor, list[AttentionMap]]:
    """An image and what a query attends to in a network that looks at a voxel."""
    image = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(0))
    net = pointing_vit(voxel)
    with torch.no_grad(), capture_attention(net, queries=query) as capture:
        net(image[None])
    return (image if affine is None else MetaTensor(image, affine=torch.as_tensor(affine))), capture.maps
