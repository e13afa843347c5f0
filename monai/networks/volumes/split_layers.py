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

"""Layers that work on slabs: those that look a known number of slices around, and those that need a little more."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

from monai.networks.blocks.reach import Reach
from monai.networks.state_dict.torch_private import not_compiled
from monai.networks.volumes.exchange import add_over_ranks, empty_beside
from monai.networks.volumes.slabs import Slabs
from monai.networks.volumes.split_chunks import convolution_in, in_chunks
from monai.networks.volumes.volume_split import NO_GRAPH, VolumeSplit

__all__ = [
    "Split",
    "SplitCodebook",
    "SplitFrozenNorm",
    "SplitLatent",
    "SplitLayer",
    "SplitPerplexity",
    "SplitSpade",
    "class_before_split",
    "split_module",
]

_classes: dict[tuple[type, type], type] = {}


class Split:
    """
    What a module of a split network becomes besides what it is: its class is a subclass of this and of its own.

    Args:
        volume_split: the volume that its ranks share.
        split_name: the module's name in the network, for messages.
    """

    volume_split: VolumeSplit
    split_name: str

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(NO_GRAPH)


def split_module(module: nn.Module, kind: type[Split], split: VolumeSplit, name: str, **attributes: Any) -> None:
    """
    Make a module one of a split network, in place.

    Args:
        module: the module.
        kind: what it becomes besides what it is.
        split: the volume that its ranks share.
        name: its name in the network.
        attributes: what else it has to know.
    """
    pair = (kind, type(module))
    if pair not in _classes:
        # its forward keeps the signature of the class that it was
        _classes[pair] = type(f"{kind.__name__}{type(module).__name__}", pair, {"__module__": type(module).__module__})
    module.__class__ = _classes[pair]
    for key, value in {"volume_split": split, "split_name": name, **attributes}.items():
        setattr(module, key, value)


def class_before_split(module: nn.Module) -> type[nn.Module]:
    """
    The class that a module had before it was split; its own if it is none of a split network.

    Raises:
        TypeError: if its class was changed after the split.
    """
    kind = type(module)
    if not isinstance(module, Split):
        return kind
    if _classes.get(kind.__bases__) is not kind:  # type: ignore[arg-type]
        raise TypeError(
            f"{module.split_name} ({kind.__name__}) was changed after split_volume(): change it before, as by a "
            "parametrization."
        )
    return kind.__bases__[1]


class SplitLayer(Split):
    """
    A layer that gets the slices which it reaches around its slab.

    Args:
        split_reach: how far it looks along the axis.
    """

    split_reach: Reach

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the layer's own forward; the first argument is the slab of a volume."""
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._in_chunks(x, *args, **kwargs)
        split = self.volume_split
        wide, first, length = split.around(x, self.split_reach, self.split_name)
        out: torch.Tensor = super().forward(wide, *args, **kwargs)  # type: ignore[misc]
        return out.narrow(split.axis + 2, first, length)

    def _in_chunks(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The same without a copy of the slab."""
        split, reach = self.volume_split, self.split_reach
        source, begin, end = split.surrounded(x, reach, self.split_name)
        core = convolution_in(self, reach, split.axis)
        run = super().forward  # type: ignore[misc]
        if core is not None and core.conv is not self:  # a layer that cuts volumes itself knows no chunks
            run = self.in_one_piece
        return in_chunks(lambda part: run(part, *args, **kwargs), source, reach, begin, end, core)


class SplitFrozenNorm(Split):
    """A batch norm that uses its running statistics: it must not go back to those of one slab."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Raises:
            RuntimeError: if the norm is in training.
        """
        if self.training:  # type: ignore[attr-defined]
            raise RuntimeError(
                f"{self.split_name}: a batch norm in training would take the statistics of one rank's slab: call "
                "nn.SyncBatchNorm.convert_sync_batchnorm(net) before split_volume(), or leave the norm in eval()."
            )
        out: torch.Tensor = super().forward(x)  # type: ignore[misc]
        return out


class SplitSpade(Split):
    """A SPADE block whose segmentation is cut where its image is."""

    def forward(self, x: torch.Tensor, segmap: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: this rank's slab of the features.
            segmap: this rank's slab of the segmentation.

        Raises:
            ValueError: if a slab of the segmentation is not a whole number of times as long as that of the features.
        """
        self._check(x, segmap)
        out: torch.Tensor = super().forward(x, segmap)  # type: ignore[misc]
        return out

    @not_compiled
    def _check(self, x: torch.Tensor, segmap: torch.Tensor) -> None:
        """Nearest-neighbor interpolation of slabs is that of the volume if all have the same whole ratio."""
        split = self.volume_split
        with split.call((x, segmap)):
            image, labels = split.slabs(x), split.slabs(segmap)
        if not _multiple(labels, image) and not _multiple(image, labels):
            raise ValueError(
                f"{self.split_name}: the segmentation has slabs of {list(labels.lengths)} slices, which are not the "
                f"same whole number of times those of the features, {list(image.lengths)}: scatter() it as the image, "
                "whose size should be a multiple of the network's total stride."
            )


def _multiple(large: Slabs, small: Slabs) -> bool:
    factor = large.total // small.total
    return factor > 0 and small.times(factor) == large


class SplitLatent(Split):
    """An autoencoder that draws a latent of the whole volume as one process draws it, if all ranks have its seed."""

    def sampling(self, z_mu: torch.Tensor, z_sigma: torch.Tensor) -> torch.Tensor:
        """Draw this rank's slab of a latent from its mean and standard deviation."""
        return z_mu + self._noise(z_sigma) * z_sigma

    @not_compiled
    def _noise(self, like: torch.Tensor) -> torch.Tensor:
        split, dim = self.volume_split, self.volume_split.axis + 2
        with split.call((like,)):
            cut = split.slabs(like)
        begin, end = cut.range_of(split.rank)
        # numbers are drawn in the order of the memory
        return torch.randn_like(empty_beside(like, dim, cut.total)).narrow(dim, begin, end - begin)


class SplitCodebook(Split):
    """A VQVAE's codebook whose loss and moving averages are those of the whole volume."""

    def commitment_loss(self, quantized: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The loss over the positions of all ranks."""
        return self._mean((quantized.detach() - inputs).square())

    @not_compiled
    def _mean(self, values: torch.Tensor) -> torch.Tensor:
        return self.volume_split.mean(values)

    @not_compiled
    def synchronize(self, encodings_sum: torch.Tensor, dw: torch.Tensor) -> None:
        """Add up what the ranks counted: all of a training that share one codebook, or those of one volume."""
        if self.ddp_sync:  # type: ignore[attr-defined]
            super().synchronize(encodings_sum, dw)  # type: ignore[misc]
            return
        for tensor in (encodings_sum, dw):
            self.volume_split.ranks.all_reduce(tensor, "codebook")


class SplitPerplexity(Split):
    """A VQVAE's quantizer, whose perplexity is that of the whole volume."""

    def count(self, indices: torch.Tensor) -> torch.Tensor:
        """How often each entry of the codebook is in use on all ranks."""
        return self._sum(super().count(indices))  # type: ignore[misc]

    @not_compiled
    def _sum(self, counts: torch.Tensor) -> torch.Tensor:
        return add_over_ranks(counts, self.volume_split.ranks, "codebook")
