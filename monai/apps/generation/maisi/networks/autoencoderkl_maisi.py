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

"""MAISI's autoencoder, for volumes that hardly fit into the memory of a GPU, and its layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.apps.generation.maisi.networks.large_volumes import LargeVolumes, join_pieces, overlap, plain_tensor
from monai.networks.blocks import Convolution
from monai.networks.blocks.attention.options import AttentionOptions, projection_argument
from monai.networks.blocks.autoencoder import (
    Cascade,
    LayerBuilder,
    becomes_a_graph,
    decoder_blocks,
    encoder_blocks,
    resolve_levels,
)
from monai.networks.blocks.reach import Reach, reach_of
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.blocks.volume_statistics import normalize
from monai.networks.blocks.volume_steps import VolumeSteps
from monai.networks.nets.autoencoderkl import AEKLResBlock, AutoencoderKL
from monai.networks.state_dict.rules import Misfit, Part
from monai.utils import ensure_tuple_rep
from monai.utils.type_conversion import convert_to_tensor  # noqa: F401  (other code may import it from here)

__all__ = [
    "AutoencoderKlMaisi",
    "MaisiConvolution",
    "MaisiDecoder",
    "MaisiDownsample",
    "MaisiEncoder",
    "MaisiGroupNorm3D",
    "MaisiResBlock",
    "MaisiUpsample",
]

logger = logging.getLogger(__name__)


def _empty_cuda_cache(save_mem: bool) -> None:
    """Give memory that torch keeps for later back to the GPU, where ``save_mem`` asks for it."""
    if not torch.jit.is_scripting():
        if save_mem and torch.cuda.is_available() and not torch.compiler.is_compiling():
            torch.cuda.empty_cache()


def _log_size(wanted: bool, name: str, x: torch.Tensor) -> None:
    if not torch.jit.is_scripting():
        if wanted and not torch.compiler.is_compiling():
            logger.info(f"{name}: {list(x.shape)}")


class MaisiGroupNorm3D(nn.GroupNorm):
    """
    Group norm of large volumes. It computes in float32 at least, one group after the other where types differ, and
    takes images of any number of axes.

    Args:
        num_groups: into how many groups the channels are divided.
        num_channels: number of channels.
        eps: what is added to the variance. Defaults to 1e-5.
        affine: whether each channel has a weight and a bias. Defaults to True.
        norm_float16: whether the result is float16; otherwise it has the type of the weights. Each step is rounded, as
            it was when the published networks were trained. Defaults to False.
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
        _log_size(self.print_info, "input of a norm", input)
        dtype = torch.float32 if self.weight is None else self.weight.dtype
        if input.dtype == dtype and not self.norm_float16:
            return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        groups: list[torch.Tensor] = []
        for number, group in enumerate(input.split(self.num_channels // self.num_groups, 1)):
            group = group if group.dtype == torch.float64 else group.float()  # a whole copy would not fit
            if self.norm_float16:
                axes = list(range(1, group.dim()))
                mean = group.mean(axes, keepdim=True)
                deviation = group.var(axes, unbiased=False, keepdim=True).add_(self.eps).sqrt_()
                groups.append(self._rounded(group, number, mean, deviation))
            else:
                groups.append(self._normalized(group, number).to(dtype))
        _empty_cuda_cache(self.save_mem)
        if max(groups[0].shape) < 500:
            return join_pieces(groups, 1)
        return self._cat_inputs(groups)

    def _affine_of(self, group: int, group_size: int) -> tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
        """Weight and bias of the channels of a group."""
        if not self.affine:
            return None, None
        begin = group * group_size
        return self.weight.narrow(0, begin, group_size), self.bias.narrow(0, begin, group_size)

    def _normalized(self, x: torch.Tensor, group: int) -> torch.Tensor:
        """Normalize the channels ``x`` of a group, (B, C, sizes)."""
        weight, bias = self._affine_of(group, x.shape[1])
        if weight is not None and bias is not None:
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return torch.group_norm(x, 1, weight, bias, self.eps)

    def apply_statistics(self, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        """
        Normalize a part of a volume.

        Args:
            x: the part, (B, num_channels, sizes).
            mean: of each group in the whole volume, (B, num_groups).
            variance: likewise.

        Returns:
            (B, num_channels, sizes), of the type that :meth:`forward` gives
        """
        if not self.norm_float16:
            dtype = torch.float32 if self.weight is None else self.weight.dtype
            return normalize(x, mean, variance, self.weight, self.bias, self.eps).to(dtype)
        shape = [x.shape[0]] + [1] * (x.dim() - 1)
        deviation = (variance + self.eps).sqrt_()
        groups: list[torch.Tensor] = []
        for number, group in enumerate(x.split(self.num_channels // self.num_groups, 1)):
            group = group if group.dtype == torch.float64 else group.float()
            groups.append(self._rounded(group, number, mean[:, number].view(shape), deviation[:, number].view(shape)))
        return join_pieces(groups, 1)

    def _rounded(self, x: torch.Tensor, group: int, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        """Normalize the channels ``x`` of a group, (B, C, sizes), rounding the norm, the product and the sum."""
        result = ((x - mean) / deviation).to(torch.float16)
        weight, bias = self._affine_of(group, x.shape[1])
        if weight is not None and bias is not None:
            shape = [1, -1] + [1] * (x.dim() - 2)
            result.mul_(weight.view(shape)).add_(bias.view(shape))
        return result

    def _cat_inputs(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Join the channels of all groups on the host, so that the GPU never holds everything twice."""
        device = inputs[0].device
        for number in range(len(inputs)):
            inputs[number] = inputs[number].cpu()
            _empty_cuda_cache(self.save_mem)
        return join_pieces(inputs, 1).to(device)


class MaisiConvolution(nn.Module):
    """
    Convolution that cuts a large image into pieces, which overlap as far as the kernel reaches. The result is that of
    the whole image. Exported and traced programs do not cut.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's channels.
        out_channels: number of the output's channels.
        num_splits: number of pieces; 1 takes the image as a whole. Where it does not divide the size, the pieces are as
            many as go into it, and the last one takes the rest.
        dim_split: the spatial axis along which the image is cut.
        print_info: whether sizes are logged.
        save_mem: whether unused memory is given back to the GPU at once. Defaults to True.

    The other arguments are those of :class:`monai.networks.blocks.Convolution`.

    Raises:
        ValueError: if there is something to be cut, and ``dim_split`` is not one of the spatial axes.
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
        if num_splits > 1 and not 0 <= dim_split < spatial_dims:
            raise ValueError(f"dim_split={dim_split} should be one of the spatial axes, 0 to {spatial_dims - 1}.")
        self.conv: Any = Convolution(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            strides=strides,
            kernel_size=kernel_size,
            adn_ordering=adn_ordering,
            act=act,
            norm=norm,
            dropout=dropout,
            dropout_dim=dropout_dim,
            dilation=dilation,
            groups=groups,
            bias=bias,
            conv_only=conv_only,
            is_transposed=is_transposed,
            padding=padding,
            output_padding=output_padding,
        )
        axis = dim_split if 0 <= dim_split < spatial_dims else 0
        self.stride = ensure_tuple_rep(strides, spatial_dims)[axis]
        reach = ensure_tuple_rep(dilation, spatial_dims)[axis] * (ensure_tuple_rep(kernel_size, spatial_dims)[axis] - 1)
        self.overlap = overlap(reach, self.stride)
        self.is_transposed = is_transposed
        self.dim_split = dim_split
        self.num_splits = num_splits
        self.print_info = print_info
        self.save_mem = save_mem

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "overlap" not in state:  # the release wrote it
            core, axis = self.conv.conv, self.dim_split
            self.stride, self.is_transposed = core.stride[axis], core.transposed
            self.overlap = overlap(core.dilation[axis] * (core.kernel_size[axis] - 1), self.stride)

    def _split_tensor(self, x: torch.Tensor, split_size: int, padding: int) -> list[torch.Tensor]:
        """
        Cut an image into pieces that overlap.

        Args:
            x: (B, in_channels, sizes).
            split_size: how much of the axis belongs to a piece. The last piece takes the rest, too.
            padding: how much of both its neighbors a piece gets besides.
        """
        axis, length = self.dim_split + 2, x.shape[self.dim_split + 2]
        number = length // split_size
        splits: list[torch.Tensor] = []
        for i in range(number):
            begin = max(0, i * split_size - padding)
            end = length if i == number - 1 else min(length, (i + 1) * split_size + padding)
            splits.append(x.narrow(axis, begin, end - begin))
            _log_size(self.print_info, "piece of a convolution's input", splits[i])
        return splits

    def _concatenate_tensors(self, outputs: list[torch.Tensor], split_size: int, padding: int) -> torch.Tensor:
        """
        Join what the convolution made of the pieces, without what belongs to their neighbors.

        Args:
            outputs: (B, out_channels, sizes) for each piece; the list is emptied.
            split_size: how much of the axis belongs to a piece of the output.
            padding: how much of its neighbors it holds besides.
        """
        axis = self.dim_split + 2
        for i in range(len(outputs)):
            begin = min(padding, i * split_size)
            keep = split_size if i < len(outputs) - 1 else outputs[i].shape[axis] - begin
            outputs[i] = outputs[i].narrow(axis, begin, keep)
            _log_size(self.print_info, "piece of a convolution's output", outputs[i])
        device = outputs[0].device
        if max(outputs[0].shape) >= 500 and device.type != "cpu":  # then the GPU never holds everything twice
            for i in range(len(outputs)):
                outputs[i] = outputs[i].cpu()
                _empty_cuda_cache(self.save_mem)
        return join_pieces(outputs, axis).to(device)

    def _output_size(self, size: int) -> int:
        """How many outputs begin within ``size`` inputs."""
        out: int = size * self.stride if self.is_transposed else size // self.stride
        return out

    def _in_the_type_of_the_weights(self, x: torch.Tensor) -> torch.Tensor:
        """Norms may return float16 to a network of another type, which autocast brings together, and nothing else."""
        if torch.jit.is_scripting():
            return x.to(self.conv.conv.weight.dtype)
        else:
            weight = getattr(getattr(self.conv, "conv", None), "weight", None)
            if x.dtype != torch.float16 or not torch.is_tensor(weight) or torch.is_autocast_enabled(x.device.type):
                return x
            return x.to(weight.dtype) if weight.is_floating_point() else x

    def spatial_reach(self, axis: int) -> Optional[Reach]:
        """That of its convolution, if there is nothing else in it; see :class:`Reach`."""
        layers = list(self.conv.children())
        return reach_of(layers[0], axis) if len(layers) == 1 else None

    def in_one_piece(self, x: torch.Tensor) -> torch.Tensor:
        """What :meth:`forward` computes, for callers that cut the volume themselves."""
        out: torch.Tensor = self.conv(self._in_the_type_of_the_weights(x))
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, sizes) to (B, out_channels, other sizes)."""
        x = self._in_the_type_of_the_weights(x)
        split_size = 0
        if self.num_splits > 1:
            # pieces begin at multiples of the stride, so that their outputs are those of the whole
            split_size = max(1, x.shape[self.dim_split + 2] // self.num_splits // self.stride) * self.stride
        if not torch.jit.is_scripting():
            if becomes_a_graph():
                split_size = 0
        if split_size == 0 or x.shape[self.dim_split + 2] < 2 * split_size:
            out: torch.Tensor = self.conv(x)
            return out
        splits = self._split_tensor(x, split_size, self.overlap)
        _empty_cuda_cache(self.save_mem)
        outputs: list[torch.Tensor] = []
        for split in splits:
            outputs.append(self.conv(split))
        joined = self._concatenate_tensors(outputs, self._output_size(split_size), self._output_size(self.overlap))
        _empty_cuda_cache(self.save_mem)
        return joined


class MaisiUpsample(nn.Module):
    """
    Double the size of an image: by interpolation and a convolution, or by a transposed one.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of channels, which stays.
        use_convtranspose: whether it is a transposed convolution.

    The other arguments are those of :class:`MaisiConvolution`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        use_convtranspose: bool,
        num_splits: int,
        dim_split: int,
        print_info: bool,
        save_mem: bool = True,
    ) -> None:
        super().__init__()
        self.conv = MaisiConvolution(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=in_channels,
            strides=2 if use_convtranspose else 1,
            kernel_size=3,
            padding=1,
            conv_only=True,
            is_transposed=use_convtranspose,
            num_splits=num_splits,
            dim_split=dim_split,
            print_info=print_info,
            save_mem=save_mem,
        )
        self.use_convtranspose = use_convtranspose
        self.save_mem = save_mem

    def adapt_state_dict(self, part: Part) -> None:
        """
        Refuse the weights of an upsampling of another kind: their shapes would fit.

        The transposed convolutions of GenerativeModels are those of this network, but their keys are those of its
        nearest-neighbor upsampling, too.

        Raises:
            Misfit: if the keys are those of another autoencoder, unless both are known to have used transposed
                convolutions.
        """
        foreign = [key for key in ("conv.conv.weight", "postconv.conv.weight") if part.has(key)]
        if not foreign:
            return
        transposed = part.facts.transposed_upsampling
        if transposed and self.use_convtranspose and foreign[0].startswith("conv."):
            return
        remedy = "load it into AutoencoderKL."
        if self.use_convtranspose and transposed is None and foreign[0].startswith("conv."):
            remedy += (
                " Only if that network was built with use_convtranspose=True does it fit here: then load it by "
                "load_old_state_dict(state_dict, facts=CheckpointFacts(transposed_upsampling=True))."
            )
        raise Misfit(
            f"{part.prefix}{foreign[0]}: an AutoencoderKL wrote this checkpoint, whose upsampling does not interpolate "
            f"as AutoencoderKlMaisi does: {remedy}"
        )

    def spatial_reach(self, axis: int) -> Optional[Reach]:
        """Interpolation sees one neighbor, and so does what a convolution sees of it; see :class:`Reach`."""
        found = reach_of(self.conv, axis)
        if self.use_convtranspose:
            return found
        return Reach(before=1, after=1, up=2) if found == Reach(before=1, after=1) else None

    def in_one_piece(self, x: torch.Tensor) -> torch.Tensor:
        """What :meth:`forward` computes, for callers that cut the volume themselves."""
        return self.conv.in_one_piece(x if self.use_convtranspose else self._interpolated(x))

    def _interpolated(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2.0, mode=["linear", "bilinear", "trilinear"][x.dim() - 3])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to (B, C, doubled sizes)."""
        if not self.use_convtranspose:
            x = self._interpolated(x)
            _empty_cuda_cache(self.save_mem)
        x = self.conv(x)
        _empty_cuda_cache(self.save_mem)
        return plain_tensor(x)


class MaisiDownsample(nn.Module):
    """
    Halve the size of an image by a strided convolution.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of channels, which stays.

    The other arguments are those of :class:`MaisiConvolution`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_splits: int,
        dim_split: int,
        print_info: bool,
        save_mem: bool = True,
    ) -> None:
        super().__init__()
        self.pad = (0, 1) * spatial_dims
        self.conv = MaisiConvolution(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=in_channels,
            strides=2,
            kernel_size=3,
            padding=0,
            conv_only=True,
            num_splits=num_splits,
            dim_split=dim_split,
            print_info=print_info,
            save_mem=save_mem,
        )

    def spatial_reach(self, axis: int) -> Optional[Reach]:
        """Output j sees the inputs 2 j to 2 j + 2, unless somebody has replaced the layer; see :class:`Reach`."""
        return Reach(after=1, down=2) if reach_of(self.conv, axis) == Reach(after=1, down=2, offset=-1) else None

    def in_one_piece(self, x: torch.Tensor) -> torch.Tensor:
        """What :meth:`forward` computes, for callers that cut the volume themselves."""
        return self.conv.in_one_piece(F.pad(x, list(self.pad)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to (B, C, half the sizes)."""
        out: torch.Tensor = self.conv(F.pad(x, list(self.pad)))
        return out


class MaisiResBlock(nn.Module):
    """
    Residual block for large volumes.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's channels.
        norm_num_groups: into how many groups the norms divide the channels.
        norm_eps: what the norms add to the variance.
        out_channels: number of the output's channels, ``in_channels`` if None.
        norm_float16: whether norms return float16. Defaults to False.

    The other arguments are those of :class:`MaisiConvolution`.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        norm_num_groups: int,
        norm_eps: float,
        out_channels: int | None,
        num_splits: int,
        dim_split: int,
        norm_float16: bool = False,
        print_info: bool = False,
        save_mem: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = width = in_channels if out_channels is None else out_channels
        self.save_mem = save_mem
        volumes = LargeVolumes(num_splits, dim_split, norm_float16, print_info, save_mem)
        self.norm1 = _norm(norm_num_groups, in_channels, norm_eps, volumes)
        self.conv1 = _convolution(spatial_dims, in_channels, width, volumes)
        self.norm2 = _norm(norm_num_groups, width, norm_eps, volumes)
        self.conv2 = _convolution(spatial_dims, width, width, volumes)
        self.nin_shortcut: nn.Module = nn.Identity()
        if width != in_channels:
            self.nin_shortcut = _convolution(spatial_dims, in_channels, width, volumes, kernel_size=1)

    def volume_steps(self, steps: VolumeSteps, volume: int) -> int:
        """See :class:`VolumeSteps`."""
        hidden = steps.add(volume, self.norm1, F.silu, self.conv1)
        return steps.add(hidden, self.norm2, F.silu, self.conv2, plus=steps.branch(volume, self.nin_shortcut))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, sizes) to (B, out_channels, sizes)."""
        hidden = self.norm1(x)
        _empty_cuda_cache(self.save_mem)
        hidden = F.silu(hidden)
        _empty_cuda_cache(self.save_mem)
        hidden = self.conv1(hidden)
        _empty_cuda_cache(self.save_mem)
        hidden = self.norm2(hidden)
        _empty_cuda_cache(self.save_mem)
        hidden = F.silu(hidden)
        _empty_cuda_cache(self.save_mem)
        hidden = self.conv2(hidden)
        _empty_cuda_cache(self.save_mem)
        if self.in_channels != self.out_channels:
            x = self.nin_shortcut(x)
            _empty_cuda_cache(self.save_mem)
        return plain_tensor(x + hidden)


def _norm(groups: int, channels: int, eps: float, volumes: LargeVolumes) -> nn.Module:
    return MaisiGroupNorm3D(
        num_groups=groups,
        num_channels=channels,
        eps=eps,
        affine=True,
        norm_float16=volumes.norm_float16,
        print_info=volumes.print_info,
        save_mem=volumes.save_mem,
    )


def _convolution(
    spatial_dims: int, in_channels: int, out_channels: int, volumes: LargeVolumes, kernel_size: int = 3
) -> nn.Module:
    """A bare convolution that keeps the size of its input."""
    return MaisiConvolution(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        strides=1,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        conv_only=True,
        num_splits=volumes.num_splits,
        dim_split=volumes.dim_split,
        print_info=volumes.print_info,
        save_mem=volumes.save_mem,
    )


@dataclass(frozen=True)
class _Layers(LayerBuilder):
    """
    Builds the layers of :class:`MaisiEncoder` and :class:`MaisiDecoder` from this module's classes. The residual blocks
    around attention are those of :class:`AutoencoderKL`.

    Args:
        volumes: how large volumes are treated.
        use_convtranspose: whether transposed convolutions double the size, or else a convolution after interpolation.

    The other arguments are those of :class:`LayerBuilder`.
    """

    volumes: LargeVolumes
    use_convtranspose: bool = False

    def conv(self, in_channels: int, out_channels: int) -> nn.Module:
        return _convolution(self.spatial_dims, in_channels, out_channels, self.volumes)

    def norm(self, channels: int) -> nn.Module:
        return _norm(self.norm_num_groups, channels, self.norm_eps, self.volumes)

    def residual(self, in_channels: int, out_channels: int) -> nn.Module:
        return MaisiResBlock(
            spatial_dims=self.spatial_dims,
            in_channels=in_channels,
            norm_num_groups=self.norm_num_groups,
            norm_eps=self.norm_eps,
            out_channels=out_channels,
            num_splits=self.volumes.num_splits,
            dim_split=self.volumes.dim_split,
            norm_float16=self.volumes.norm_float16,
            print_info=self.volumes.print_info,
            save_mem=self.volumes.save_mem,
        )

    def middle_residual(self, channels: int) -> nn.Module:
        return AEKLResBlock(
            spatial_dims=self.spatial_dims,
            in_channels=channels,
            norm_num_groups=self.norm_num_groups,
            norm_eps=self.norm_eps,
            out_channels=channels,
        )

    def attention_block(self, channels: int) -> nn.Module:
        return SpatialAttentionBlock(
            spatial_dims=self.spatial_dims,
            num_channels=channels,
            norm_num_groups=self.norm_num_groups,
            norm_eps=self.norm_eps,
            include_fc=self.attention.include_fc,
            use_combined_linear=self.attention.use_combined_linear,
            use_flash_attention=self.attention.use_flash_attention,
            **projection_argument(self.attention.use_proj_attn),
        )

    def downsample(self, channels: int) -> nn.Module:
        return MaisiDownsample(
            spatial_dims=self.spatial_dims,
            in_channels=channels,
            num_splits=self.volumes.num_splits,
            dim_split=self.volumes.dim_split,
            print_info=self.volumes.print_info,
            save_mem=self.volumes.save_mem,
        )

    def upsample(self, channels: int) -> nn.Module:
        return MaisiUpsample(
            spatial_dims=self.spatial_dims,
            in_channels=channels,
            use_convtranspose=self.use_convtranspose,
            num_splits=self.volumes.num_splits,
            dim_split=self.volumes.dim_split,
            print_info=self.volumes.print_info,
            save_mem=self.volumes.save_mem,
        )


class _MaisiCascade(Cascade):
    """
    Blocks one after another, after each of which unused memory is given back.

    Args:
        blocks: the blocks.
        save_mem: whether unused memory is given back to the GPU at once.
    """

    works_on_slabs = True

    def __init__(self, blocks: Sequence[nn.Module], save_mem: bool) -> None:
        super().__init__(blocks)
        self.save_mem = save_mem

    def volume_steps(self, steps: VolumeSteps, volume: int) -> int:
        """See :class:`VolumeSteps`."""
        return steps.add(volume, *self.blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run ``x``, (B, C, sizes), through the blocks."""
        for block in self.blocks:
            x = block(x)
            _empty_cuda_cache(self.save_mem)
        return x


class MaisiEncoder(_MaisiCascade):
    """
    Encoder of an autoencoder for large volumes.

    Args:
        num_channels: widths of the levels; each level after the first has half the size.
        norm_float16: whether norms return float16. Defaults to False.

    The other arguments are those of :class:`MaisiConvolution` and of
    :class:`monai.networks.nets.autoencoderkl.Encoder`, with ``include_fc`` False by default.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_channels: Sequence[int],
        out_channels: int,
        num_res_blocks: Sequence[int],
        norm_num_groups: int,
        norm_eps: float,
        attention_levels: Sequence[bool],
        num_splits: int,
        dim_split: int,
        norm_float16: bool = False,
        print_info: bool = False,
        save_mem: bool = True,
        with_nonlocal_attn: bool = True,
        include_fc: bool = False,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        volumes = LargeVolumes(num_splits, dim_split, norm_float16, print_info, save_mem)
        attention = AttentionOptions(
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
        )
        layers = _Layers(spatial_dims, norm_num_groups, norm_eps, attention, volumes)
        levels = resolve_levels(num_channels, num_res_blocks, attention_levels, norm_num_groups, "num_channels")
        super().__init__(encoder_blocks(layers, in_channels, out_channels, levels, with_nonlocal_attn), save_mem)


class MaisiDecoder(_MaisiCascade):
    """
    Decoder of an autoencoder for large volumes.

    Args:
        num_channels: widths of the levels in the encoder's order, from the image to the latent.
        in_channels: number of the latent's channels.
        out_channels: number of the image's channels.
        use_convtranspose: whether transposed convolutions double the size, or else a convolution after interpolation.
            Defaults to False.

    The other arguments are those of :class:`MaisiEncoder`.
    """

    def __init__(
        self,
        spatial_dims: int,
        num_channels: Sequence[int],
        in_channels: int,
        out_channels: int,
        num_res_blocks: Sequence[int],
        norm_num_groups: int,
        norm_eps: float,
        attention_levels: Sequence[bool],
        num_splits: int,
        dim_split: int,
        norm_float16: bool = False,
        print_info: bool = False,
        save_mem: bool = True,
        with_nonlocal_attn: bool = True,
        include_fc: bool = False,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_convtranspose: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        volumes = LargeVolumes(num_splits, dim_split, norm_float16, print_info, save_mem)
        attention = AttentionOptions(
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
        )
        layers = _Layers(spatial_dims, norm_num_groups, norm_eps, attention, volumes, use_convtranspose)
        levels = resolve_levels(num_channels, num_res_blocks, attention_levels, norm_num_groups, "num_channels")
        super().__init__(decoder_blocks(layers, in_channels, out_channels, levels, with_nonlocal_attn), save_mem)
        self.print_info = print_info


class AutoencoderKlMaisi(AutoencoderKL):
    """
    AutoencoderKL for large volumes, with convolutions in pieces and interpolating upsampling (Guo et al.,
    https://arxiv.org/abs/2409.11169).

    Args:
        num_channels: widths of the levels; each level after the first has half the size.
        use_checkpointing: whether activations are computed again in the backward pass instead of kept.
            Defaults to False; a scripted network always keeps them.
        use_convtranspose: whether the decoder doubles the size by transposed convolutions, or else by a convolution
            after interpolation. Defaults to False.
        num_splits: number of pieces, see :class:`MaisiConvolution`. Defaults to 16.
        dim_split: the spatial axis along which volumes are cut. Defaults to 0.
        norm_float16: whether norms return float16. Defaults to False.
        print_info: whether sizes are logged. Defaults to False.
        save_mem: whether unused memory is given back to the GPU at once. Defaults to True.

    The other arguments are those of :class:`monai.networks.nets.AutoencoderKL`; by default there is neither an output
    projection (``include_fc`` is False) nor attention between the levels.

    Raises:
        ValueError: if ``num_channels`` are not multiples of ``norm_num_groups``, or differ in number from
            ``num_res_blocks`` or ``attention_levels``, or there is no axis ``dim_split``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """

    works_on_slabs = True

    # numbers of axes that the release can run
    release_dims = (3,)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        num_res_blocks: Sequence[int],
        num_channels: Sequence[int],
        attention_levels: Sequence[bool],
        latent_channels: int = 3,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        with_encoder_nonlocal_attn: bool = False,
        with_decoder_nonlocal_attn: bool = False,
        include_fc: bool = False,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_checkpointing: bool = False,
        use_convtranspose: bool = False,
        num_splits: int = 16,
        dim_split: int = 0,
        norm_float16: bool = False,
        print_info: bool = False,
        save_mem: bool = True,
        use_proj_attn: bool | None = None,
    ) -> None:
        # its encoder and decoder are replaced; they are built so that a seed gives the weights that it always gave
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            num_res_blocks,
            num_channels,
            attention_levels,
            latent_channels,
            norm_num_groups,
            norm_eps,
            with_encoder_nonlocal_attn,
            with_decoder_nonlocal_attn,
            use_checkpointing,
            use_convtranspose,
            include_fc,
            use_combined_linear,
            use_flash_attention,
            use_proj_attn,
        )
        self.encoder = MaisiEncoder(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_channels=num_channels,
            out_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            attention_levels=attention_levels,
            with_nonlocal_attn=with_encoder_nonlocal_attn,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            num_splits=num_splits,
            dim_split=dim_split,
            norm_float16=norm_float16,
            print_info=print_info,
            save_mem=save_mem,
            **projection_argument(use_proj_attn),
        )
        self.decoder = MaisiDecoder(
            spatial_dims=spatial_dims,
            num_channels=num_channels,
            in_channels=latent_channels,
            out_channels=out_channels,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            attention_levels=attention_levels,
            with_nonlocal_attn=with_decoder_nonlocal_attn,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_convtranspose=use_convtranspose,
            num_splits=num_splits,
            dim_split=dim_split,
            norm_float16=norm_float16,
            print_info=print_info,
            save_mem=save_mem,
            **projection_argument(use_proj_attn),
        )

    def state_dict_facts(self) -> dict[str, bool]:
        """Transposed convolutions have the keys and shapes of those that follow an interpolation."""
        layers = [module for module in self.decoder.modules() if isinstance(module, MaisiUpsample)]
        return {"use_convtranspose": any(layer.use_convtranspose for layer in layers)}
