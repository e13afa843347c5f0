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


"""Layers of MAISI that work on volumes too large for one piece, and what they share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn as nn

from monai.data.meta_tensor import MetaTensor
from monai.networks.blocks.autoencoder import becomes_a_graph
from monai.networks.blocks.convolutions import Convolution

__all__ = [
    "LargeVolumes",
    "MaisiConvolution",
    "MaisiGroupNorm3D",
    "give_back",
    "plain_tensor",
    "split_convolution",
]

# the release logs from the module of the network
logger = logging.getLogger("monai.apps.generation.maisi.networks.autoencoderkl_maisi")


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


def log_shape(wanted: bool, name: str, x: torch.Tensor) -> None:
    if not torch.jit.is_scripting():
        if wanted and not torch.compiler.is_compiling():
            logger.info(f"{name}: {list(x.shape)}")


def give_back(wanted: bool) -> None:
    if not torch.jit.is_scripting():
        if wanted and torch.cuda.is_available() and not torch.compiler.is_compiling():
            torch.cuda.empty_cache()


def join_pieces(pieces: list[torch.Tensor], dim: int, save_mem: bool) -> torch.Tensor:
    """Concatenate, and empty the list; large pieces meet on the host, so that the GPU never holds everything twice."""
    device = pieces[0].device
    if device.type != "cpu" and max(pieces[0].shape) >= 500:
        for number in range(len(pieces)):
            pieces[number] = pieces[number].cpu()
            give_back(save_mem)
    if torch.jit.is_scripting():
        joined = torch.cat(pieces, dim=dim)
    else:
        with torch.autocast(device.type, enabled=False):  # which cannot join float16 on a CPU
            joined = torch.cat(pieces, dim=dim)
    pieces.clear()
    return joined.to(device)


def plain_tensor(x: torch.Tensor) -> torch.Tensor:
    """``x`` without the metadata that it may carry."""
    if not torch.jit.is_scripting():
        if isinstance(x, MetaTensor):
            return x.as_tensor()
    return x


class MaisiGroupNorm3D(nn.GroupNorm):
    """
    Group norm of large volumes. It computes in float32 at least, one group after the other where types differ, and
    takes images of any number of axes.

    Args:
        num_groups: into how many groups the channels are divided.
        num_channels: number of channels.
        eps: what is added to the variance. Defaults to 1e-5.
        affine: whether each channel has a weight and a bias. Defaults to True.
        norm_float16: whether the result is float16; otherwise it has the type of the weights. Defaults to False.
        print_info: whether sizes are logged. Defaults to False.
        save_mem: whether unused memory is given back to the GPU at once. Defaults to True.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        norm_float16: bool = False,
        print_info: bool = False,
        save_mem: bool = True,
    ):
        super().__init__(num_groups, num_channels, eps, affine)
        self.norm_float16 = norm_float16
        self.print_info = print_info
        self.save_mem = save_mem

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: (B, num_channels, sizes).

        Returns:
            the same shape

        Raises:
            ValueError: if the input has no spatial axis.
        """
        if input.dim() < 3:
            raise ValueError(f"The input should be (B, {self.num_channels}, sizes), got {list(input.shape)}.")
        log_shape(self.print_info, "input of a norm", input)
        dtype = torch.float32 if self.weight is None else self.weight.dtype
        if self.norm_float16:
            dtype = torch.float16
        if input.dtype == dtype and dtype != torch.float16:
            return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return self._by_group(input, dtype)

    def _by_group(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A whole copy in float32 would not fit."""
        size = self.num_channels // self.num_groups
        pieces: list[torch.Tensor] = []
        for number, piece in enumerate(x.split(size, 1)):
            piece = piece if piece.dtype == torch.float64 else piece.float()
            weight: Optional[torch.Tensor] = None
            bias: Optional[torch.Tensor] = None
            if self.affine:
                weight = self.weight[number * size : (number + 1) * size].to(piece.dtype)
                bias = self.bias[number * size : (number + 1) * size].to(piece.dtype)
            pieces.append(torch.group_norm(piece, 1, weight, bias, self.eps).to(dtype))
            give_back(self.save_mem)
        return join_pieces(pieces, 1, self.save_mem)


class MaisiConvolution(nn.Module):
    """
    Convolution that cuts a large image into pieces, which overlap as far as the kernel reaches. The result is that of
    the whole image. Exported and traced programs do not cut.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's channels.
        out_channels: number of the output's channels.
        num_splits: number of pieces; 1 takes the image as a whole. An image too small for them is cut into fewer.
        dim_split: the spatial axis along which the image is cut.
        print_info: whether sizes are logged.
        save_mem: whether unused memory is given back to the GPU at once. Defaults to True.

    The other arguments are those of :class:`monai.networks.blocks.Convolution`.

    Raises:
        ValueError: if ``dim_split`` is not one of the spatial axes.
    """

    layout_role = "split convolution"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        num_splits: int,
        dim_split: int,
        print_info: bool,
        save_mem: bool = True,
        strides: Sequence[int] | int = 1,
        kernel_size: Sequence[int] | int = 3,
        adn_ordering: str = "NDA",
        act: tuple | str | None = "PRELU",
        norm: tuple | str | None = "INSTANCE",
        dropout: tuple | str | float | None = None,
        dropout_dim: int = 1,
        dilation: Sequence[int] | int = 1,
        groups: int = 1,
        bias: bool = True,
        conv_only: bool = False,
        is_transposed: bool = False,
        padding: Sequence[int] | int | None = None,
        output_padding: Sequence[int] | int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= dim_split < spatial_dims:
            raise ValueError(f"dim_split={dim_split} should be one of the spatial axes, 0 to {spatial_dims - 1}.")
        self.conv: Any = Convolution(
            spatial_dims,
            in_channels,
            out_channels,
            strides,
            kernel_size,
            adn_ordering,
            act,
            norm,
            dropout,
            dropout_dim,
            dilation,
            groups,
            bias,
            conv_only,
            is_transposed,
            padding,
            output_padding,
        )
        core: Any = self.conv.conv
        self.stride = int(core.stride[dim_split])
        reach = int(core.dilation[dim_split]) * (int(core.kernel_size[dim_split]) - 1)
        # a piece begins at a multiple of the stride, so that its outputs are those of the whole
        self.overlap = -(-reach // self.stride) * self.stride
        self.is_transposed = is_transposed
        self.num_splits = num_splits
        self.dim_split = dim_split
        self.print_info = print_info
        self.save_mem = save_mem

    def _cast(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` in the type of the weights."""
        return x.to(self.conv.conv.weight.dtype)

    def _output_size(self, size: int) -> int:
        """How many outputs begin within ``size`` inputs."""
        return size * self.stride if self.is_transposed else size // self.stride

    def _in_pieces(self, x: torch.Tensor, pieces: int) -> torch.Tensor:
        axis, length = self.dim_split + 2, x.shape[self.dim_split + 2]
        outputs: list[torch.Tensor] = []
        begin = 0
        for number in range(pieces):
            end = (number + 1) * (length // self.stride) // pieces * self.stride
            last = number == pieces - 1
            first_input = max(0, begin - self.overlap)
            last_input = length if last else min(length, end + self.overlap)
            out = self.conv(x.narrow(axis, first_input, last_input - first_input))
            skip = self._output_size(begin - first_input)
            keep = out.shape[axis] - skip if last else self._output_size(end - begin)
            outputs.append(out.narrow(axis, skip, keep))
            log_shape(self.print_info, "piece of a convolution's output", out)
            give_back(self.save_mem)
            begin = end
        return join_pieces(outputs, axis, self.save_mem)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, sizes) to (B, out_channels, other sizes)."""
        pieces = 1
        if torch.jit.is_scripting():
            pieces = min(self.num_splits, x.shape[self.dim_split + 2] // self.stride)
            x = self._cast(x)
        else:
            if self.num_splits > 1 and not becomes_a_graph():
                pieces = min(self.num_splits, x.shape[self.dim_split + 2] // self.stride)
            if not torch.is_autocast_enabled(x.device.type):  # norm_float16 without it
                x = self._cast(x)
        return self._in_pieces(x, pieces) if pieces > 1 else self.conv(x)


def split_convolution(
    spatial_dims: int, in_channels: int, out_channels: int, volumes: LargeVolumes, **kwargs
) -> MaisiConvolution:
    """Build a bare convolution; by default it has a kernel of size 3 and keeps the size."""
    return MaisiConvolution(
        spatial_dims,
        in_channels,
        out_channels,
        volumes.num_splits,
        volumes.dim_split,
        volumes.print_info,
        volumes.save_mem,
        conv_only=True,
        **kwargs,
    )
