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

"""A volume that several ranks share: how it is cut, put together, and talked about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from monai.networks.blocks.autoencoder import becomes_a_graph
from monai.networks.blocks.reach import Reach
from monai.networks.state_dict.torch_private import not_compiled
from monai.networks.volumes.agreement import agree
from monai.networks.volumes.exchange import Ranks, Traffic, add_over_ranks, extended, joined, neighbors
from monai.networks.volumes.slabs import Slabs, even_slabs
from monai.networks.volumes.split_chunks import Surrounded

__all__ = ["NO_GRAPH", "VolumeSplit"]

NO_GRAPH = (
    "a network that split_volume() has changed talks to other processes and cannot be scripted, traced or exported: do "
    "that with the network as it was built; its state dict is the same."
)


class VolumeSplit:
    """
    A volume that the ranks of a mesh share: each holds a slab of it, along one spatial axis.

    :func:`split_volume` makes it. The network's parts ask it, and its user cuts volumes and puts them together by it.

    Args:
        mesh: the ranks, along its only axis.
        axis: the spatial axis along which volumes are cut.
        spatial_dims: how many spatial axes they have.
        stride: the network's total stride along the axis: slabs of its input begin at multiples of it.

    Raises:
        ValueError: if the mesh has another number of axes than one.
    """

    def __init__(self, mesh: DeviceMesh, axis: int, spatial_dims: int, stride: int) -> None:
        if mesh.ndim != 1:
            raise ValueError(
                f"a volume is split over a mesh of one axis, got {mesh.ndim}: pass a part of it, as mesh['space']."
            )
        self.mesh, self.axis, self.spatial_dims, self.stride = mesh, axis, spatial_dims, stride
        self.ranks = Ranks(mesh.get_group(), mesh.get_local_rank(), mesh.size())
        self.traffic = Traffic()
        self.ranks.counters.append(self.traffic)
        self._calls = 0
        self._cuts: dict[int, Slabs] = {}
        self._ambiguous = False
        self.check: Callable[[], None] | None = None

    def __deepcopy__(self, memo: dict) -> VolumeSplit:
        """A copy of a network, such as the average of its weights, works with the same ranks."""
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "a split network cannot be pickled as a whole: save its state_dict(), which is that of one rank."
        )

    def __repr__(self) -> str:
        return f"VolumeSplit(rank {self.rank} of {self.size}, axis={self.axis}, stride={self.stride})"

    @property
    def rank(self) -> int:
        """The number of this rank among those that share a volume."""
        return self.ranks.rank

    @property
    def size(self) -> int:
        """How many ranks share a volume."""
        return self.ranks.size

    # ------------------------------------------------------------------------------------------------- for its user

    def slabs_of(self, length: int, latent: bool = False, zoom: int = 1) -> Slabs:
        """
        How an axis of ``length`` slices is cut, see :meth:`scatter`.

        Raises:
            ValueError: if there are too few slices.
        """
        return even_slabs(length, 1 if latent else self.stride * zoom, self.size, self.axis)

    def scatter(self, x: torch.Tensor, latent: bool = False, zoom: int = 1) -> torch.Tensor:
        """
        This rank's slab of a volume that every rank has.

        Args:
            x: the whole volume, (B, C, sizes). It is cut at multiples of the network's total stride.
            latent: whether it is an autoencoder's latent, which is cut where the slabs of its image are.
                Defaults to False.
            zoom: how many slices of ``x`` lie beside one of the network's input: more than one for the image that
                controls a ControlNet. Defaults to 1.

        Returns:
            a copy of the slab, a plain tensor

        Raises:
            ValueError: if there are fewer slices, in units of the stride, than ranks, or ``x`` has other axes; or a
                layer was put into the network that would have to be split.
        """
        self._check(x)
        if self.check is not None:
            self.check()
        dim = self.axis + 2
        begin, end = self.slabs_of(x.shape[dim], latent, zoom).range_of(self.rank)
        slab = x.as_subclass(torch.Tensor).narrow(dim, begin, end - begin)
        return slab.clone(memory_format=torch.contiguous_format)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """
        The whole volume, on every rank.

        Args:
            x: this rank's slab, (B, C, sizes).

        Raises:
            ValueError: if the slabs differ in more than their length.
        """
        if self.check is not None:
            self.check()
        with self.call((x,)):
            return joined(x, self.ranks, self.axis + 2, self.slabs(x), "gather")

    def noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator,
        latent: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        """
        This rank's slab of noise that is drawn as one process draws it: a sampling then gives that process's sample.

        Args:
            shape: of the whole noise, (B, C, sizes).
            generator: from the same seed on all ranks.
            latent: see :meth:`scatter`. Defaults to False.
            dtype: of the noise, torch's default unless given.
            device: where it is drawn, that of the generator unless given.
        """
        device = generator.device if device is None else device
        whole = torch.randn(tuple(shape), generator=generator, dtype=dtype, device=device)
        return self.scatter(whole, latent)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """
        The mean over the whole volume, the same on all ranks, for a loss.

        Its gradient is that of the sum of all ranks' losses: what averages gradients over ranks, as DDP and FSDP do,
        gives those of one process.

        Args:
            values: this rank's slab of what is averaged, (B, C, sizes).
        """
        with self.call((values,)):
            cut = self.slabs(values)
            total = add_over_ranks(values.sum(), self.ranks, "mean")
            return total / (values.numel() // values.shape[self.axis + 2] * cut.total)

    @contextmanager
    def counted(self) -> Iterator[Traffic]:
        """Count what this rank sends while the context is open; ``traffic`` holds what it has sent altogether."""
        counter = Traffic()
        self.ranks.counters.append(counter)
        try:
            yield counter
        finally:
            self.ranks.counters.remove(counter)

    # ------------------------------------------------------------------------------------------ for the network's parts

    @not_compiled
    def enter(self, values: Any, check: Callable[[], None] | None = None) -> None:
        """
        Begin a call of a module; the outermost one lets the ranks agree on its inputs.

        Args:
            values: the inputs.
            check: what the outermost call does before that.

        Raises:
            ValueError: on all ranks, if their inputs do not fit together; or what ``check`` raises.
            RuntimeError: if a graph is recorded that is to hold for other inputs.
        """
        self._calls += 1
        if becomes_a_graph():
            raise RuntimeError(NO_GRAPH)
        if self._calls == 1:
            if check is not None:
                check()
            self._cuts, self._ambiguous = {}, False
            for cut in agree(values, self.ranks, self.axis, self.spatial_dims, self.mesh.device_type):
                self.know(cut)

    def leave(self) -> None:
        """End a call of a module."""
        self._calls = max(0, self._calls - 1)

    @contextmanager
    def call(self, values: Any) -> Iterator[None]:
        """A call of a module on ``values``, see :meth:`enter`."""
        try:
            self.enter(values)
            yield
        finally:
            self.leave()

    def slabs(self, x: torch.Tensor) -> Slabs:
        """
        How the volume is cut of which ``x`` is this rank's slab.

        Raises:
            ValueError: if that is not known, or ``x`` has other axes.
        """
        self._check(x)
        length = x.shape[self.axis + 2]
        if self._ambiguous:  # which all ranks know
            said = self.ranks.all_gather(torch.tensor([length], device=self.mesh.device_type), "shapes")
            return Slabs(tuple(int(each) for each in said))
        if length not in self._cuts:
            known = [list(cut.lengths) for cut in self._cuts.values()]
            raise ValueError(
                f"a slab of {length} slices came from somewhere else than the network's layers, which made slabs of "
                f"{known}: a layer of your own that changes the size declares spatial_reach(axis)."
            )
        return self._cuts[length]

    def know(self, cut: Slabs) -> None:
        """Keep how a volume is cut. All ranks know the same cuts, and so whether a length tells which it is."""
        self._ambiguous = self._ambiguous or any(cut.conflicts_with(known) for known in self._cuts.values())
        self._cuts[cut.lengths[self.rank]] = cut

    def _check(self, x: torch.Tensor) -> None:
        if x.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"the network works on volumes of {self.spatial_dims} axes, (B, C, sizes), got {list(x.shape)}."
            )

    @not_compiled
    def around(self, x: torch.Tensor, reach: Reach, layer: str) -> tuple[torch.Tensor, int, int]:
        """
        What a layer needs for this rank's slab of its output.

        Args:
            x: this rank's slab of its input.
            reach: how far the layer looks.
            layer: its name, for messages.

        Returns:
            the slab with its neighbors; and which of the layer's outputs are those of the slab: from where on, and how
            many

        Raises:
            ValueError: see :meth:`Slabs.after`.
        """
        with self.call((x,)):
            slabs, outputs, needed = self._reached(x, reach, layer)
            wide = extended(x, self.ranks, self.axis + 2, slabs, needed)
            self.know(outputs)
        begin, end = outputs.range_of(self.rank)
        return wide, begin - needed[self.rank][0] * reach.up // reach.down, end - begin

    def surrounded(self, x: torch.Tensor, reach: Reach, layer: str) -> tuple[Surrounded, int, int]:
        """
        The same without a copy of the slab, and without gradients; see :meth:`around`.

        Returns:
            the slab and its neighbors; and which outputs of the whole volume are those of the slab: begin and end
        """
        with self.call((x,)):
            slabs, outputs, needed = self._reached(x, reach, layer)
            before = after = x.narrow(self.axis + 2, 0, 0)
            if any(each != slabs.range_of(rank) for rank, each in enumerate(needed)):
                before, after = neighbors(x, self.ranks, self.axis + 2, slabs, needed)
            self.know(outputs)
        source = Surrounded(x, before, after, self.axis + 2, slabs.begins[self.rank], slabs.total)
        return source, *outputs.range_of(self.rank)

    def _reached(self, x: torch.Tensor, reach: Reach, layer: str) -> tuple[Slabs, Slabs, list[tuple[int, int]]]:
        """The slabs of a layer's input and of its output, and which slices of the input each rank needs."""
        slabs = self.slabs(x)
        outputs = slabs.after(reach, layer)
        return slabs, outputs, slabs.needed_for(outputs, reach)
