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

"""Ranks that share the volumes of a streamed network: what they agree on, and what they tell one another meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn as nn

from monai.networks.blocks.volume_statistics import Statistics
from monai.networks.state_dict.torch_private import children_by_key, twin_of_class
from monai.networks.volumes.exchange import Ranks
from monai.networks.volumes.slabs import Slabs
from monai.networks.volumes.split_changes import is_guard
from monai.networks.volumes.split_layers import Split, class_before_split
from monai.networks.volumes.stream_fetch import Fetch
from monai.networks.volumes.stream_sizes import Box, Span
from monai.networks.volumes.stream_storage import Layout, Resting, Storage, Transfers
from monai.networks.volumes.volume_split import VolumeSplit

__all__ = ["Company", "company_of", "fetch", "over_ranks", "unsplit"]

Found = TypeVar("Found")


def unsplit(module: nn.Module) -> nn.Module:
    """
    A network as it was before :func:`split_volume`, on the same tensors; itself if it is not split.

    Raises:
        TypeError: if a module was changed after the split in a way that hides what it was.
    """
    split = _split_of(module)
    return module if split is None else _twin(module, {})


def _twin(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    if id(module) not in known:
        children = {name: _twin(child, known) for name, child in children_by_key(module)}
        known[id(module)] = twin_of_class(module, class_before_split(module), children, is_guard)
    return known[id(module)]


def _split_of(module: nn.Module) -> VolumeSplit | None:
    return next((each.volume_split for each in module.modules() if isinstance(each, Split)), None)


class Company:
    """
    One rank that has the whole volume, or several that share it.

    Args:
        split: the volume that they share, or None.
    """

    def __init__(self, split: VolumeSplit | None) -> None:
        self.split = split

    @property
    def ranks(self) -> Ranks | None:
        """The ranks, or None for a single one."""
        return None if self.split is None else self.split.ranks

    @contextmanager
    def call(self, inputs: Sequence[torch.Tensor]) -> Iterator[None]:
        """
        A computation on ``inputs``, on which the ranks agree.

        Raises:
            ValueError: on all ranks, if their inputs do not fit together.
        """
        if self.split is None:
            yield
            return
        if self.split.check is not None:
            self.split.check()
        with self.split.call(inputs):
            yield

    def slabs(self, inputs: Sequence[torch.Tensor]) -> dict[str, Any]:
        """How the inputs are cut, as arguments of :class:`Sizes`."""
        if self.split is None:
            return {}
        cuts = [self.split.slabs(each) for each in inputs]
        return {"cuts": cuts, "axis": self.split.axis, "rank": self.split.rank}

    def know(self, cut: Slabs) -> None:
        """Keep how the result is cut, for the network's layers that get it next."""
        if self.split is not None:
            self.split.know(cut)

    def memory(self, mine: int, without_storage: bool) -> int:
        """
        The memory that every rank has: what they plan has to be the same.

        Raises:
            ValueError: on all ranks, if some have no storage.
        """
        if self.split is None:
            return mine
        told = torch.tensor([mine, int(without_storage)], device=self.split.mesh.device_type)
        said = [each.tolist() for each in self.split.ranks.all_gather(told, "shapes")]
        if len({each[1] for each in said}) > 1:
            raise ValueError("some ranks stream with storage=None, others with a storage: give all of them the same.")
        return int(min(each[0] for each in said))

    def alike(self, attempt: Callable[[], Found]) -> Found:
        """
        Do what may fail on some ranks, before they wait for one another.

        Raises:
            RuntimeError: if it failed on other ranks alone, which have their own errors.
        """
        if self.split is None:
            return attempt()
        error: Exception | None = None
        try:
            found = attempt()
        except Exception as failed:
            error = failed
        said = self.split.ranks.texts("" if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, text in enumerate(said):
            if text:
                raise RuntimeError(f"rank {rank}, which shares the volume, cannot stream it: {text}")
        return found


def company_of(module: nn.Module) -> Company:
    """The ranks that share the volumes of a network or a part of it."""
    return Company(_split_of(module))


def over_ranks(statistics: Statistics, ranks: Ranks, counts: Sequence[int]) -> Statistics:
    """
    The statistics of a volume of which every rank has seen a slab.

    Args:
        statistics: of this rank's slab.
        ranks: the ranks.
        counts: numbers of positions of all slabs.
    """
    total = Statistics()
    for count, (mean, squares) in zip(counts, ranks.all_gather(torch.stack(statistics.moments()), "norm")):
        total.merge(count, mean, squares)
    return total


def fetch(plan: Fetch, resting: Resting, held: Span, storage: Storage, transfers: Transfers, ranks: Ranks) -> None:
    """
    Get what this rank reads of the slabs of others, and let it rest beside its own.

    Args:
        plan: in which parts.
        resting: this rank's slab.
        held: which slices it reads.
        storage: where the slices of others rest.
        transfers: brings parts to the device and back.
        ranks: the ranks.
    """
    axis, (begin, end) = plan.axis, held
    own = resting.begin, resting.begin + resting.slab.shape[axis + 2]
    beside = []
    for first, last in ((begin, own[0]), (own[1], end)):
        if first < last:
            beside.append(Resting(storage.empty(plan.volume.of_length(axis, last - first), Layout.SLABS), axis, first))
    for sent in plan.rounds():
        _one_round(sent, resting, beside, transfers, ranks)
    for each in beside:
        resting.add(each.begin, each.slab)


def _one_round(
    sent: dict[tuple[int, int], Box],
    resting: Resting,
    beside: Sequence[Resting],
    transfers: Transfers,
    ranks: Ranks,
) -> None:
    slab, me = resting.slab, ranks.rank
    nothing = slab.new_empty((0,), device=transfers.device)
    parts = [
        transfers.read(resting.within(sent[me, taker])) if (me, taker) in sent else nothing
        for taker in range(ranks.size)
    ]
    boxes = [sent.get((giver, me)) for giver in range(ranks.size)]
    shapes = [(0,) if box is None else (*slab.shape[:2], *(last - first for first, last in box)) for box in boxes]
    got = ranks.all_to_all(parts, [torch.Size(shape).numel() for shape in shapes], "halo")
    del parts
    for box, shape, part in zip(boxes, shapes, got):
        if box is not None:
            begin = box[resting.axis][0]
            target = next(each for each in reversed(beside) if each.begin <= begin)
            transfers.write(target.within(box), part.view(shape))
