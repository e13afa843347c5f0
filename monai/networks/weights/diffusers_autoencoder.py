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

"""How the levels of diffusers' AutoencoderKL become the blocks of ours, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.state_dict.rules import Misfit, Part, Rename, Rule

__all__ = ["PATHS", "Blocks", "NoQuantization"]

PATHS = (("encoder", "down_blocks"), ("decoder", "up_blocks"))
_RESIDUAL = (("norm1.", "norm1."), ("conv1.", "conv1.conv."), ("norm2.", "norm2."), ("conv2.", "conv2.conv."))
_SHORTCUT = ("conv_shortcut.", "nin_shortcut.conv.")


@dataclass(frozen=True)
class _Level:
    """
    A level of an encoder or a decoder, in the order in which an image goes through.

    Args:
        name: of its part in diffusers' keys, with a dot at its end.
        blocks: how many residual blocks our network has there.
        attends: whether attention follows each of them.
    """

    name: str
    blocks: int
    attends: bool


def _levels(net: AutoencoderKL, half: str, stages: str) -> list[_Level]:
    part: Any = getattr(net, half)
    levels = list(zip(part.num_res_blocks, part.attention_levels))
    if half == "decoder":
        levels.reverse()
    return [_Level(f"{half}.{stages}.{number}.", *level) for number, level in enumerate(levels)]


def _relative(part: Part) -> list[str]:
    return [key[len(part.prefix) :] for key in part.state if key.startswith(part.prefix)]


class _OfAutoencoder(Rule):
    """A rule for the network as a whole; it does nothing to another one."""

    def apply(self, part: Part) -> None:
        if isinstance(part.module, AutoencoderKL):
            self._apply(part)

    def _apply(self, part: Part) -> None:
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class NoQuantization(_OfAutoencoder):
    """Where diffusers has no convolutions around the latent (Flux, Stable Diffusion 3), ours are identities."""

    does = "an identity: the autoencoder has no convolutions around its latent"

    def _apply(self, part: Part) -> None:
        latent, keys = part.module.latent_channels, _relative(part)
        for name, width in (("quant_conv", 2 * latent), ("post_quant_conv", latent)):
            if not any(key.startswith(name) for key in keys):
                example = part.state.get(f"{part.prefix}decoder.conv_in.weight")
                if example is None:
                    raise Misfit(f"{part.prefix}decoder.conv_in.weight is missing.")
                weight = torch.eye(width, dtype=example.dtype).reshape(width, width, *[1] * (example.dim() - 2))
                part.put(f"{name}.weight", weight)
                part.put(f"{name}.bias", torch.zeros(width, dtype=example.dtype))

    def inverse(self) -> None:
        return None  # diffusers has them as well


@dataclass(frozen=True)
class Blocks(_OfAutoencoder):
    """
    The blocks of the levels are numbered through.

    Args:
        backwards: whether our names become diffusers'.
    """

    backwards: bool = False

    def _apply(self, part: Part) -> None:
        for old, new in _places(part.module):
            (Rename(new, old) if self.backwards else Rename(old, new)).apply(part)

    def inverse(self) -> Blocks:
        return Blocks(not self.backwards)


def _places(net: AutoencoderKL) -> Iterator[tuple[str, str]]:
    """Beginnings of keys of diffusers and ours. None of ours is one of diffusers."""
    for half, stages in PATHS:
        blocks = iter(f"{half}.blocks.{number}." for number in range(10**6))
        yield f"{half}.conv_in.", f"{next(blocks)}conv."
        middle = [(f"{half}.mid_block.{name}.", attends) for name, attends in _MIDDLE]
        levels = list(_by_level(net, half, stages))
        for name, attends in [*levels, *middle] if half == "encoder" else [*middle, *levels]:
            yield from _block(name, next(blocks), attends)
        yield f"{half}.conv_norm_out.", next(blocks)
        next(blocks)  # a SiLU
        yield f"{half}.conv_out.", f"{next(blocks)}conv."


_MIDDLE = (("resnets.0", False), ("attentions.0", True), ("resnets.1", False))


def _by_level(net: AutoencoderKL, half: str, stages: str) -> Iterator[tuple[str, bool | None]]:
    """The blocks of the levels; each with whether it attends, None for one that changes the size."""
    levels = _levels(net, half, stages)
    for level in levels:
        for number in range(level.blocks):
            yield f"{level.name}resnets.{number}.", False
            if level.attends:
                yield f"{level.name}attentions.{number}.", True
        if level is not levels[-1]:
            yield f"{level.name}{'downsamplers' if half == 'encoder' else 'upsamplers'}.0.", None


def _block(old: str, new: str, attends: bool | None) -> Iterator[tuple[str, str]]:
    if attends:
        yield old, new
    elif attends is None:
        yield f"{old}conv.", f"{new}{'conv' if 'down' in old else 'postconv'}.conv."
    else:
        for name, own in (*_RESIDUAL, _SHORTCUT):
            yield old + name, new + own
