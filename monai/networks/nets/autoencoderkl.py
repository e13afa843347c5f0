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

"""The autoencoder with a KL-regularized latent, its encoder, its decoder and their layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks import Convolution, SpatialAttentionBlock, Upsample
from monai.networks.blocks.attention.options import AttentionOptions, projection_argument
from monai.networks.blocks.autoencoder import (
    Cascade,
    GaussianLatent,
    LayerBuilder,
    decoder_blocks,
    encoder_blocks,
    recomputed,
    resolve_levels,
)
from monai.networks.blocks.reach import Reach, reach_of
from monai.networks.blocks.volume_steps import VolumeSteps
from monai.utils import ensure_tuple_rep

__all__ = ["AEKLDownsample", "AEKLResBlock", "AsymmetricPad", "AutoencoderKL", "Decoder", "Encoder"]


class AsymmetricPad(nn.Module):
    """
    Put one zero behind the end of each spatial axis.

    Args:
        spatial_dims: number of spatial axes.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.pad = (0, 1) * spatial_dims

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to (B, C, sizes + 1)."""
        return F.pad(x, list(self.pad))


class AEKLDownsample(nn.Module):
    """
    Halve the size of an image by a strided convolution.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of channels, which stays.
    """

    def __init__(self, spatial_dims: int, in_channels: int) -> None:
        super().__init__()
        self.pad = AsymmetricPad(spatial_dims=spatial_dims)
        self.conv = Convolution(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=in_channels,
            strides=2,
            kernel_size=3,
            padding=0,
            conv_only=True,
        )

    def spatial_reach(self, axis: int) -> Reach | None:
        """Output j sees the inputs 2 j to 2 j + 2, unless somebody has replaced the layers; see :class:`Reach`."""
        layers = list(self.conv.children())
        found = reach_of(layers[0], axis) if len(layers) == 1 else None
        as_built = type(self.pad) is AsymmetricPad and found == Reach(after=1, down=2, offset=-1)
        return Reach(after=1, down=2) if as_built else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, sizes) to (B, C, half the sizes)."""
        out: torch.Tensor = self.conv(self.pad(x))
        return out


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


class AEKLResBlock(nn.Module):
    """
    Residual block of an autoencoder.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's channels.
        norm_num_groups: into how many groups the norms divide the channels.
        norm_eps: what the norms add to the variance.
        out_channels: number of the output's channels, ``in_channels`` if None.
    """

    works_on_slabs = True

    def __init__(
        self, spatial_dims: int, in_channels: int, norm_num_groups: int, norm_eps: float, out_channels: int | None
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = width = in_channels if out_channels is None else out_channels
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels, eps=norm_eps)
        self.conv1 = _convolution(spatial_dims, in_channels, width)
        self.norm2 = nn.GroupNorm(norm_num_groups, width, eps=norm_eps)
        self.conv2 = _convolution(spatial_dims, width, width)
        self.nin_shortcut: nn.Module = nn.Identity()
        if width != in_channels:
            self.nin_shortcut = _convolution(spatial_dims, in_channels, width, kernel_size=1)

    def volume_steps(self, steps: VolumeSteps, volume: int) -> int:
        """See :class:`VolumeSteps`."""
        hidden = steps.add(volume, self.norm1, F.silu, self.conv1)
        return steps.add(hidden, self.norm2, F.silu, self.conv2, plus=steps.branch(volume, self.nin_shortcut))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, sizes) to (B, out_channels, sizes)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        out: torch.Tensor = self.nin_shortcut(x) + h
        return out


@dataclass(frozen=True)
class _Layers(LayerBuilder):
    """
    Builds the layers of :class:`Encoder` and :class:`Decoder` from this module's classes.

    Args:
        use_convtranspose: whether transposed convolutions double the size, or else a convolution after repeating
            every position.

    The other arguments are those of :class:`LayerBuilder`.
    """

    use_convtranspose: bool = False

    def conv(self, in_channels: int, out_channels: int) -> nn.Module:
        return _convolution(self.spatial_dims, in_channels, out_channels)

    def norm(self, channels: int) -> nn.Module:
        return nn.GroupNorm(self.norm_num_groups, channels, eps=self.norm_eps)

    def residual(self, in_channels: int, out_channels: int) -> nn.Module:
        return AEKLResBlock(
            spatial_dims=self.spatial_dims,
            in_channels=in_channels,
            norm_num_groups=self.norm_num_groups,
            norm_eps=self.norm_eps,
            out_channels=out_channels,
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
        return AEKLDownsample(spatial_dims=self.spatial_dims, in_channels=channels)

    def upsample(self, channels: int) -> nn.Module:
        if self.use_convtranspose:
            return Upsample(spatial_dims=self.spatial_dims, mode="deconv", in_channels=channels, out_channels=channels)
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


class Encoder(Cascade):
    """
    Encoder of an autoencoder: from an image to a smaller latent.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the image's channels.
        channels: widths of the levels; each level after the first has half the size.
        out_channels: number of the latent's channels.
        num_res_blocks: number of residual blocks of each level.
        norm_num_groups: into how many groups the norms divide the channels.
        norm_eps: what the norms add to the variance.
        attention_levels: whether attention follows the residual blocks of each level.
        with_nonlocal_attn: whether attention between two residual blocks ends the encoder. Defaults to True.
        include_fc: whether attention ends in an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether one linear computes q, k and v. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether attention ends in an output projection; None (the default) follows ``include_fc``.
        out_activation: whether a SiLU comes before the last convolution. Defaults to False.

    Raises:
        ValueError: see :func:`resolve_levels`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int],
        out_channels: int,
        num_res_blocks: Sequence[int],
        norm_num_groups: int,
        norm_eps: float,
        attention_levels: Sequence[bool],
        with_nonlocal_attn: bool = True,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
        out_activation: bool = False,
    ) -> None:
        attention = AttentionOptions(
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
        )
        layers = _Layers(spatial_dims, norm_num_groups, norm_eps, attention)
        levels = resolve_levels(channels, num_res_blocks, attention_levels, norm_num_groups)
        super().__init__(encoder_blocks(layers, in_channels, out_channels, levels, with_nonlocal_attn, out_activation))
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.channels, self.num_res_blocks, self.attention_levels = channels, num_res_blocks, attention_levels
        self.norm_num_groups, self.norm_eps = norm_num_groups, norm_eps


class Decoder(Cascade):
    """
    Decoder of an autoencoder: from a latent to an image.

    Args:
        channels: widths of the levels in the encoder's order, from the image to the latent.
        in_channels: number of the latent's channels.
        out_channels: number of the image's channels.
        with_nonlocal_attn: whether attention between two residual blocks begins the decoder. Defaults to True.
        use_convtranspose: whether transposed convolutions double the size, or else a convolution after repeating
            every position. Defaults to False.

    The other arguments are those of :class:`Encoder`.
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
        with_nonlocal_attn: bool = True,
        use_convtranspose: bool = False,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
        out_activation: bool = False,
    ) -> None:
        attention = AttentionOptions(
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            use_proj_attn=use_proj_attn,
        )
        layers = _Layers(spatial_dims, norm_num_groups, norm_eps, attention, use_convtranspose)
        levels = resolve_levels(channels, num_res_blocks, attention_levels, norm_num_groups)
        super().__init__(decoder_blocks(layers, in_channels, out_channels, levels, with_nonlocal_attn, out_activation))
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.channels, self.num_res_blocks, self.attention_levels = channels, num_res_blocks, attention_levels
        self.norm_num_groups, self.norm_eps = norm_num_groups, norm_eps


class AutoencoderKL(GaussianLatent):
    """
    Autoencoder with a KL-regularized latent (Rombach et al., https://arxiv.org/abs/2112.10752; Pinaya et al.,
    https://arxiv.org/abs/2209.07162).

    The size of the latent is that of the image, halved and rounded down at each level after the first: an image whose
    size is not a multiple of ``2 ** (len(channels) - 1)`` comes back smaller.

    Args:
        spatial_dims: number of spatial axes: 1, 2 or 3.
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
        use_checkpoint: whether activations are computed again in the backward pass instead of kept.
            Defaults to False; a scripted network always keeps them.
        use_convtranspose: whether the decoder doubles the size by transposed convolutions, or else by a convolution
            after repeating every position. Defaults to False.
        include_fc: whether attention ends in an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether one linear computes q, k and v. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        use_proj_attn: whether attention ends in an output projection; None (the default) follows ``include_fc``.
        as_in_latent_diffusion: whether the network is built as that of latent diffusion, and so of diffusers: a SiLU
            comes before the last convolutions of encoder and decoder, the encoder makes twice as many features as the
            latent has channels, and the decoder has one residual block more at each level. Defaults to False.

    Raises:
        ValueError: if ``channels`` are not multiples of ``norm_num_groups``, or differ in number from
            ``num_res_blocks`` or ``attention_levels``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.

    Example::

        # slices of 256 x 256 to latents of 64 x 64 and back
        net = AutoencoderKL(2, channels=(32, 64, 64), num_res_blocks=2, attention_levels=(False, False, True))
        reconstruction, z_mu, z_sigma = net(torch.randn(1, 1, 256, 256))
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
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
        use_checkpoint: bool = False,
        use_convtranspose: bool = False,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
        as_in_latent_diffusion: bool = False,
    ) -> None:
        resolve_levels(channels, num_res_blocks, attention_levels, norm_num_groups)
        if isinstance(num_res_blocks, int):
            num_res_blocks = ensure_tuple_rep(num_res_blocks, len(channels))
        features = latent_channels * (2 if as_in_latent_diffusion else 1)
        last = {"out_activation": True} if as_in_latent_diffusion else {}  # a subclass of old may not know it
        encoder = Encoder(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            channels=channels,
            out_channels=features,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            attention_levels=attention_levels,
            with_nonlocal_attn=with_encoder_nonlocal_attn,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **projection_argument(use_proj_attn),
            **last,
        )
        decoder = Decoder(
            spatial_dims=spatial_dims,
            channels=channels,
            in_channels=latent_channels,
            out_channels=out_channels,
            num_res_blocks=[blocks + 1 for blocks in num_res_blocks] if as_in_latent_diffusion else num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            attention_levels=attention_levels,
            with_nonlocal_attn=with_decoder_nonlocal_attn,
            use_convtranspose=use_convtranspose,
            include_fc=include_fc,
            use_combined_linear=use_combined_linear,
            use_flash_attention=use_flash_attention,
            **projection_argument(use_proj_attn),
            **last,
        )
        widths = features, features, latent_channels
        convolutions = [_convolution(spatial_dims, width, latent_channels, kernel_size=1) for width in widths]
        super().__init__(encoder, decoder, convolutions, latent_channels)
        self.use_checkpoint = use_checkpoint

    @torch.jit.export
    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: images, (B, in_channels, sizes).

        Returns:
            mean and standard deviation of the latent, both (B, latent_channels, smaller sizes)
        """
        if torch.jit.is_scripting() or not self.use_checkpoint:
            return self.distribution(self.encoder(x))
        return self.distribution(recomputed(self.encoder, x))

    @torch.jit.export
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """
        Args:
            z: latents, (B, latent_channels, sizes).

        Returns:
            images, (B, out_channels, larger sizes)
        """
        z = self.post_quant_conv(z)
        if torch.jit.is_scripting() or not self.use_checkpoint:
            out: torch.Tensor = self.decoder(z)
            return out
        return recomputed(self.decoder, z)

    @torch.jit.export
    def reconstruct(self, x: torch.Tensor) -> torch.Tensor:
        """Decode the mean latent of the images ``x``, (B, in_channels, sizes)."""
        return self.decode(self.encode(x)[0])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Args:
            x: images, (B, in_channels, sizes).

        Returns:
            reconstruction of a latent that is drawn, (B, out_channels, sizes), and the latent's mean and standard
            deviation
        """
        z_mu, z_sigma = self.encode(x)
        return self.decode(self.sampling(z_mu, z_sigma)), z_mu, z_sigma

    @torch.jit.export
    def decode_stage_2_outputs(self, z: torch.Tensor) -> torch.Tensor:
        """Decode latents that a diffusion model made."""
        return self.decode(z)
