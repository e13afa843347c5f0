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

from monai.networks.blocks.attention.options import AttentionOptions
from monai.networks.blocks.autoencoder import (
    GaussianLatent,
    Parts,
    TwoConvolutions,
    decoder_blocks,
    encoder_blocks,
    resolve_levels,
)
from monai.networks.blocks.diffusion.layers import BuiltFromOptions, attention_options, convolution
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.nets.autoencoderkl import Encoder

__all__ = ["SPADEAutoencoderKL"]


class SPADEResBlock(TwoConvolutions):
    """
    Residual block whose norms are modulated by a segmentation (Park et al., https://arxiv.org/abs/1903.07291).

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's channels.
        norm_num_groups: into how many groups the norms divide the channels.
        norm_eps: what the norms add to the variance.
        out_channels: number of the output's channels, ``in_channels`` if None.
        label_nc: number of the segmentation's channels.
        spade_intermediate_channels: width of the layer between the segmentation and the norms.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        norm_num_groups: int,
        norm_eps: float,
        out_channels: int | None,
        label_nc: int,
        spade_intermediate_channels: int,
    ) -> None:
        group_norm = {"num_groups": norm_num_groups, "affine": False, "eps": norm_eps}

        def make_norm(channels: int) -> nn.Module:
            return SPADE(label_nc, channels, 3, spatial_dims, spade_intermediate_channels, "GROUP", group_norm)

        super().__init__(in_channels, out_channels, make_norm, lambda *sizes: convolution(spatial_dims, *sizes))
        self.label_nc = label_nc

    def forward(self, x: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: (B, in_channels, sizes).
            seg: segmentation, (B, label_nc, other sizes).

        Returns:
            (B, out_channels, sizes)
        """
        h = self.conv1(F.silu(self.norm1(x, seg)))
        h = self.conv2(F.silu(self.norm2(h, seg)))
        return self.nin_shortcut(x) + h


class SPADEParts(Parts):
    """Builds the parts of a decoder that is modulated by a segmentation, see :class:`SPADEResBlock`."""

    def __init__(
        self,
        spatial_dims: int,
        norm_num_groups: int,
        norm_eps: float,
        attention: AttentionOptions,
        label_nc: int,
        intermediate_channels: int,
    ) -> None:
        super().__init__(spatial_dims, norm_num_groups, norm_eps, attention)
        self.spade = label_nc, intermediate_channels

    def residual(self, in_channels: int, out_channels: int) -> nn.Module:
        groups, eps = self.norm_num_groups, self.norm_eps
        return SPADEResBlock(self.spatial_dims, in_channels, groups, eps, out_channels, *self.spade)


class SPADEDecoder(BuiltFromOptions):
    """
    Decoder of an autoencoder that is modulated by a segmentation.

    Args:
        label_nc: number of the segmentation's channels.
        spade_intermediate_channels: width of the layer between the segmentation and the norms. Defaults to 128.

    The other arguments are those of :class:`monai.networks.nets.autoencoderkl.Decoder`.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int],
        in_channels: int,
        out_channels: int,
        num_res_blocks: Sequence[int],
        norm_num_groups: int,
        norm_eps: float,
        attention_levels: Sequence[bool],
        label_nc: int,
        with_nonlocal_attn: bool = True,
        spade_intermediate_channels: int = 128,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        attention = attention_options(locals())
        parts = SPADEParts(spatial_dims, norm_num_groups, norm_eps, attention, label_nc, spade_intermediate_channels)
        levels = resolve_levels(channels, num_res_blocks, attention_levels, norm_num_groups)
        self.build(label_nc, decoder_blocks(parts, in_channels, out_channels, levels, with_nonlocal_attn))

    def build(self, label_nc: int, blocks: Sequence[nn.Module]) -> None:
        """Register the blocks."""
        super().__init__()
        self.label_nc = label_nc
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: latents, (B, in_channels, sizes).
            seg: segmentations, (B, label_nc, other sizes).

        Returns:
            images, (B, out_channels, larger sizes)
        """
        for block in self.blocks:
            if hasattr(block, "label_nc"):  # TorchScript decides this when it compiles, isinstance it does not
                x = block(x, seg)
            else:
                x = block(x)
        return x


class SPADEAutoencoderKL(GaussianLatent):
    """
    Autoencoder with a KL-regularized latent whose decoder is modulated by a segmentation (Rombach et al.,
    https://arxiv.org/abs/2112.10752; Park et al., https://arxiv.org/abs/1903.07291).

    Args:
        spatial_dims: number of spatial axes: 1, 2 or 3.
        label_nc: number of the segmentation's channels.
        in_channels: number of the input's channels. Defaults to 1.
        out_channels: number of the reconstruction's channels. Defaults to 1.
        num_res_blocks: number of residual blocks, one number for all levels or one for each.
        channels: widths of the levels; each level after the first has half the size.
        attention_levels: whether attention follows the residual blocks of each level.
        latent_channels: number of the latent's channels. Defaults to 3.
        norm_num_groups: into how many groups the norms divide the channels. Defaults to 32.
        norm_eps: what the norms add to the variance. Defaults to 1e-6.
        with_encoder_nonlocal_attn: whether the encoder ends in attention between residual blocks. Defaults to True.
        with_decoder_nonlocal_attn: whether the decoder begins with it. Defaults to True.
        spade_intermediate_channels: width of the layer between the segmentation and the norms. Defaults to 128.
        include_fc: whether attention ends in an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether one linear computes q, k and v. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether attention ends in an output projection; None (the default) follows ``include_fc``.

    Raises:
        ValueError: if ``channels`` are not multiples of ``norm_num_groups``, or differ in number from
            ``num_res_blocks`` or ``attention_levels``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """

    def __init__(
        self,
        spatial_dims: int,
        label_nc: int,
        in_channels: int = 1,
        out_channels: int = 1,
        num_res_blocks: Sequence[int] | int = (2, 2, 2, 2),
        channels: Sequence[int] = (32, 64, 64, 64),
        attention_levels: Sequence[bool] = (False, False, True, True),
        latent_channels: int = 3,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        with_encoder_nonlocal_attn: bool = True,
        with_decoder_nonlocal_attn: bool = True,
        spade_intermediate_channels: int = 128,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        sizes = spatial_dims, norm_num_groups, norm_eps, attention_options(locals())
        levels = resolve_levels(channels, num_res_blocks, attention_levels, norm_num_groups)
        encoder = encoder_blocks(Parts(*sizes), in_channels, latent_channels, levels, with_encoder_nonlocal_attn)
        spade = SPADEParts(*sizes, label_nc, spade_intermediate_channels)
        decoder = decoder_blocks(spade, latent_channels, out_channels, levels, with_decoder_nonlocal_attn)
        super().__init__(
            Encoder.from_options(encoder), SPADEDecoder.from_options(label_nc, decoder), spatial_dims, latent_channels
        )

    @torch.jit.export
    def decode(self, z: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """
        Args:
            z: latents, (B, latent_channels, sizes).
            seg: segmentations, (B, label_nc, other sizes).

        Returns:
            images, (B, out_channels, larger sizes)
        """
        return self.decoder(self.post_quant_conv(z), seg)

    @torch.jit.export
    def reconstruct(self, x: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """Decode the mean latent of the images ``x``, (B, in_channels, sizes), see :meth:`decode`."""
        return self.decode(self.encode(x)[0], seg)

    def forward(self, x: torch.Tensor, seg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            x: images, (B, in_channels, sizes).
            seg: segmentations, (B, label_nc, other sizes).

        Returns:
            reconstruction of a latent that is drawn, (B, out_channels, sizes), and the latent's mean and standard
            deviation
        """
        z_mu, z_sigma = self.encode(x)
        return self.decode(self.sampling(z_mu, z_sigma), seg), z_mu, z_sigma

    @torch.jit.export
    def decode_stage_2_outputs(self, z: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """Decode latents that a diffusion model made, see :meth:`decode`."""
        return self.decode(z, seg)
