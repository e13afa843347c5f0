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

import math
from collections.abc import Callable, Mapping
from typing import Any, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai.networks.blocks.attention.options import AttentionOptions
from monai.networks.blocks.convolutions import Convolution
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.mlp import MLPBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.blocks.upsample import UpSample
from monai.networks.layers.factories import Pool

__all__ = [
    "BuiltFromOptions",
    "DiffusionUNetResnetBlock",
    "DiffusionUNetTransformerBlock",
    "DiffusionUnetDownsample",
    "ResidualBlock",
    "SpatialTransformer",
    "WrappedUpsample",
    "attention_options",
    "convolution",
    "embedding_mlp",
    "get_timestep_embedding",
    "nearest_upsample",
    "zero_module",
]


def zero_module(module: nn.Module) -> nn.Module:
    """Set every parameter of ``module`` to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def convolution(spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int = 3) -> Convolution:
    """Build a bare convolution that keeps the size of its input."""
    return Convolution(
        spatial_dims, in_channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2, conv_only=True
    )


def embedding_mlp(in_features: int, out_features: int) -> nn.Sequential:
    """Build the two linears that turn a time, a body region or a spacing into an embedding."""
    return nn.Sequential(nn.Linear(in_features, out_features), nn.SiLU(), nn.Linear(out_features, out_features))


def get_timestep_embedding(timesteps: torch.Tensor, embedding_dim: int, max_period: int = 10000) -> torch.Tensor:
    """
    Encode time steps by cosines and sines of geometrically spaced frequencies (Ho et al.,
    https://arxiv.org/abs/2006.11239).

    Args:
        timesteps: (B,).
        embedding_dim: C, the width of the embedding; a last odd channel is zero.
        max_period: sets the lowest frequency, 1 / ``max_period``.

    Returns:
        (B, C), float32

    Raises:
        ValueError: if ``timesteps`` has another number of axes than one.
    """
    if timesteps.dim() != 1:
        raise ValueError(f"timesteps should have one axis, the batch, got the shape {list(timesteps.shape)}.")
    half = embedding_dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = torch.exp(-math.log(max_period) * steps / half)
    angles = timesteps[:, None].float() * frequencies[None, :]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, embedding_dim % 2))


def attention_options(arguments: Mapping[str, Any]) -> AttentionOptions:
    """
    Collect the attention options among the arguments of a public block or network.

    Args:
        arguments: their values by name, ``locals()`` at the head of a constructor say; other names are passed over.
    """
    named = ("include_fc", "use_combined_linear", "use_flash_attention", "use_proj_attn")
    return AttentionOptions(
        dropout_rate=arguments.get("dropout_cattn", arguments.get("dropout", 0.0)),
        attention_dtype=torch.float if arguments.get("upcast_attention") else None,
        **{name: arguments[name] for name in named if name in arguments},
    )


class BuiltFromOptions(nn.Module):
    """A block whose constructor takes the release's arguments, and which networks build from one object of options."""

    @classmethod
    def from_options(cls, *args, **kwargs):
        """Build a block from the arguments of :meth:`build`."""
        block = cls.__new__(cls)
        block.build(*args, **kwargs)
        return block

    def build(self, *args, **kwargs) -> None:
        """Register the parts of the block; takes the place of a constructor."""
        raise NotImplementedError(type(self).__name__)


class WrappedUpsample(UpSample):
    """An :class:`UpSample` that is called with a time embedding too, which it does not use."""

    layout_role = "nearest upsampling"

    def forward(self, x: torch.Tensor, emb: Optional[torch.Tensor] = None) -> torch.Tensor:
        """(B, C, sizes) to the upsampled image."""
        for layer in self:
            x = layer(x)
        return x


def nearest_upsample(spatial_dims: int, channels: int, post_conv: nn.Module | None = None) -> WrappedUpsample:
    """Build a module that repeats every position along each axis, and then applies ``post_conv``."""
    return WrappedUpsample(
        spatial_dims,
        channels,
        channels,
        scale_factor=2.0,
        mode="nontrainable",
        interp_mode="nearest",
        post_conv=post_conv,
        align_corners=None,
    )


class DiffusionUnetDownsample(nn.Module):
    """
    Halves the size of an image along each axis.

    Args:
        spatial_dims: number of spatial axes.
        num_channels: number of the input's channels.
        use_conv: whether a strided convolution does it, or else the average of neighbors.
        out_channels: number of the output's channels, ``num_channels`` unless given.
        padding: zeros put on both ends of each axis before the convolution. Defaults to 1.

    Raises:
        ValueError: if the average is to change the number of channels.
    """

    def __init__(
        self, spatial_dims: int, num_channels: int, use_conv: bool, out_channels: int | None = None, padding: int = 1
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.out_channels = out_channels or num_channels
        self.use_conv = use_conv
        if not use_conv and self.out_channels != num_channels:
            raise ValueError(
                f"without a convolution, out_channels={out_channels} should equal num_channels={num_channels}: "
                "pass use_conv=True."
            )
        self.op: nn.Module
        if use_conv:
            self.op = Convolution(
                spatial_dims, num_channels, self.out_channels, strides=2, kernel_size=3, padding=padding, conv_only=True
            )
        else:
            self.op = Pool[Pool.AVG, spatial_dims](kernel_size=2, stride=2)

    def forward(self, x: torch.Tensor, emb: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Args:
            x: (B, num_channels, sizes).
            emb: time embedding, not used.

        Returns:
            (B, out_channels, half the sizes)

        Raises:
            ValueError: if the image has another number of channels.
        """
        if x.shape[1] != self.num_channels:
            raise ValueError(f"The input has {x.shape[1]} channels, this block takes {self.num_channels}.")
        if not self.use_conv and x.device.type == "cpu":
            if x.dtype == torch.half or x.dtype == torch.bfloat16:  # whose volumes torch cannot average there
                return self.op(x.float()).to(x.dtype)
        return self.op(x)


class ResidualBlock(nn.Module):
    """
    Two convolutions and a shortcut, with a time embedding added in between: what all residual blocks of the diffusion
    networks share. A subclass says in ``forward`` how its norms are called.

    Args:
        make_norm: builds the norm of so many channels.

    The other arguments are those of :class:`DiffusionUNetResnetBlock`.
    """

    layout_role = "diffusion residual block"

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        temb_channels: int,
        out_channels: int | None,
        up: bool,
        down: bool,
        make_norm: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.channels = in_channels
        self.emb_channels = temb_channels
        self.out_channels = out_channels = out_channels or in_channels
        self.up, self.down = up, down

        self.norm1 = make_norm(in_channels)
        self.nonlinearity = nn.SiLU()
        self.conv1 = convolution(spatial_dims, in_channels, out_channels)
        self.upsample = nearest_upsample(spatial_dims, in_channels) if up else None
        self.downsample = (
            DiffusionUnetDownsample(spatial_dims, in_channels, use_conv=False) if down and not up else None
        )
        self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = make_norm(out_channels)
        self.conv2 = zero_module(convolution(spatial_dims, out_channels, out_channels))
        self.skip_connection: nn.Module = nn.Identity()
        if out_channels != in_channels:
            self.skip_connection = convolution(spatial_dims, in_channels, out_channels, kernel_size=1)

    def resample(self, x: torch.Tensor) -> torch.Tensor:
        """Change the size of an image as the block is asked to."""
        if self.upsample is not None:
            x = self.upsample(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x

    def add_time(self, h: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Add the time embedding (B, temb_channels) to every position of the features (B, C, sizes)."""
        shift = self.time_emb_proj(self.nonlinearity(emb))
        for _ in range(self.spatial_dims):
            shift = shift.unsqueeze(-1)
        return h + shift


class DiffusionUNetResnetBlock(ResidualBlock):
    """
    Residual block that is told the time.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of the input's channels.
        temb_channels: width of the time embedding.
        out_channels: number of the output's channels, ``in_channels`` unless given.
        up: whether the block doubles the size of the image. Defaults to False.
        down: whether the block halves it. Defaults to False.
        norm_num_groups: into how many groups the norms divide the channels. Defaults to 32.
        norm_eps: what the norms add to the variance. Defaults to 1e-6.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        temb_channels: int,
        out_channels: int | None = None,
        up: bool = False,
        down: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
    ) -> None:
        def make_norm(channels: int) -> nn.Module:
            return nn.GroupNorm(norm_num_groups, channels, eps=norm_eps)

        super().__init__(spatial_dims, in_channels, temb_channels, out_channels, up, down, make_norm)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: (B, in_channels, sizes).
            emb: time embedding, (B, temb_channels).

        Returns:
            (B, out_channels, sizes, doubled or halved on request)
        """
        h = self.conv1(self.resample(self.nonlinearity(self.norm1(x))))
        h = self.norm2(self.add_time(h, emb))
        return self.skip_connection(self.resample(x)) + self.conv2(self.nonlinearity(h))


class DiffusionUNetTransformerBlock(BuiltFromOptions):
    """
    Pre-norm transformer layer: self attention, cross attention, and a gated feed-forward network.

    Args:
        num_channels: width C of the tokens.
        num_attention_heads: number of attention heads.
        num_head_channels: width of one head.
        dropout: fraction of attention weights and of outputs dropped in training. Defaults to 0.0.
        cross_attention_dim: width of the context; the attention's own unless given.
        upcast_attention: whether attention is computed in float32. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether self attention computes q, k and v with one linear. Defaults to False.
        use_proj_attn: whether self and cross attention have an output projection. None (the default) leaves the choice
            to ``include_fc`` for self attention and means True for cross attention.

    Raises:
        ValueError: if ``dropout`` is outside of [0, 1], or a width does not fit without a projection.
        TypeError: if ``use_proj_attn`` is neither a bool nor None.
    """

    layout_role = "diffusion transformer"

    def __init__(
        self,
        num_channels: int,
        num_attention_heads: int,
        num_head_channels: int,
        dropout: float = 0.0,
        cross_attention_dim: int | None = None,
        upcast_attention: bool = False,
        use_flash_attention: bool = False,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        options = attention_options(locals())
        self.build(num_channels, num_attention_heads, num_head_channels, cross_attention_dim, options)

    def build(
        self, num_channels: int, heads: int, head_channels: int, context_channels: int | None, options: AttentionOptions
    ) -> None:
        """Register the parts of the block, with the attention options as one object."""
        super().__init__()
        width = heads * head_channels
        self.attn1 = SABlock(
            width, heads, dim_head=head_channels, hidden_input_size=num_channels, **options.arguments()
        )
        self.ff = MLPBlock(num_channels, 4 * num_channels, options.dropout_rate, act="GEGLU")
        self.attn2 = CrossAttentionBlock(
            width,
            heads,
            dim_head=head_channels,
            hidden_input_size=num_channels,
            context_input_size=context_channels,
            **options.arguments("include_fc", "use_combined_linear"),
        )
        self.norm1 = nn.LayerNorm(num_channels)
        self.norm2 = nn.LayerNorm(num_channels)
        self.norm3 = nn.LayerNorm(num_channels)

    def forward(self, x: torch.Tensor, context: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Args:
            x: tokens, (B, N, C).
            context: tokens that cross attention attends to, (B, K, cross_attention_dim); by default ``x`` itself.

        Returns:
            (B, N, C)
        """
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context=context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(BuiltFromOptions):
    """
    Transformer layers over all positions of an image, inside a residual connection.

    Args:
        spatial_dims: number of spatial axes.
        in_channels: number of channels C of the input and output.
        num_attention_heads: number of attention heads.
        num_head_channels: width of one head.
        num_layers: number of transformer layers. Defaults to 1.
        dropout: fraction of attention weights and of outputs dropped in training. Defaults to 0.0.
        norm_num_groups: into how many groups the norm divides the channels. Defaults to 32.
        norm_eps: what the norm adds to the variance. Defaults to 1e-6.
        cross_attention_dim: width of the context; the attention's own unless given.
        upcast_attention: whether attention is computed in float32. Defaults to False.
        include_fc: whether self attention has an output projection, where ``use_proj_attn`` is None. Defaults to True.
        use_combined_linear: whether self attention computes q, k and v with one linear. Defaults to False.
        use_flash_attention: accepted; the fused kernel is used either way. Defaults to False.
        use_proj_attn: see :class:`DiffusionUNetTransformerBlock`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_attention_heads: int,
        num_head_channels: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-6,
        cross_attention_dim: int | None = None,
        upcast_attention: bool = False,
        include_fc: bool = True,
        use_combined_linear: bool = False,
        use_flash_attention: bool = False,
        use_proj_attn: bool | None = None,
    ) -> None:
        options = attention_options(locals())
        norm = nn.GroupNorm(norm_num_groups, in_channels, eps=norm_eps)
        heads, width = num_attention_heads, num_head_channels
        self.build(spatial_dims, in_channels, heads, width, num_layers, cross_attention_dim, norm, options)

    def build(
        self,
        spatial_dims: int,
        in_channels: int,
        heads: int,
        head_channels: int,
        num_layers: int,
        context_channels: int | None,
        norm: nn.Module,
        options: AttentionOptions,
    ) -> None:
        """Register the parts of the block, with the attention options as one object."""
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        width = heads * head_channels
        self.norm = norm
        self.proj_in = convolution(spatial_dims, in_channels, width, kernel_size=1)
        layers = [
            DiffusionUNetTransformerBlock.from_options(width, heads, head_channels, context_channels, options)
            for _ in range(num_layers)
        ]
        self.transformer_blocks = nn.ModuleList(layers)
        self.proj_out = zero_module(convolution(spatial_dims, width, in_channels, kernel_size=1))

    def forward(self, x: torch.Tensor, context: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Args:
            x: (B, C, sizes).
            context: tokens to attend to, (B, K, cross_attention_dim); by default the image's own.

        Returns:
            the same shape as ``x``
        """
        h = self.proj_in(self.norm(x))
        tokens = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context=context)
        return x + self.proj_out(tokens.transpose(1, 2).reshape(h.shape).contiguous())
