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


"""A network of which is known where it looks, and images of which is known where they lie."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import torch

from monai.networks.nets import ViT

SIZE, PATCH = (16, 12, 8), (4, 4, 2)
VIT = {"in_channels": 1, "img_size": SIZE, "patch_size": PATCH, "hidden_size": 8, "mlp_dim": 8, "num_heads": 1}
VIT |= {"num_layers": 1, "qkv_bias": True}
SPACING = (2.0, 3.0, 4.0)


def pointing_vit(voxel: tuple[int, ...], **options) -> ViT:
    """A ViT of which every token attends to the one that holds a voxel, with a weight of more than 0.99."""
    arguments = {**VIT, **options}
    net = ViT(**arguments).eval()
    width = arguments["hidden_size"]
    grid = [size // patch for size, patch in zip(arguments["img_size"], arguments["patch_size"])]
    token = np.ravel_multi_index([v // patch for v, patch in zip(voxel, arguments["patch_size"])], grid)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    block = net.blocks[0]
    with torch.no_grad():
        net.patch_embedding.position_embeddings[0, token, 0] = 1.0  # the norm makes sqrt(width - 1) of it
        block.norm1.weight.fill_(1.0)
        block.attn.qkv.bias[0] = 20.0  # of every query
        block.attn.qkv.weight[width, 0] = 1.0  # of that key
    return net


def turned_affines() -> list[np.ndarray]:
    """The 48 affines whose axes are those of the world in some order and direction, each with a shift of its own."""
    affines = []
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        affine = np.eye(4)
        affine[:3, :3] = 0
        for axis, (row, sign) in enumerate(zip(order, signs)):
            affine[row, axis] = sign * SPACING[axis]
        affine[:3, 3] = (-7.0, 11.0, 5.0)
        affines.append(affine)
    return affines


def tilted(affine: np.ndarray, degrees: float = 20.0) -> np.ndarray:
    """An affine turned around the world's third axis."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine
