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

"""What MAISI's layers share where a volume is too large to be treated as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from monai.data.meta_tensor import MetaTensor

__all__ = ["LargeVolumes", "join_pieces", "overlap", "plain_tensor"]


@dataclass(frozen=True)
class LargeVolumes:
    """
    How an autoencoder copes with volumes that hardly fit into the memory of a GPU.

    Args:
        num_splits: into how many pieces every convolution cuts its input.
        dim_split: along which spatial axis.
        norm_float16: whether norms return float16.
        print_info: whether sizes are logged.
        save_mem: whether memory that is no longer needed is given back to the GPU at once.
    """

    num_splits: int
    dim_split: int
    norm_float16: bool = False
    print_info: bool = False
    save_mem: bool = True


def overlap(reach: int, stride: int) -> int:
    """
    How many positions of its neighbor a piece gets: at least the release's three, in whole strides.

    With fewer the pieces would be smaller, but torch chooses the kernel of a convolution by the size of its input: two
    instead of three have made a training step take 1.8 times as long.

    Args:
        reach: distance between the first and the last position that the convolution's kernel meets at once.
        stride: of the convolution.
    """
    return -(-max(3, reach) // stride) * stride


def join_pieces(pieces: list[torch.Tensor], dim: int) -> torch.Tensor:
    """Concatenate along an axis, and empty the list."""
    if torch.jit.is_scripting():
        joined = torch.cat(pieces, dim=dim)
    else:
        with torch.autocast(pieces[0].device.type, enabled=False):  # which cannot join float16 on a CPU
            joined = torch.cat(pieces, dim=dim)
    pieces.clear()
    return joined


def plain_tensor(x: torch.Tensor) -> torch.Tensor:
    """``x`` without the metadata that it may carry."""
    if not torch.jit.is_scripting():
        if isinstance(x, MetaTensor):
            return x.as_tensor()
    return x
