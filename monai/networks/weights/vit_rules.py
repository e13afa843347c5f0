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


"""Rules for weights of other packages' vision transformers, each with its inverse."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
import torch.nn as nn

from monai.networks.state_dict.rules import Drop, DropPart, Misfit, Part, Rename, Rule

__all__ = [
    "ClassPosition",
    "DecoderLeftOut",
    "DecoderPositions",
    "FinalNorm",
    "FoldScale",
    "HeadInFront",
    "IdleNorm",
    "PatchProjection",
    "PretrainingToken",
    "Unchunk",
    "UnusedPooler",
]

POSITIONS = "patch_embedding.position_embeddings"


@dataclass(frozen=True)
class FoldScale(Rule):
    """
    A factor for each channel that followed a linear (LayerScale) goes into its weight and bias. The way back writes
    factors of one.

    Args:
        scale: key of the factors.
        linear: name of the linear, in this package.
    """

    scale: str
    linear: str
    does = "multiplied by the LayerScale that followed it"

    def apply(self, part: Part) -> None:
        keys = [key for key in (f"{self.linear}.weight", f"{self.linear}.bias") if part.prefix + key in part.state]
        if keys and not part.has(self.scale):
            raise Misfit(f"{part.prefix}{self.scale} is missing, which every block of this layout has.")
        for number, key in enumerate(keys):
            scale, value = part.take(self.scale), part.take(key)
            if scale.dim() != 1 or scale.shape[0] != value.shape[0]:
                raise Misfit(
                    f"{part.prefix}{self.scale} has shape {tuple(scale.shape)}: it should have one factor for each of "
                    f"the {value.shape[0]} rows of {part.prefix}{key}."
                )
            part.put(key, _wide(value) * _wide(scale).reshape(-1, *[1] * (value.dim() - 1)))
            if number + 1 < len(keys):
                part.put(self.scale, scale)

    def inverse(self) -> _UnitScale:
        return _UnitScale(self.scale, self.linear)


@dataclass(frozen=True)
class _UnitScale(Rule):
    """The way back of :class:`FoldScale`."""

    scale: str
    linear: str

    def apply(self, part: Part) -> None:
        weight = part.state[f"{part.prefix}{self.linear}.weight"]
        part.put(self.scale, torch.ones_like(weight[:, 0]))

    def inverse(self) -> FoldScale:
        return FoldScale(self.scale, self.linear)


@dataclass(frozen=True)
class ClassPosition(Rule):
    """
    The position embedding of the class token is added to the token once for all. The way back writes zeros for it.

    A file whose class token the user ignored loses the token's position with it.

    Args:
        old: key of the position embeddings.
        always: whether the package always has a position for the class token; otherwise the number of positions tells.
    """

    old: str = "pos_embed"
    always: bool = True
    does = "with the class token's position added to it"

    def apply(self, part: Part) -> None:
        if not part.has(self.old):
            raise Misfit(f"{part.prefix}{self.old}: the file has no position embeddings.")
        positions = part.state[part.prefix + self.old]
        if positions.dim() != 3 or positions.shape[0] != 1:
            raise Misfit(
                f"{part.prefix}{self.old} has shape {tuple(positions.shape)}, and should have (1, tokens, width)."
            )
        has_token = part.prefix + "cls_token" in part.state
        if not self._counts_class(part, positions.shape[1], has_token):
            part.move(self.old, POSITIONS)
            return
        part.take(self.old)
        part.put("class_position", positions[:, :1])
        part.put(POSITIONS, positions[:, 1:])
        first = part.take("class_position")
        if has_token:
            token = part.take("cls_token")
            if token.shape != first.shape:
                raise Misfit(f"{part.prefix}cls_token has shape {tuple(token.shape)}, its position {first.shape}.")
            part.put("cls_token", _wide(token) + _wide(first))

    def inverse(self) -> _ZeroClassPosition:
        return _ZeroClassPosition(self.old, self.always)

    def _counts_class(self, part: Part, length: int, has_token: bool) -> bool:
        """Whether the first of the positions is the class token's."""
        left_out = any(key.endswith("cls_token") for key in getattr(part.state, "ignored", {}))
        if not has_token and not left_out:
            if self.always or _is_square(length - 1) and not _is_square(length):
                raise Misfit(
                    f"{part.prefix}{self.old} has {length} positions, one of them for a class token, and the file has "
                    "no cls_token."
                )
            return False
        if self.always:
            return True
        patches = part.module.patch_embedding.n_patches
        readings = {counts for counts, extra in ((False, 0), (True, 1)) if _is_square(length - extra)}
        readings |= {counts for counts, extra in ((False, 0), (True, 1)) if length - extra == patches}
        if len(readings) != 1:
            raise Misfit(
                f"{part.prefix}{self.old} has {length} positions, which do not tell whether the class token has one of "
                f"its own: build the network with the image size of the file; it has {patches} patches."
            )
        return readings.pop()


@dataclass(frozen=True)
class _ZeroClassPosition(Rule):
    """The way back of :class:`ClassPosition`."""

    old: str
    always: bool

    def apply(self, part: Part) -> None:
        positions = part.take(POSITIONS)
        if part.prefix + "cls_token" in part.state:
            positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
        part.put(self.old, positions)

    def inverse(self) -> ClassPosition:
        return ClassPosition(self.old, self.always)


@dataclass(frozen=True)
class PatchProjection(Rule):
    """The convolution that projects patches becomes the network's: a convolution, or a linear on flattened patches."""

    old: str = "patch_embed.proj"
    does = "a convolution over patches as a linear, channels innermost"

    def apply(self, part: Part) -> None:
        block = part.module.patch_embedding
        if block.proj_type == "conv":
            Rename(f"{self.old}.", f"{_projection(block)}.").apply(part)
            return
        if part.has(f"{self.old}.weight"):
            weight = part.take(f"{self.old}.weight")
            if tuple(weight.shape[2:]) != tuple(block.patch_size):
                raise Misfit(
                    f"{part.prefix}{self.old}.weight projects patches of {tuple(weight.shape[2:])}, the network's are "
                    f"{tuple(block.patch_size)}: build it with proj_type='conv' to load them in another size."
                )
            part.put(f"{_projection(block)}.weight", weight.movedim(1, -1).flatten(1))
        Rename(f"{self.old}.bias", f"{_projection(block)}.bias").apply(part)

    def inverse(self) -> _PatchConvolution:
        return _PatchConvolution(self.old)


@dataclass(frozen=True)
class _PatchConvolution(Rule):
    """The way back of :class:`PatchProjection`."""

    old: str

    def apply(self, part: Part) -> None:
        block = part.module.patch_embedding
        name = _projection(block)
        weight = part.take(f"{name}.weight")
        if block.proj_type != "conv":
            weight = weight.unflatten(1, (*block.patch_size, -1)).movedim(-1, 1).contiguous()
        part.put(f"{self.old}.weight", weight)
        part.move(f"{name}.bias", f"{self.old}.bias")

    def inverse(self) -> PatchProjection:
        return PatchProjection(self.old)


@dataclass(frozen=True)
class FinalNorm(Rule):
    """The norm after the last block is the last of the blocks, where the network has it there."""

    old: str = "norm"
    blocks: str = "blocks"

    def apply(self, part: Part) -> None:
        name = self._name(part)
        if name is not None:
            Rename(f"{self.old}.", f"{name}.").apply(part)

    def inverse(self) -> _NormBehind:
        return _NormBehind(self.old, self.blocks)

    def _name(self, part: Part) -> str | None:
        blocks = getattr(part.module, self.blocks, ())
        return f"{self.blocks}.{len(blocks) - 1}" if blocks and isinstance(blocks[-1], nn.LayerNorm) else None


@dataclass(frozen=True)
class _NormBehind(FinalNorm):
    """The way back of :class:`FinalNorm`."""

    def apply(self, part: Part) -> None:
        name = self._name(part)
        if name is not None:
            Rename(f"{name}.", f"{self.old}.").apply(part)


@dataclass(frozen=True)
class DecoderPositions(Rule):
    """
    A masked autoencoder's decoder adds no position to the class token here: that of the file must be zero, as in all
    that these packages write.
    """

    old: str = "decoder_pos_embed"
    new: str = "decoder_pos_embedding"
    does = "without the class token's, which is zero"

    def apply(self, part: Part) -> None:
        if not part.has(self.old) or not part.expects(self.new):
            return
        positions = part.take(self.old)
        if positions.dim() != 3 or positions[:, :1].any():
            raise Misfit(
                f"{part.prefix}{self.old} has a position for the class token that is not zero, which the network's "
                "decoder cannot add. Only the encoder can be loaded, into a ViT."
            )
        part.put(self.new, positions[:, 1:])

    def inverse(self) -> _ZeroDecoderPosition:
        return _ZeroDecoderPosition(self.old, self.new)


@dataclass(frozen=True)
class _ZeroDecoderPosition(Rule):
    """The way back of :class:`DecoderPositions`."""

    old: str
    new: str

    def apply(self, part: Part) -> None:
        positions = part.take(self.new)
        part.put(self.old, torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1))

    def inverse(self) -> DecoderPositions:
        return DecoderPositions(self.old, self.new)


@dataclass(frozen=True)
class PretrainingToken(Rule):
    """The token that stood for masked patches is left out: only pretraining used it. The way back writes zeros."""

    key: str = "mask_token"
    does = "it stood for masked patches, in pretraining alone"

    def apply(self, part: Part) -> None:
        if part.has(self.key):
            part.take(self.key)

    def inverse(self) -> _ZeroToken:
        return _ZeroToken(self.key)


@dataclass(frozen=True)
class _ZeroToken(Rule):
    """The way back of :class:`PretrainingToken`."""

    key: str

    def apply(self, part: Part) -> None:
        positions = part.module.patch_embedding.position_embeddings
        part.put(self.key, torch.zeros_like(positions[0, :1]))

    def inverse(self) -> PretrainingToken:
        return PretrainingToken(self.key)


@dataclass(frozen=True)
class DecoderLeftOut(DropPart):
    """The decoder of a masked autoencoder is left out, where the network has none."""

    does = "the decoder of a masked autoencoder: the encoder alone is loaded"


@dataclass(frozen=True)
class UnusedPooler(Drop):
    """A layer on the class token that follows the features is left out."""

    does = "it follows the features, and the network has no such layer"


@dataclass(frozen=True)
class IdleNorm(Rule):
    """The norm of a cross attention that a block does not have: other packages have no place for it."""

    def apply(self, part: Part) -> None:
        """Nothing: their files hold no such norm."""

    def inverse(self) -> Drop:
        return Drop(r"norm_cross_attn\.")


@dataclass(frozen=True)
class Unchunk(Rule):
    """Blocks that lie in groups, each under its number in the whole, lie in one row."""

    name: str = "blocks"

    def apply(self, part: Part) -> None:
        for key in part.foreign(f"{self.name}."):
            found = re.fullmatch(rf"{self.name}\.\d+\.(\d+\..+)", key)
            if found:
                part.move(key, f"{self.name}.{found[1]}")

    def inverse(self) -> None:
        return None  # the package takes blocks in one row, too


@dataclass(frozen=True)
class HeadInFront(Rule):
    """
    The encoder lies in a part of its own beside a head. The way back puts it there, where there is such a head.

    Args:
        encoder: name of the encoder.
        head: what the head's keys begin with, in the file.
    """

    encoder: str
    head: str

    def apply(self, part: Part) -> None:
        Rename(f"{self.encoder}.", "").apply(part)

    def inverse(self) -> _IntoEncoder:
        return _IntoEncoder(self.encoder, self.head)


@dataclass(frozen=True)
class _IntoEncoder(Rule):
    """The way back of :class:`HeadInFront`."""

    encoder: str
    head: str

    def apply(self, part: Part) -> None:
        keys = part.foreign()
        if any(key.startswith(self.head) for key in keys):
            for key in keys:
                if not key.startswith(self.head):
                    part.move(key, f"{self.encoder}.{key}")

    def inverse(self) -> HeadInFront:
        return HeadInFront(self.encoder, self.head)


def _projection(block: nn.Module) -> str:
    """Name of the layer that projects patches."""
    return "patch_embedding.patch_embeddings" + ("" if block.proj_type == "conv" else ".1")


def _wide(value: torch.Tensor) -> torch.Tensor:
    """In single precision at least: what is computed would lose what a half can hold."""
    return value if value.dtype == torch.float64 else value.float()


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
