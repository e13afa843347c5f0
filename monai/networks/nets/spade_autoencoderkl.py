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

"""The autoencoder with a KL-regularized latent whose decoder is modulated by a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks import Convolution, SpatialAttentionBlock, Upsample
from monai.networks.blocks.attention.options import AttentionOptions, projection_argument
from monai.networks.blocks.autoencoder import GaussianLatent, LayerBuilder, decoder_blocks, resolve_levels
from monai.networks.blocks.spade_norm import SPADE
from monai.networks.blocks.volume_steps import VolumeSteps
from monai.networks.nets.autoencoderkl import Encoder
from monai.utils import ensure_tuple_rep

__all__ = ["SPADEAutoencoderKL"]


def _convolution(spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
    """A bare convolution that keeps the size of its input."""
    return Convolution(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        strides=1,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        conv_only=True,
    )


class SPADEResBlock(nn.Module):
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

    works_on_slabs = True

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
        def norm(channels: int) -> nn.Module:
            return SPADE(
                label_nc=label_nc,
                norm_nc=channels,
                norm="GROUP",
                norm_params={"num_groups": norm_num_groups, "affine": False, "eps": norm_eps},
                hidden_channels=spade_intermediate_channels,
                kernel_size=3,
                spatial_dims=spatial_dims,
            )

        super().__init__()
        self.label_nc = label_nc
        self.in_channels = in_channels
        self.out_channels = width = in_channels if out_channels is None else out_channels
        self.norm1 = norm(in_channels)
        self.conv1 = _convolution(spatial_dims, in_channels, width)
        self.norm2 = norm(width)
        self.conv2 = _convolution(spatial_dims, width, width)
        self.nin_shortcut: nn.Module = nn.Identity()
        if width != in_channels:
            self.nin_shortcut = _convolution(spatial_dims, in_channels, width, kernel_size=1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "label_nc" not in state:  # the release wrote it
            segmentation: Any = self.norm1.mlp_shared
            self.label_nc = segmentation.conv.in_channels

    def volume_steps(self, steps: VolumeSteps, volume: int) -> int:
        """See :class:`VolumeSteps`; the segmentation is its second input."""
        norm: Any = self.norm1
        hidden = steps.add(volume, norm.param_free_norm, steps.modulation(norm, volume, 1), F.silu, self.conv1)
        norm, shortcut = self.norm2, steps.branch(volume, self.nin_shortcut)
        modulation = steps.modulation(norm, hidden, 1)
        return steps.add(hidden, norm.param_free_norm, modulation, F.silu, self.conv2, plus=shortcut)

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
        out: torch.Tensor = self.nin_shortcut(x) + h
        return out


@dataclass(frozen=True)
class _Layers(LayerBuilder):
    """
    Builds the layers of :class:`SPADEDecoder` from this module's classes.

    Args:
        label_nc: number of the segmentation's channels.
        spade_intermediate_channels: width of the layer between the segmentation and the norms.

    The other arguments are those of :class:`LayerBuilder`.
    """

    label_nc: int
    spade_intermediate_channels: int

    def conv(self, in_channels: int, out_channels: int) -> nn.Module:
        return _convolution(self.spatial_dims, in_channels, out_channels)

    def norm(self, channels: int) -> nn.Module:
        return nn.GroupNorm(self.norm_num_groups, channels, eps=self.norm_eps)

    def residual(self, in_channels: int, out_channels: int) -> nn.Module:
        return SPADEResBlock(
            spatial_dims=self.spatial_dims,
            in_channels=in_channels,
            norm_num_groups=self.norm_num_groups,
            norm_eps=self.norm_eps,
            out_channels=out_channels,
            label_nc=self.label_nc,
            spade_intermediate_channels=self.spade_intermediate_channels,
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

    def upsample(self, channels: int) -> nn.Module:
        layer = Upsample(
            spatial_dims=self.spatial_dims,
            mode="nontrainable",
            in_channels=channels,
            out_channels=channels,
            interp_mode="nearest",
            scale_factor=2.0,
            post_conv=self.conv(channels, channels),
            align_corners=None,
        )
        layer.layout_role = "nearest upsampling"  # type: ignore[assignment]
        return layer


class SPADEDecoder(nn.Module):
    """
    Decoder of an autoencoder that is modulated by a segmentation.

    Args:
        label_nc: number of the segmentation's channels.
        spade_intermediate_channels: width of the layer between the segmentation and the norms. Defaults to 128.

    The other arguments are those of :class:`monai.networks.nets.autoencoderkl.Decoder`.
    """

    works_on_slabs = True

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
        super().__init__()
        attention = AttentionOptions(
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
        )
        layers = _Layers(spatial_dims, norm_num_groups, norm_eps, attention, label_nc, spade_intermediate_channels)
        levels = resolve_levels(channels, num_res_blocks, attention_levels, norm_num_groups)
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.channels, self.num_res_blocks, self.attention_levels = channels, num_res_blocks, attention_levels
        self.norm_num_groups, self.norm_eps = norm_num_groups, norm_eps
        self.label_nc = label_nc
        self.blocks = nn.ModuleList(decoder_blocks(layers, in_channels, out_channels, levels, with_nonlocal_attn))

    def volume_steps(self, steps: VolumeSteps, volume: int) -> int:
        """See :class:`VolumeSteps`."""
        return steps.add(volume, *self.blocks)

    def forward(self, x: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: latents, (B, in_channels, sizes).
            seg: segmentations, (B, label_nc, other sizes).

        Returns:
            images, (B, out_channels, larger sizes)
        """
        for block in self.blocks:
            # TorchScript decides hasattr when it compiles, and isinstance of modules never
            if torch.jit.is_scripting():
                if hasattr(block, "label_nc"):
                    x = block(x, seg)
                else:
                    x = block(x)
            else:
                x = block(x, seg) if isinstance(block, SPADEResBlock) else block(x)
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

    works_on_slabs = True

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
        resolve_levels(channels, num_res_blocks, attention_levels, norm_num_groups)
        if isinstance(num_res_blocks, int):
            num_res_blocks = ensure_tuple_rep(num_res_blocks, len(channels))
        encoder = Encoder(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            channels=channels,
            out_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            attention_levels=attention_levels,
            with_nonlocal_attn=with_encoder_nonlocal_attn,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **projection_argument(use_proj_attn),
        )
        decoder = SPADEDecoder(
            spatial_dims=spatial_dims,
            channels=channels,
            in_channels=latent_channels,
            out_channels=out_channels,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            attention_levels=attention_levels,
            label_nc=label_nc,
            with_nonlocal_attn=with_decoder_nonlocal_attn,
            spade_intermediate_channels=spade_intermediate_channels,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **projection_argument(use_proj_attn),
        )
        convolutions = [_convolution(spatial_dims, latent_channels, latent_channels, kernel_size=1) for _ in range(3)]
        super().__init__(encoder, decoder, convolutions, latent_channels)

    @torch.jit.export
    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: images, (B, in_channels, sizes).

        Returns:
            mean and standard deviation of the latent, both (B, latent_channels, smaller sizes)
        """
        return self.distribution(self.encoder(x))

    @torch.jit.export
    def decode(self, z: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """
        Args:
            z: latents, (B, latent_channels, sizes).
            seg: segmentations, (B, label_nc, other sizes).

        Returns:
            images, (B, out_channels, larger sizes)
        """
        out: torch.Tensor = self.decoder(self.post_quant_conv(z), seg)
        return out

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
