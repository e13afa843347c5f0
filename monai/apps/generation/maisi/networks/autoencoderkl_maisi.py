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

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.apps.generation.maisi.networks.large_volumes import (
    LargeVolumes,
    MaisiConvolution,
    MaisiGroupNorm3D,
    give_back,
    plain_tensor,
    split_convolution,
)
from monai.networks.blocks.attention.options import AttentionOptions
from monai.networks.blocks.autoencoder import (
    AEKLResBlock,
    Cascade,
    Parts,
    TwoConvolutions,
    decoder_blocks,
    encoder_blocks,
    resolve_levels,
)
from monai.networks.blocks.diffusion.layers import attention_options
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.state_dict.rules import Misfit, Part

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
        volumes = LargeVolumes(num_splits, dim_split, print_info=print_info, save_mem=save_mem)
        options = {"strides": 2, "padding": 1, "is_transposed": True} if use_convtranspose else {}
        self.conv = split_convolution(spatial_dims, in_channels, in_channels, volumes, **options)
        self.use_convtranspose = use_convtranspose
        self.mode = ("linear", "bilinear", "trilinear")[spatial_dims - 1]
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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to (B, C, doubled sizes)."""
        if not self.use_convtranspose:
            x = F.interpolate(x, scale_factor=2.0, mode=self.mode)
            give_back(self.save_mem)
        return plain_tensor(self.conv(x))


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
        volumes = LargeVolumes(num_splits, dim_split, print_info=print_info, save_mem=save_mem)
        self.pad = [0, 1] * spatial_dims
        self.conv = split_convolution(spatial_dims, in_channels, in_channels, volumes, strides=2, padding=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to (B, C, half the sizes)."""
        return self.conv(F.pad(x, self.pad))


class MaisiResBlock(TwoConvolutions):
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
        volumes = LargeVolumes(num_splits, dim_split, norm_float16, print_info, save_mem)
        super().__init__(
            in_channels,
            out_channels,
            lambda channels: _norm(norm_num_groups, channels, norm_eps, volumes),
            lambda i, o, kernel_size: split_convolution(spatial_dims, i, o, volumes, kernel_size=kernel_size),
        )
        self.save_mem = save_mem

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, sizes) to (B, out_channels, sizes)."""
        h = self.conv1(F.silu(self.norm1(x)))
        give_back(self.save_mem)
        h = self.conv2(F.silu(self.norm2(h)))
        give_back(self.save_mem)
        return plain_tensor(self.nin_shortcut(x) + h)


def _norm(groups: int, channels: int, eps: float, volumes: LargeVolumes) -> MaisiGroupNorm3D:
    return MaisiGroupNorm3D(groups, channels, eps, True, volumes.norm_float16, volumes.print_info, volumes.save_mem)


class MaisiParts(Parts):
    """Builds the parts of an autoencoder for large volumes. The residual blocks around attention are the ordinary."""

    def __init__(
        self,
        spatial_dims: int,
        norm_num_groups: int,
        norm_eps: float,
        attention: AttentionOptions,
        volumes: LargeVolumes,
        use_convtranspose: bool = False,
    ) -> None:
        super().__init__(spatial_dims, norm_num_groups, norm_eps, attention, use_convtranspose)
        self.volumes = volumes
        self.cutting = volumes.num_splits, volumes.dim_split, volumes.print_info, volumes.save_mem

    def conv(self, in_channels: int, out_channels: int) -> nn.Module:
        return split_convolution(self.spatial_dims, in_channels, out_channels, self.volumes)

    def norm(self, channels: int) -> nn.Module:
        return _norm(self.norm_num_groups, channels, self.norm_eps, self.volumes)

    def residual(self, in_channels: int, out_channels: int) -> nn.Module:
        sizes = self.spatial_dims, in_channels, self.norm_num_groups, self.norm_eps, out_channels
        return MaisiResBlock(*sizes, **vars(self.volumes))

    def middle_residual(self, channels: int) -> nn.Module:
        return AEKLResBlock(self.spatial_dims, channels, self.norm_num_groups, self.norm_eps, channels)

    def downsample(self, channels: int) -> nn.Module:
        return MaisiDownsample(self.spatial_dims, channels, *self.cutting)

    def upsample(self, channels: int) -> nn.Module:
        return MaisiUpsample(self.spatial_dims, channels, self.use_convtranspose, *self.cutting)


class MaisiEncoder(Cascade):
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
        parts = MaisiParts(spatial_dims, norm_num_groups, norm_eps, attention_options(locals()), volumes)
        levels = resolve_levels(num_channels, num_res_blocks, attention_levels, norm_num_groups, "num_channels")
        self.build(encoder_blocks(parts, in_channels, out_channels, levels, with_nonlocal_attn))


class MaisiDecoder(Cascade):
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
        attention = attention_options(locals())
        parts = MaisiParts(spatial_dims, norm_num_groups, norm_eps, attention, volumes, use_convtranspose)
        levels = resolve_levels(num_channels, num_res_blocks, attention_levels, norm_num_groups, "num_channels")
        self.build(decoder_blocks(parts, in_channels, out_channels, levels, with_nonlocal_attn))


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
        attention = attention_options(locals())
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
        volumes = LargeVolumes(num_splits, dim_split, norm_float16, print_info, save_mem)
        parts = MaisiParts(spatial_dims, norm_num_groups, norm_eps, attention, volumes, use_convtranspose)
        levels = resolve_levels(num_channels, num_res_blocks, attention_levels, norm_num_groups, "num_channels")
        self.encoder = MaisiEncoder.from_options(
            encoder_blocks(parts, in_channels, latent_channels, levels, with_encoder_nonlocal_attn)
        )
        self.decoder = MaisiDecoder.from_options(
            decoder_blocks(parts, latent_channels, out_channels, levels, with_decoder_nonlocal_attn)
        )
        self.use_convtranspose = use_convtranspose

    def state_dict_facts(self) -> dict[str, bool]:
        """Transposed convolutions have the keys and shapes of those that follow an interpolation."""
        return {"use_convtranspose": bool(self.use_convtranspose)}
