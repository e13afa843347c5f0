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


"""Seeded inputs for the networks that checkpoints are verified with."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai.networks.checkpoints.read import open_checkpoint

__all__ = ["Call", "read_inputs", "sample_calls"]

SMALLEST_IMAGE = 16
CONTEXT_TOKENS = 5


@dataclass(frozen=True)
class Call:
    """A method of a network and what it is called with, by name."""

    method: str
    inputs: dict[str, torch.Tensor]


def sample_calls(
    cls: type[nn.Module], arguments: Mapping[str, Any], size: Sequence[int] = (), batch: int = 2, seed: int = 0
) -> list[Call]:
    """
    Calls that together take every weight of a network, with random inputs and without random numbers of the network.

    Args:
        cls: class of the network; subclasses of MONAI's attention networks, autoencoders and diffusion networks are
            known.
        arguments: what it is built from.
        size: size of the image's axes, or one number for all. By default a small one that the network takes.
        batch: number of images or sequences.
        seed: of the random numbers; a tensor's values depend on it, its name and shape alone.

    Raises:
        ValueError: if the class is not known, or cannot take the size.
    """
    makers = [MAKERS[base.__name__] for base in cls.__mro__ if base.__name__ in MAKERS]
    if not makers:
        raise ValueError(
            f"no inputs are known for {cls.__name__}: give them with --inputs FILE, a torch or safetensors file with "
            f"a tensor for each argument of its forward{signature(cls.forward)}."
        )
    bound = signature(cls).bind(**arguments)
    bound.apply_defaults()
    return makers[0](_Maker(bound.arguments, tuple(size), batch, seed))


def read_inputs(path: str) -> list[Call]:
    """
    Read the arguments of ``forward``, tensors by name, from a torch or safetensors file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything else.
    """
    contents = open_checkpoint(Path(path))
    tree = contents.tree
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError(f"{path} should hold tensors by name, as torch.save({{'x': x}}, ...) writes them.")
    inputs = {name: contents.fetch(value) for name, value in tree.items()}
    for name, value in inputs.items():
        if not torch.is_tensor(value):
            raise ValueError(f"{path}: '{name}' should be a tensor, got {type(value).__name__}.")
    return [Call("forward", inputs)]


class _Maker:
    """Makes the inputs of one network from the values of all its arguments."""

    def __init__(self, values: Mapping[str, Any], size: tuple[int, ...], batch: int, seed: int) -> None:
        self.values, self.size, self.batch, self.seed = values, size, batch, seed

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + zlib.crc32(name.encode()))

    def normal(self, name: str, *shape: int) -> torch.Tensor:
        return torch.randn(self.batch, *shape, generator=self.generator(name))

    def integers(self, name: str, below: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, below, (self.batch, *shape), generator=self.generator(name))

    def one_hot(self, name: str, channels: int, size: Sequence[int]) -> torch.Tensor:
        return torch.nn.functional.one_hot(self.integers(name, channels, *size), channels).movedim(-1, 1).float()

    def fixed_size(self, name: str, given: int | Sequence[int], dims: int) -> tuple[int, ...]:
        """The one image size that a network takes."""
        size = (given,) * dims if isinstance(given, int) else tuple(given)
        if self.size and self._expanded(dims) != size:
            raise ValueError(f"--size {_text(self.size)} does not fit: the network was built for {name}={list(size)}.")
        return size

    def free_size(self, factor: int, dims: int) -> tuple[int, ...]:
        """The size asked for, or else a small multiple of the factor by which the network shrinks images."""
        smallest = max(SMALLEST_IMAGE // factor, 2) * factor
        size = self._expanded(dims) if self.size else (smallest,) * dims
        if any(axis % factor or axis <= 0 for axis in size):
            raise ValueError(f"--size {_text(self.size)} does not fit: this network takes multiples of {factor}.")
        return size

    def _expanded(self, dims: int) -> tuple[int, ...]:
        if len(self.size) not in (1, dims):
            raise ValueError(f"--size {_text(self.size)} has {len(self.size)} axes, the network's images have {dims}.")
        return self.size * dims if len(self.size) == 1 else self.size


def _text(size: Sequence[int]) -> str:
    return " ".join(map(str, size))


def _transformer(make: _Maker, name: str = "x") -> list[Call]:
    size = make.fixed_size("img_size", make.values["img_size"], make.values["spatial_dims"])
    return [Call("forward", {name: make.normal("x", make.values["in_channels"], *size)})]


def _unetr(make: _Maker) -> list[Call]:
    return _transformer(make, "x_in")


def _decoder(make: _Maker) -> list[Call]:
    inputs = {"x": make.integers("x", make.values["num_tokens"], make.values["max_seq_len"])}
    if make.values["with_cross_attention"]:
        inputs["context"] = make.normal("context", CONTEXT_TOKENS, make.values["attn_layers_dim"])
    return [Call("forward", inputs)]


def _levels(make: _Maker) -> int:
    return len(make.values.get("channels") or make.values["num_channels"])


def _diffusion(make: _Maker) -> list[Call]:
    values, dims = make.values, make.values["spatial_dims"]
    if "input_shape" in values:
        size = make.fixed_size("input_shape", values["input_shape"], dims)
    else:
        size = make.free_size(2 ** (_levels(make) - 1), dims)
    inputs = {
        "x": make.normal("x", values["in_channels"], *size),
        "timesteps": make.integers("timesteps", 1000),
    }
    if "conditioning_embedding_in_channels" in values:
        factor = 2 ** (len(values["conditioning_embedding_num_channels"]) - 1)
        channels = values["conditioning_embedding_in_channels"]
        inputs["controlnet_cond"] = make.normal("controlnet_cond", channels, *[axis * factor for axis in size])
    if "label_nc" in values:
        inputs["seg"] = make.one_hot("seg", values["label_nc"], size)
    if values["with_conditioning"]:
        inputs["context"] = make.normal("context", CONTEXT_TOKENS, values["cross_attention_dim"])
    if values["num_class_embeds"] is not None:
        inputs["class_labels"] = make.integers("class_labels", values["num_class_embeds"])
    for name, width in (("top_region_index", 4), ("bottom_region_index", 4), ("spacing", 3)):
        if values.get(f"include_{name}_input"):
            inputs[f"{name}_tensor"] = make.normal(name, width)
    return [Call("forward", inputs)]


def _autoencoder(make: _Maker) -> list[Call]:
    """Encoder and decoder apart: in between the network draws random numbers."""
    values, factor = make.values, 2 ** (_levels(make) - 1)
    size = make.free_size(factor, values["spatial_dims"])
    decoded = {"z": make.normal("z", values["latent_channels"], *[axis // factor for axis in size])}
    if "label_nc" in values:
        decoded["seg"] = make.one_hot("seg", values["label_nc"], size)
    return [Call("encode", {"x": make.normal("x", values["in_channels"], *size)}), Call("decode", decoded)]


def _vqvae(make: _Maker) -> list[Call]:
    values = make.values
    levels = values["downsample_parameters"]
    strides = [level[0] for level in levels] if isinstance(levels[0], (list, tuple)) else [levels[0]] * _levels(make)
    size = make.free_size(prod(strides), values["spatial_dims"])
    return [Call("forward", {"images": make.normal("x", values["in_channels"], *size)})]


MAKERS: dict[str, Callable[[_Maker], list[Call]]] = {
    "ViT": _transformer,
    "ViTAutoEnc": _transformer,
    "MaskedAutoEncoderViT": _transformer,
    "UNETR": _unetr,
    "DecoderOnlyTransformer": _decoder,
    "DiffusionModelUNet": _diffusion,
    "DiffusionModelEncoder": _diffusion,
    "ControlNet": _diffusion,
    "SPADEDiffusionModelUNet": _diffusion,
    "DiffusionModelUNetMaisi": _diffusion,
    "ControlNetMaisi": _diffusion,
    "AutoencoderKL": _autoencoder,
    "SPADEAutoencoderKL": _autoencoder,
    "AutoencoderKlMaisi": _autoencoder,
    "VQVAE": _vqvae,
}
