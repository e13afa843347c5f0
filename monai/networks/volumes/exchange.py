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
What ranks tell one another, forward and backward, by torch's collectives.

Each of the functions here is one node of the autograd graph on every rank, whatever that rank has to send: so all ranks
communicate in their backward passes, in the same order. Every collective is over when its function returns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from monai.networks.state_dict.torch_private import timeout_of
from monai.networks.volumes.slabs import Slabs

__all__ = ["Ranks", "Traffic", "add_over_ranks", "empty_beside", "extended", "joined", "neighbors"]


@dataclass(eq=False)
class Traffic:
    """
    What this rank has sent.

    Args:
        calls_by_kind: number of collectives by what they were for: "halo", "norm", "tokens", "shapes", ...
        sent_by_kind: number of bytes that left this rank, likewise.
    """

    calls_by_kind: Counter[str] = field(default_factory=Counter)
    sent_by_kind: Counter[str] = field(default_factory=Counter)

    @property
    def calls(self) -> int:
        """Number of collectives."""
        return sum(self.calls_by_kind.values())

    @property
    def sent(self) -> int:
        """Number of bytes that left this rank."""
        return sum(self.sent_by_kind.values())

    def add(self, kind: str, sent: int) -> None:
        """Count one collective."""
        self.calls_by_kind[kind] += 1
        self.sent_by_kind[kind] += sent


class Ranks:
    """
    The ranks that share a volume, and their collectives.

    Args:
        group: their process group.
        rank: the number of this one among them.
        size: how many they are.
    """

    def __init__(self, group: Any, rank: int, size: int) -> None:
        self.group, self.rank, self.size = group, rank, size
        self.counters: list[Traffic] = []

    def all_to_all(self, parts: Sequence[torch.Tensor], sizes: Sequence[int], kind: str) -> list[torch.Tensor]:
        """
        Send a part to every rank.

        Args:
            parts: what goes to each of them, all of one type.
            sizes: how many numbers come from each of them.
            kind: what it is for.

        Returns:
            what each of them sent, flat
        """
        given = [part.numel() for part in parts]
        sent = torch.cat([part.reshape(-1) for part in parts])
        got = sent.new_empty(sum(sizes))
        with self._talking(kind, (sent.numel() - given[self.rank]) * sent.element_size()):
            dist.all_to_all_single(got, sent, list(sizes), given, group=self.group)
        return list(got.split(list(sizes)))

    def all_gather(self, x: torch.Tensor, kind: str) -> list[torch.Tensor]:
        """What all ranks have in the place of ``x``, of one shape and type."""
        x = x.contiguous()
        whole = [torch.empty_like(x) for _ in range(self.size)]
        with self._talking(kind, x.numel() * x.element_size() * (self.size - 1)):
            dist.all_gather(whole, x, group=self.group)
        return whole

    def all_reduce(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        """The sum over all ranks, in place."""
        with self._talking(kind, 2 * x.numel() * x.element_size() * (self.size - 1) // self.size):
            dist.all_reduce(x, group=self.group)
        return x

    def texts(self, text: str) -> list[str]:
        """What all ranks say."""
        said: list[Any] = [None] * self.size
        with self._talking("shapes", len(text) * (self.size - 1)):
            dist.all_gather_object(said, text, group=self.group)
        return said

    @contextmanager
    def _talking(self, kind: str, sent: int) -> Iterator[None]:
        """Count a collective, and say what it means that it failed."""
        for counter in self.counters:
            counter.add(kind, sent)
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self.rank} of {self.size} could not share a volume with the others ({kind}): another rank has "
                f"died, hangs, or runs something else. A rank waits for the others for a timeout of "
                f"{timeout_of(self.group)}, which init_process_group(timeout=...) sets. {error}"
            ) from error


class _Extended(torch.autograd.Function):
    """A slab with the slices around it that a layer needs."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, ranks: Ranks, dim: int, slabs: Slabs, needed: list[tuple[int, int]]
    ) -> torch.Tensor:
        ctx.ranks, ctx.dim, ctx.slabs, ctx.needed = ranks, dim, slabs, needed
        before, after = neighbors(x, ranks, dim, slabs, needed)
        first, length = before.shape[dim], x.shape[dim]
        wide = empty_beside(x, dim, first + length + after.shape[dim])
        wide.narrow(dim, 0, first).copy_(before)
        wide.narrow(dim, first, length).copy_(x)
        wide.narrow(dim, first + length, after.shape[dim]).copy_(after)
        return wide

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, None, None, None, None]:
        (grad,) = grads
        ranks, dim, slabs, needed = ctx.ranks, ctx.dim, ctx.slabs, ctx.needed
        mine, had = slabs.range_of(ranks.rank), needed[ranks.rank]
        given = [_overlap(had, slabs.range_of(rank)) for rank in range(ranks.size)]
        taken = [_overlap(mine, needed[rank]) for rank in range(ranks.size)]
        given[ranks.rank], taken[ranks.rank] = (had[0], had[0]), (mine[0], mine[0])
        area = grad.numel() // grad.shape[dim]
        parts = [grad.narrow(dim, begin - had[0], end - begin) for begin, end in given]
        got = ranks.all_to_all(parts, [(end - begin) * area for begin, end in taken], "halo")
        own = grad.narrow(dim, mine[0] - had[0], mine[1] - mine[0]).clone()
        shape = list(own.shape)
        shape[dim] = -1
        for (begin, end), part in zip(taken, got):
            if part.numel():
                own.narrow(dim, begin - mine[0], end - begin).add_(part.view(shape))
        return own, None, None, None, None


class _Joined(torch.autograd.Function):
    """The slabs of all ranks, one after another."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ranks: Ranks, dim: int, slabs: Slabs, kind: str) -> torch.Tensor:
        ctx.ranks, ctx.dim, ctx.slabs, ctx.kind = ranks, dim, slabs, kind
        longest = max(slabs.lengths)
        if x.shape[dim] < longest:  # collectives that gather want one shape
            shape = list(x.shape)
            shape[dim] = longest - x.shape[dim]
            x = torch.cat([x, x.new_zeros(shape)], dim)
        parts = ranks.all_gather(x, kind)
        return torch.cat([part.narrow(dim, 0, length) for part, length in zip(parts, slabs.lengths)], dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, None, None, None, None]:
        (grad,) = grads
        ranks, dim, slabs = ctx.ranks, ctx.dim, ctx.slabs
        parts = [grad.narrow(dim, begin, length) for begin, length in zip(slabs.begins, slabs.lengths)]
        got = ranks.all_to_all(parts, [parts[ranks.rank].numel()] * ranks.size, ctx.kind)
        return torch.stack(got).sum(0).view(parts[ranks.rank].shape), None, None, None, None


class _Added(torch.autograd.Function):
    """The sum over all ranks, which every rank uses: it gets the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, ranks: Ranks, kind: str) -> torch.Tensor:
        ctx.ranks, ctx.kind = ranks, kind
        return ranks.all_reduce(x.clone(), kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, None, None]:
        return ctx.ranks.all_reduce(grads[0].clone(), ctx.kind), None, None


def empty_beside(x: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """A tensor as ``x`` with another size along ``dim``, whose axes lie in memory in the same order."""
    shape = [*x.shape[:dim], size, *x.shape[dim + 1 :]]
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return x.new_empty([shape[axis] for axis in order]).permute([order.index(axis) for axis in range(x.dim())])


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """What two ranges share; a range of no length, where the first begins, if that is nothing."""
    begin, end = max(one[0], other[0]), min(one[1], other[1])
    return (begin, end) if begin < end else (one[0], one[0])


def neighbors(
    x: torch.Tensor, ranks: Ranks, dim: int, slabs: Slabs, needed: list[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The slices before a slab and behind it that this rank needs, without gradients; see :func:`extended`.

    Args:
        x: the slab.
        ranks: the ranks that share the volume.
        dim: the axis of ``x`` along which it is cut.
        slabs: how it is cut.
        needed: which slices of the volume each rank needs, those of its own slab included.
    """
    mine, wanted = slabs.range_of(ranks.rank), needed[ranks.rank]
    given = [_overlap(mine, needed[rank]) for rank in range(ranks.size)]
    taken = [_overlap(slabs.range_of(rank), wanted) for rank in range(ranks.size)]
    given[ranks.rank] = taken[ranks.rank] = (mine[0], mine[0])
    area = x.numel() // x.shape[dim]
    parts = [x.narrow(dim, begin - mine[0], end - begin) for begin, end in given]
    got = ranks.all_to_all(parts, [(end - begin) * area for begin, end in taken], "halo")
    shape = list(x.shape)
    sides = []
    for low, high in ((wanted[0], mine[0]), (mine[1], wanted[1])):
        side = empty_beside(x, dim, high - low)
        for (begin, end), part in zip(taken, got):
            if part.numel() and low <= begin < high:
                shape[dim] = end - begin
                side.narrow(dim, begin - low, end - begin).copy_(part.view(shape))
        sides.append(side)
    return sides[0], sides[1]


def extended(x: torch.Tensor, ranks: Ranks, dim: int, slabs: Slabs, needed: list[tuple[int, int]]) -> torch.Tensor:
    """
    A slab with the slices of other ranks before and behind it that this rank needs.

    Args:
        x: the slab.
        ranks: the ranks that share the volume.
        dim: the axis of ``x`` along which it is cut.
        slabs: how it is cut.
        needed: which slices of the volume each rank needs, those of its own slab included.
    """
    if all(each == slabs.range_of(rank) for rank, each in enumerate(needed)):
        return x
    out: torch.Tensor = _Extended.apply(x, ranks, dim, slabs, needed)
    return out


def joined(x: torch.Tensor, ranks: Ranks, dim: int, slabs: Slabs, kind: str) -> torch.Tensor:
    """
    The slabs of all ranks, one after another.

    Args:
        x: this rank's.
        ranks: the ranks that share the volume.
        dim: the axis of ``x`` along which it is cut.
        slabs: how long the slabs are.
        kind: what it is for.
    """
    out: torch.Tensor = _Joined.apply(x, ranks, dim, slabs, kind)
    return out


def add_over_ranks(x: torch.Tensor, ranks: Ranks, kind: str) -> torch.Tensor:
    """The sum of ``x`` over all ranks, with its gradient."""
    out: torch.Tensor = _Added.apply(x, ranks, kind)
    return out
