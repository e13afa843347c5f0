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


"""Where each package keeps its networks, how they are called, and inputs for them. Imports none of the packages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import torch
import torch.nn as nn

__all__ = ["arguments_taken", "find_class", "inputs", "outputs"]

_MAISI = "monai.apps.generation.maisi.networks"
_MODULES = {
    "monai": [
        "monai.networks.nets",
        "monai.networks.nets.diffusion_model_unet",
        f"{_MAISI}.autoencoderkl_maisi",
        f"{_MAISI}.controlnet_maisi",
        f"{_MAISI}.diffusion_model_unet_maisi",
    ],
    "generative": ["generative.networks.nets", "generative.networks.nets.diffusion_model_unet"],
    "ldm": ["ldm.modules.diffusionmodules.openaimodel"],
}
_OLDER_NAMES = {"channels": "num_channels", "proj_type": "pos_embed"}
_AUTOENCODERS = ("AutoencoderKL", "SPADEAutoencoderKL", "AutoencoderKlMaisi")
_VISION = ("ViT", "ViTAutoEnc", "UNETR", "MaskedAutoEncoderViT")


def find_class(network: str, package: str = "monai") -> type[nn.Module]:
    """
    The class of a network in a package that this process can import.

    Raises:
        LookupError: if the package has no such network.
    """
    for module in _MODULES[package]:
        try:
            return getattr(import_module(module), network)
        except (ImportError, AttributeError):
            continue
    raise LookupError(f"{package} has no network '{network}' in {', '.join(_MODULES[package])}")


def arguments_taken(cls: type[nn.Module], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    Say ``kwargs``, which bear the fork's names, in the words of ``cls``; what it does not know is left out.

    A class without ``use_proj_attn`` is told the same by ``include_fc``.

    Raises:
        LookupError: if it is to have no output projections and knows neither of the two.
    """
    known = inspect.signature(cls.__init__).parameters
    said = dict(kwargs)
    if said.get("use_proj_attn") is False and not known.keys() & {"use_proj_attn", "include_fc"}:
        raise LookupError(f"{cls.__name__} cannot do without output projections")
    if "use_proj_attn" not in known and said.get("use_proj_attn") is not None:
        said["include_fc"] = said["use_proj_attn"]
    for name, older in _OLDER_NAMES.items():
        if name in said and name not in known and older in known:
            said[older] = said.pop(name)
    return {name: value for name, value in said.items() if name in known}


def inputs(network: str, kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Seeded inputs for a network that was built with ``kwargs``, by the names of its arguments."""
    if network == "DecoderOnlyTransformer":
        values = {"x": torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])}
        return {**values, "context": _normal(3, 2, 4, 8)} if kwargs.get("with_cross_attention") else values
    if network in _VISION:
        return {"x": _normal(1, 2, kwargs["in_channels"], *kwargs["img_size"])}
    sizes = kwargs.get("input_shape") or [8] * kwargs["spatial_dims"]
    values = {"x": _normal(1, 2, 1, *sizes)}
    if "label_nc" in kwargs:
        values["seg"] = _normal(5, 2, kwargs["label_nc"], *sizes).softmax(1)
    if network in _AUTOENCODERS or network == "VQVAE":
        return values
    values["timesteps"] = torch.tensor([3, 700])
    if "conditioning_embedding_num_channels" in kwargs:
        values["controlnet_cond"] = _normal(4, 2, 1, *[2 * size for size in sizes])
    if kwargs.get("with_conditioning"):
        values["context"] = _normal(2, 2, 3, kwargs["cross_attention_dim"])
    if kwargs.get("num_class_embeds"):
        values["class_labels"] = torch.tensor([1, 2])
    for name, width in (("top_region_index", 4), ("bottom_region_index", 4), ("spacing", 3)):
        if kwargs.get(f"include_{name}_input"):
            values[f"{name}_tensor"] = _normal(6, 2, width)
    return values


@torch.no_grad()
def outputs(net: nn.Module, network: str, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """All that the network computes from ``values`` in evaluation mode, as one flat tensor."""
    net.eval()
    if network in _AUTOENCODERS:
        mu, sigma = net.encode(values["x"])
        segmentation = [values["seg"]] if "seg" in values else []
        return _flat([mu, sigma, net.decode(mu, *segmentation)])
    torch.manual_seed(0)  # a masked autoencoder draws its mask
    if network in _VISION or network == "VQVAE":
        return _flat(net(values["x"]))
    return _flat(net(**values))


def _normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal values in steps of 1/16, which any machine makes alike."""
    values = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(seed))
    return (values * 16).round().div(16).reshape(shape)


def _flat(values: torch.Tensor | Iterable[Any]) -> torch.Tensor:
    if torch.is_tensor(values):
        return values.reshape(-1).float()
    return torch.cat([_flat(value) for value in values])
