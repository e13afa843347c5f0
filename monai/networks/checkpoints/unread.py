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

"""Tensors of a file whose values have not been read, because they cannot be mapped as they lie there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["Unread", "fetched", "unread"]


class Unread(torch.Tensor):
    """A tensor that is still in its file: its shape and type are known, its values are not."""

    read: Callable[[], torch.Tensor]


def unread(shape: Sequence[int], dtype: torch.dtype, read: Callable[[], torch.Tensor]) -> Unread:
    """
    A tensor whose values are read later.

    Args:
        shape: its shape.
        dtype: its type.
        read: reads it.
    """
    tensor = torch.Tensor._make_subclass(Unread, torch.empty(tuple(shape), dtype=dtype, device="meta"))
    tensor.read = read
    return tensor


def fetched(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its values."""
    return tensor.read() if isinstance(tensor, Unread) else tensor
