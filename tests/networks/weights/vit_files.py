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


"""
Files of other packages' vision transformers, and the networks of this package that they are loaded into.

``python -m tests.parity.references.vision_transformers`` has the packages write them; ``--make-tiny`` makes those that
are kept.
"""

from __future__ import annotations

import io
import lzma
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai.networks.nets import MaskedAutoEncoderViT, ViT
from monai.networks.weights import LoadReport
from monai.networks.weights.load import WeightOptions, adapt_weights
from monai.networks.weights.source import Source
from monai.networks.weights.sources_vit import VIT_SOURCES

__all__ = [
    "CASES",
    "FILES",
    "TINY_SIZES",
    "Case",
    "as_mae",
    "build",
    "difference",
    "load",
    "network_for",
    "results",
    "source_of",
    "tiny_file",
]

ENCODER: dict[str, Any] = {
    "in_channels": 3,
    "img_size": 16,
    "patch_size": 4,
    "hidden_size": 128,
    "mlp_dim": 512,
    "num_layers": 2,
    "num_heads": 2,
    "spatial_dims": 2,
    "qkv_bias": True,
    "classification": True,
    "num_classes": 3,
    "post_activation": None,
}
DECODER: dict[str, Any] = {
    "decoder_hidden_size": 64,
    "decoder_mlp_dim": 96,
    "decoder_num_layers": 2,
    "decoder_num_heads": 4,
}
TINY: dict[str, Any] = {"img_size": 8, "hidden_size": 32, "mlp_dim": 64}
TINY_HF = {**TINY, "mlp_dim": 48}
TINY_SIZES: dict[str, dict[str, Any]] = {
    "timm": TINY,
    "timm without class token": TINY,
    "dinov2 in chunks": TINY,
    "hf classes": TINY_HF,
    "hf-dinov2": TINY,
    "hf-mae": {**TINY_HF, "decoder_hidden_size": 16, "decoder_mlp_dim": 24, "decoder_num_heads": 2},
}
"""The files that the repository keeps, with the sizes of their networks."""
FILES = Path(__file__).resolve().parents[2] / "testing_data" / "weights"
MAE_NAMES = (
    (r"^decoder\.decoder_(?:encoder\.layer|layers)\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^layernorm\.", "norm."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"attention\.attention", "attn"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)
HEAD = ("classification_head.*",)


@dataclass(frozen=True)
class Case:
    """
    A file of :mod:`tests.parity.references.vision_transformers.writer` and the network that it is loaded into.

    Args:
        name: of the file.
        source: name of the layout.
        kwargs: what the network is built with beside :data:`ENCODER`.
        eps: of its norms.
        network: its class.
        ignore: patterns of the tensors that are ignored.
        allow: patterns of the parameters that may be left as they were.
        back: the case whose layout and network the way back is tried with; by default this one.
    """

    name: str
    source: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    eps: float = 1e-6
    network: type[nn.Module] = ViT
    ignore: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    back: str = ""


CASES = {
    case.name: case
    for case in (
        Case("timm", "timm"),
        Case("timm without bias", "timm", {"qkv_bias": False}),
        Case("timm with LayerScale", "dinov2", back="timm"),
        Case("timm, no position for the class", "dinov2", back="timm"),
        Case("timm without class token", "timm", {"classification": False}),
        Case("dinov2", "dinov2", allow=HEAD),
        Case("dinov2 in chunks", "dinov2", allow=HEAD, back="dinov2"),
        Case("hf", "hf", {"mlp_dim": 192}, 1e-12, allow=HEAD),
        Case("hf with another eps", "hf", {"mlp_dim": 192}, 1e-3, allow=HEAD),
        Case("hf without bias", "hf", {"mlp_dim": 192, "qkv_bias": False}, 1e-12, allow=HEAD),
        Case("hf classes", "hf", {"mlp_dim": 192}, 1e-12),
        Case("hf-dinov2", "hf-dinov2", {"mlp_dim": 256}, allow=HEAD),
        Case("hf-mae", "hf-mae", {"mlp_dim": 192, "masking_ratio": 0.5, **DECODER}, network=MaskedAutoEncoderViT),
        Case("hf-mae encoder", "hf", {"mlp_dim": 192}, allow=HEAD),
    )
}


def as_mae(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    What transformers wrote for a masked autoencoder in the keys of its authors, whose code is on no package index:
    the renames of transformers' converter, backwards.
    """
    renamed: dict[str, torch.Tensor] = {}
    for key, value in state_dict.items():
        name = re.sub(r"^vit\.", "", key)
        for old, new in MAE_NAMES:
            name = re.sub(old, new, name)
        renamed[name] = value
    for key in [key for key in renamed if key.endswith(("query.weight", "query.bias"))]:
        parts = [renamed.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        renamed[key.replace("query", "qkv")] = torch.cat(parts)
    return renamed


def tiny_file(name: str) -> dict[str, Any]:
    """A file that the repository keeps: state dict, configuration, image and results."""
    content = torch.load(io.BytesIO(lzma.decompress((FILES / f"{name}.pt.xz").read_bytes())), weights_only=True)
    return content


def source_of(name: str) -> Source:
    """The layout of a name."""
    return next(source for source in VIT_SOURCES if source.name == name)


def build(network: type[nn.Module], eps: float, **kwargs: Any) -> nn.Module:
    """A network, whose norms have this eps."""
    said = {**ENCODER, **kwargs, "norm_eps": eps}
    if network is not ViT:
        said = {name: said[name] for name in said if name not in ("classification", "num_classes", "post_activation")}
    return network(**said).eval()


def network_for(case: Case, **changes: Any) -> nn.Module:
    """The network that a case is loaded into."""
    return build(case.network, case.eps, **{**case.kwargs, **changes})


def load(
    net: nn.Module,
    state_dict: Mapping[str, torch.Tensor],
    source: str | None = None,
    config: Mapping[str, Any] | None = None,
    ignore: Iterable[str] = (),
    allow: Iterable[str] = (),
) -> LoadReport:
    """
    Load a file that is not in this package's layout.

    Raises:
        RuntimeError: if a tensor of the file or a parameter of the network is unaccounted for.
    """
    options = WeightOptions(source, tuple(allow), tuple(ignore))
    adapted, report = adapt_weights(net, state_dict, options, config=lambda: config or {})
    net.load_state_dict({**net.state_dict(), **adapted})
    return report


@torch.no_grad()
def results(net: nn.Module, content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What :func:`tests.parity.references.vision_transformers.writer.results` has, of a network of this package."""
    if "patches" in content:
        kept = content["kept"]
        mask = torch.ones(content["patches"].shape[:2], dtype=torch.int).scatter(1, kept, 0)
        net._masking = lambda x, masking_ratio=None: (x[torch.arange(len(x))[:, None], kept], kept, mask)
        return {"patches": net(content["x"])[0], "kept": kept}
    answer, hidden = net(content["x"])
    tokens = net.norm(hidden[-1])
    return {"tokens": tokens, **({"logits": answer} if "logits" in content else {})}


def difference(found: Mapping[str, torch.Tensor], wanted: Mapping[str, Any]) -> float:
    """The largest difference, relative to the largest value."""
    return max(float((value - wanted[key]).abs().max() / wanted[key].abs().max()) for key, value in found.items())
