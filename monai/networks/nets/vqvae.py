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

"""The autoencoder whose latent consists of entries of a codebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks import Convolution
from monai.networks.blocks.autoencoder import Cascade, recomputed
from monai.networks.blocks.volume_steps import VolumeSteps
from monai.networks.layers import Act
from monai.networks.layers.utils import get_act_layer
from monai.networks.layers.vector_quantizer import EMAQuantizer, VectorQuantizer
from monai.networks.state_dict.hooks import OldCheckpoints
from monai.utils import ensure_tuple_rep

__all__ = ["VQVAE"]


class VQVAEResidualUnit(nn.Module):
    """
    Residual unit of a VQVAE (Tudosiu et al., https://arxiv.org/abs/2209.03177).

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's and output's channels.
        num_res_channels: number of channels in between.
        act: activation in between, its name or name and arguments. Defaults to ReLU.
        dropout: fraction dropped in training. Defaults to 0.0.
        bias: whether the convolutions have a bias. Defaults to True.
    """

    works_on_slabs = True

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_res_channels: int,
        act: tuple | str | None = Act.RELU,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.in_channels, self.num_res_channels = spatial_dims, in_channels, num_res_channels
        self.act, self.dropout, self.bias = act, dropout, bias
        self.conv1 = Convolution(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=num_res_channels,
            adn_ordering="DA",
            act=act,
            dropout=dropout,
            bias=bias,
        )
        self.conv2 = Convolution(
            spatial_dims=spatial_dims,
            in_channels=num_res_channels,
            out_channels=in_channels,
            bias=bias,
            conv_only=True,
        )

    def volume_steps(self, steps: VolumeSteps, volume: int) -> int:
        """See :class:`VolumeSteps`."""
        hidden = steps.add(volume, self.conv1)
        return steps.add(hidden, self.conv2, plus=steps.branch(volume), then=F.relu)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, sizes) to the same shape."""
        return F.relu(x + self.conv2(self.conv1(x)), inplace=True)


class Encoder(Cascade):
    """
    Encoder of a VQVAE: from an image to encodings.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the image's channels.
        out_channels: number of the encodings' channels.
        channels: widths of the levels.
        num_res_layers: number of residual units of each level.
        num_res_channels: widths inside the residual units, for each level.
        downsample_parameters: stride, kernel size, dilation and padding of each level's first convolution.
        dropout: fraction dropped in training.
        act: activation, its name or name and arguments.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        num_res_layers: int,
        num_res_channels: Sequence[int],
        downsample_parameters: Sequence[tuple[int, int, int, int]],
        dropout: float,
        act: tuple | str | None,
    ) -> None:
        blocks: list[nn.Module] = []
        for level, (stride, kernel_size, dilation, padding) in enumerate(downsample_parameters):
            down = Convolution(
                spatial_dims=spatial_dims,
                in_channels=channels[level - 1] if level else in_channels,
                out_channels=channels[level],
                strides=stride,
                kernel_size=kernel_size,
                adn_ordering="DA",
                act=act,
                dropout=dropout if level else None,
                dropout_dim=1,
                dilation=dilation,
                padding=padding,
            )
            blocks.append(down)
            blocks += _residual_units(
                spatial_dims, channels[level], num_res_channels[level], num_res_layers, act, dropout
            )
        super().__init__([*blocks, _convolution(spatial_dims, channels[-1], out_channels)])
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.channels, self.num_res_layers, self.num_res_channels = channels, num_res_layers, num_res_channels
        self.downsample_parameters, self.dropout, self.act = downsample_parameters, dropout, act


class Decoder(Cascade):
    """
    Decoder of a VQVAE: from codebook entries to an image.

    Args:
        in_channels: number of the entries' channels.
        out_channels: number of the image's channels.
        channels: widths of the levels in the encoder's order, from the image to the encodings.
        num_res_channels: widths inside the residual units, in the same order.
        upsample_parameters: stride, kernel size, dilation, padding and output padding of each level's last
            convolution, a transposed one, in the decoder's order.
        output_act: activation of the image, its name or name and arguments; None leaves it out.

    The other arguments are those of :class:`Encoder`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        num_res_layers: int,
        num_res_channels: Sequence[int],
        upsample_parameters: Sequence[tuple[int, int, int, int, int]],
        dropout: float,
        act: tuple | str | None,
        output_act: tuple | str | None,
    ) -> None:
        widths, inner_widths = [*reversed(channels), out_channels], list(reversed(num_res_channels))
        blocks: list[nn.Module] = [_convolution(spatial_dims, in_channels, widths[0])]
        for level, (stride, kernel_size, dilation, padding, output_padding) in enumerate(upsample_parameters):
            last = level == len(channels) - 1
            blocks += _residual_units(spatial_dims, widths[level], inner_widths[level], num_res_layers, act, dropout)
            up = Convolution(
                spatial_dims=spatial_dims,
                in_channels=widths[level],
                out_channels=widths[level + 1],
                strides=stride,
                kernel_size=kernel_size,
                adn_ordering="DA",
                act=act,
                dropout=None if last else dropout,
                norm=None,
                dilation=dilation,
                conv_only=last,
                is_transposed=True,
                padding=padding,
                output_padding=output_padding,
            )
            blocks.append(up)
        super().__init__([*blocks, get_act_layer(output_act)] if output_act else blocks)
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.channels, self.num_res_layers, self.num_res_channels = channels, num_res_layers, num_res_channels
        self.upsample_parameters, self.dropout = upsample_parameters, dropout
        self.act, self.output_act = act, output_act


def _convolution(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """A bare convolution that keeps the size of its input."""
    return Convolution(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        strides=1,
        kernel_size=3,
        padding=1,
        conv_only=True,
    )


def _residual_units(
    spatial_dims: int, channels: int, inner_channels: int, number: int, act: tuple | str | None, dropout: float
) -> list[nn.Module]:
    return [
        VQVAEResidualUnit(
            spatial_dims=spatial_dims, in_channels=channels, num_res_channels=inner_channels, act=act, dropout=dropout
        )
        for _ in range(number)
    ]


class VQVAE(OldCheckpoints):
    """
    Autoencoder whose latent consists of entries of a codebook (van den Oord et al., https://arxiv.org/abs/1711.00937;
    Tudosiu et al., https://arxiv.org/abs/2209.03177).

    Args:
        spatial_dims: number of spatial axes: 1, 2 or 3.
        in_channels: number of the input's channels.
        out_channels: number of the reconstruction's channels.
        channels: widths of the levels.
        num_res_layers: number of residual units of each level. Defaults to 3.
        num_res_channels: widths inside the residual units, one number for all levels or one for each.
        downsample_parameters: stride, kernel size, dilation and padding of the convolution that begins a level of the
            encoder, once for all levels or for each.
        upsample_parameters: stride, kernel size, dilation, padding and output padding of the transposed convolution
            that ends a level of the decoder, likewise.
        num_embeddings: number of entries of the codebook. Defaults to 32.
        embedding_dim: width of an entry. Defaults to 64.
        embedding_init: how the entries are drawn, see :class:`EMAQuantizer`.
        commitment_cost: weight of the loss that draws encodings to their entries. Defaults to 0.25.
        decay: share of the entries' moving average that a training step keeps. Defaults to 0.5.
        epsilon: added to the entries' counts. Defaults to 1e-5.
        dropout: fraction dropped in training. Defaults to 0.0.
        act: activation, its name or name and arguments. Defaults to ReLU.
        output_act: activation of the reconstruction, likewise; None leaves it out.
        ddp_sync: whether all processes of a distributed training share one codebook. Defaults to True.
        use_checkpointing: whether activations are computed again in the backward pass instead of kept.
            Defaults to False; a scripted network always keeps them.

    Raises:
        ValueError: if an argument has not one value for each level, or the wrong number of convolution parameters.
    """

    works_on_slabs = True

    # numbers of axes that the release can run
    release_dims = (2, 3)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (96, 96, 192),
        num_res_layers: int = 3,
        num_res_channels: Sequence[int] | int = (96, 96, 192),
        downsample_parameters: Sequence[tuple[int, int, int, int]] | tuple[int, int, int, int] = ((2, 4, 1, 1),) * 3,
        upsample_parameters: Sequence[tuple[int, int, int, int, int]] | tuple[int, int, int, int, int] = (
            (2, 4, 1, 1, 0),
        )
        * 3,
        num_embeddings: int = 32,
        embedding_dim: int = 64,
        embedding_init: str = "normal",
        commitment_cost: float = 0.25,
        decay: float = 0.5,
        epsilon: float = 1e-5,
        dropout: float = 0.0,
        act: tuple | str | None = Act.RELU,
        output_act: tuple | str | None = None,
        ddp_sync: bool = True,
        use_checkpointing: bool = False,
    ):
        super().__init__()
        inner = _inner_widths(num_res_channels, channels)
        down: Any = _convolution_parameters("downsample_parameters", downsample_parameters, 4, len(channels))
        up: Any = _convolution_parameters("upsample_parameters", upsample_parameters, 5, len(channels))
        self.spatial_dims = spatial_dims
        self.channels = channels
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.num_res_layers, self.num_res_channels = num_res_layers, inner
        self.use_checkpointing = use_checkpointing

        self.encoder = Encoder(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=embedding_dim,
            channels=channels,
            num_res_layers=num_res_layers,
            num_res_channels=inner,
            downsample_parameters=down,
            dropout=dropout,
            act=act,
        )
        self.decoder = Decoder(
            spatial_dims=spatial_dims,
            in_channels=embedding_dim,
            out_channels=out_channels,
            channels=channels,
            num_res_layers=num_res_layers,
            num_res_channels=inner,
            upsample_parameters=up,
            dropout=dropout,
            act=act,
            output_act=output_act,
        )
        self.quantizer = VectorQuantizer(
            quantizer=EMAQuantizer(
                spatial_dims=spatial_dims,
                num_embeddings=num_embeddings,
                embedding_dim=embedding_dim,
                commitment_cost=commitment_cost,
                decay=decay,
                epsilon=epsilon,
                embedding_init=embedding_init,
                ddp_sync=ddp_sync,
            )
        )

    @torch.jit.export
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, in_channels, sizes) to encodings (B, embedding_dim, smaller sizes)."""
        if torch.jit.is_scripting() or not self.use_checkpointing:
            out: torch.Tensor = self.encoder(images)
            return out
        return recomputed(self.encoder, images)

    @torch.jit.export
    def quantize(self, encodings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The codebook's entries that are nearest to the encodings, of the same shape, and the loss, a scalar."""
        loss, entries = self.quantizer(encodings)
        return entries, loss

    @torch.jit.export
    def decode(self, quantizations: torch.Tensor) -> torch.Tensor:
        """Entries (B, embedding_dim, sizes) to images (B, out_channels, larger sizes)."""
        if torch.jit.is_scripting() or not self.use_checkpointing:
            out: torch.Tensor = self.decoder(quantizations)
            return out
        return recomputed(self.decoder, quantizations)

    @torch.jit.export
    def index_quantize(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, in_channels, sizes) to the indices of codebook entries, (B, smaller sizes)."""
        return self.quantizer.quantize(self.encode(images))

    @torch.jit.export
    def decode_samples(self, embedding_indices: torch.Tensor) -> torch.Tensor:
        """Indices of codebook entries (B, sizes) to images (B, out_channels, larger sizes)."""
        return self.decode(self.quantizer.embed(embedding_indices))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            images: (B, in_channels, sizes).

        Returns:
            the reconstruction, (B, out_channels, sizes), and the loss of the codebook, a scalar
        """
        entries, loss = self.quantize(self.encode(images))
        return self.decode(entries), loss

    @torch.jit.export
    def encode_stage_2_inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Codebook entries of images, for a diffusion model to learn."""
        return self.quantize(self.encode(x))[0]

    @torch.jit.export
    def decode_stage_2_outputs(self, z: torch.Tensor) -> torch.Tensor:
        """Decode latents that a diffusion model made, after bringing them to the codebook."""
        return self.decode(self.quantize(z)[0])


def _inner_widths(num_res_channels: Sequence[int] | int, channels: Sequence[int]) -> Sequence[int]:
    widths = (
        ensure_tuple_rep(num_res_channels, len(channels)) if isinstance(num_res_channels, int) else num_res_channels
    )
    if len(widths) != len(channels):
        raise ValueError(f"num_res_channels={num_res_channels} should be one number, or as many as {channels=}.")
    return widths


def _convolution_parameters(name: str, parameters: Sequence, length: int, levels: int) -> list[tuple[int, ...]]:
    """Check the parameters of the convolutions that change the size, and repeat them for every level if need be."""
    if all(isinstance(value, int) for value in parameters):
        parameters = [parameters] * levels
    rows = [tuple(row) if isinstance(row, Sequence) else () for row in parameters]
    if any(len(row) != length or not all(isinstance(value, int) for value in row) for row in rows):
        raise ValueError(f"{name}={parameters} should be {length} integers, or so many for each level.")
    if len(rows) != levels:
        raise ValueError(f"{name} has {len(rows)} entries, the network {levels} levels: give one entry for each.")
    return rows
