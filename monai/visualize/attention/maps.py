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

"""What some queries attend to, folded to the grid of the keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["AttentionMap"]


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """
    The attention of some queries of one block in one forward pass.

    Args:
        name: the block's name in the network; the parts that a wrapper such as ``DataParallel`` adds are left out.
        call: how many times the block had been called before inside the capture.
        weights: softmax over the keys, before any dropout, (B, heads or 1, N, K).
        queries: numbers of the query tokens, (N,).
        query_grid: grid that the query tokens fill in row-major order, after any class token; None if they fill none.
        key_grid: grid of the key tokens, likewise.
        class_tokens: how many keys come before those of the grid.
        image_size: spatial size of the image that the network was given, None where it was given none.
        covered_size: the part of that image, from its first voxel on, that a grid covers: less than ``image_size``
            where patches do not fill the image.
    """

    name: str
    call: int
    weights: torch.Tensor
    queries: torch.Tensor
    query_grid: tuple[int, ...] | None
    key_grid: tuple[int, ...] | None
    class_tokens: int
    image_size: tuple[int, ...] | None
    covered_size: tuple[int, ...] | None = None

    def on_grid(self) -> torch.Tensor:
        """
        Put the weights where the keys lie, without those of class tokens.

        Returns:
            (B, heads or 1, N, sizes of the grid)

        Raises:
            ValueError: if the keys lie on no grid.
        """
        if self.key_grid is None:
            raise ValueError(
                f"the {self.weights.shape[-1]} keys of {self.name!r} lie on no grid (they are words, a sequence, or "
                "patches drawn at random): use its weights as they are, or capture other blocks."
            )
        out: torch.Tensor = self.weights[..., self.class_tokens :].unflatten(-1, self.key_grid)
        return out

    def to_class_token(self) -> torch.Tensor:
        """The weights of the class tokens, (B, heads or 1, N, class_tokens); the last axis is empty without any."""
        return self.weights[..., : self.class_tokens]
