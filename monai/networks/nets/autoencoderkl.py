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

from monai.networks.blocks.autoencoder import (
    AEKLDownsample,
    AEKLResBlock,
    AsymmetricPad,
    Cascade,
    GaussianLatent,
    Parts,
    decoder_blocks,
    encoder_blocks,
    recomputed,
    resolve_levels,
)
from monai.networks.blocks.diffusion.layers import attention_options

__all__ = ["AEKLDownsample", "AEKLResBlock", "AsymmetricPad", "AutoencoderKL", "Decoder", "Encoder"]


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
    ) -> None:
        parts = Parts(spatial_dims, norm_num_groups, norm_eps, attention_options(locals()))
        levels = resolve_levels(channels, num_res_blocks, attention_levels, norm_num_groups)
        self.build(encoder_blocks(parts, in_channels, out_channels, levels, with_nonlocal_attn))


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
    ) -> None:
        parts = Parts(spatial_dims, norm_num_groups, norm_eps, attention_options(locals()), use_convtranspose)
        levels = resolve_levels(channels, num_res_blocks, attention_levels, norm_num_groups)
        self.build(decoder_blocks(parts, in_channels, out_channels, levels, with_nonlocal_attn))


class AutoencoderKL(GaussianLatent):
    """
    Autoencoder with a KL-regularized latent (Rombach et al., https://arxiv.org/abs/2112.10752; Pinaya et al.,
    https://arxiv.org/abs/2209.07162).

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

    Raises:
        ValueError: if ``channels`` are not multiples of ``norm_num_groups``, or differ in number from
            ``num_res_blocks`` or ``attention_levels``.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.

    Example::

        # slices of 256 x 256 to latents of 64 x 64 and back
        net = AutoencoderKL(2, channels=(32, 64, 64), num_res_blocks=2, attention_levels=(False, False, True))
        reconstruction, z_mu, z_sigma = net(torch.randn(1, 1, 256, 256))
    """

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
    ) -> None:
        parts = Parts(spatial_dims, norm_num_groups, norm_eps, attention_options(locals()), use_convtranspose)
        levels = resolve_levels(channels, num_res_blocks, attention_levels, norm_num_groups)
        encoder = encoder_blocks(parts, in_channels, latent_channels, levels, with_encoder_nonlocal_attn)
        decoder = decoder_blocks(parts, latent_channels, out_channels, levels, with_decoder_nonlocal_attn)
        super().__init__(
            Encoder.from_options(encoder), Decoder.from_options(decoder), spatial_dims, latent_channels, use_checkpoint
        )

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
            return self.decoder(z)
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
