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

"""What the ranks that share a volume agree on before a network runs: that they do the same, on slabs of one volume."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

from monai.networks.volumes.exchange import Ranks
from monai.networks.volumes.slabs import Slabs

__all__ = ["agree"]

CAPACITY = 62
"""Of how many volumes the lengths are told: enough for the residuals of a ControlNet of any depth in use."""


def agree(values: Any, ranks: Ranks, axis: int, spatial_dims: int, device: str) -> list[Slabs]:
    """
    Let all ranks tell what they run a network on, in one collective.

    Args:
        values: the network's inputs, nested in lists, tuples and dictionaries.
        ranks: the ranks that share a volume.
        axis: the spatial axis along which it is cut.
        spatial_dims: how many spatial axes it has. Tensors of two more axes are taken for slabs.
        device: type of the device on which the ranks tell it.

    Returns:
        how the volumes among the inputs are cut

    Raises:
        ValueError: on all ranks, if they have other inputs, but for the lengths of their slabs, or a slab is empty.
    """
    tensors = list(_tensors(values))
    lengths = [each.shape[axis + 2] for each in tensors if each.dim() == spatial_dims + 2][:CAPACITY]
    text = _description(tensors, axis, spatial_dims)
    code = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    message = [code, len(lengths), *lengths] + [0] * (CAPACITY - len(lengths))
    said = ranks.all_gather(torch.tensor(message, device=device), "shapes")
    told = [each.tolist() for each in said]
    if any(each[:2] != told[0][:2] for each in told):
        _refuse_other_inputs(ranks, text)
    cuts = [Slabs(column) for column in zip(*(each[2 : 2 + len(lengths)] for each in told))]
    for cut in cuts:
        if min(cut.lengths) < 1:
            raise ValueError(f"the ranks have slabs of {list(cut.lengths)} slices: every rank needs at least one.")
    return cuts


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)


def _description(tensors: list[torch.Tensor], axis: int, spatial_dims: int) -> str:
    """All that has to be the same on all ranks: not the lengths of slabs."""
    parts = []
    for tensor in tensors:
        shape: list[Any] = list(tensor.shape)
        if tensor.dim() == spatial_dims + 2:
            shape[axis + 2] = "slab"
        gradient = ", with gradient" if tensor.requires_grad else ""
        parts.append(f"({', '.join(map(str, shape))}) {str(tensor.dtype).removeprefix('torch.')}{gradient}")
    enabled = "" if torch.is_grad_enabled() else ", without gradients"
    return "; ".join(parts) + enabled


def _refuse_other_inputs(ranks: Ranks, text: str) -> None:
    """
    Raises:
        ValueError: which names the inputs of all ranks.
    """
    said = [f"rank {rank}: {each}" for rank, each in enumerate(ranks.texts(text))]
    raise ValueError(
        "the ranks that share a volume run a network on other inputs, which may differ in the lengths of slabs "
        "alone:\n" + "\n".join(said)
    )
