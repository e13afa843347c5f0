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
Writes files of other packages' vision transformers, each with an image and the features that the package computes; or
reads what this package wrote for them. Runs in an environment of the package, without MONAI.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

# where torchvision was built for another torch, its operators, which nothing here calls, have no schema
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("_meta_registrations"))

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 4, "in_chans": 3, "embed_dim": 128, "depth": 2, "num_heads": 2}
HF: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 192,
    "image_size": 16,
    "patch_size": 4,
}
HF_DECODER: dict[str, Any] = {
    "decoder_hidden_size": 64,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 96,
}
TINY: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    (SMALL, {"img_size": 8, "embed_dim": 32, "mlp_ratio": 2}),
    (HF, {"hidden_size": 32, "intermediate_size": 48, "image_size": 8}),
    (HF_DECODER, {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24}),
)
"""Sizes of the files that the repository keeps."""


def fill(net: nn.Module, seed: int = 0) -> nn.Module:
    """Random values for every parameter, scales and tokens included, so that none is hidden by a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if value.dim() > 1 and "token" not in key and "pos" not in key:
                value.copy_(noise / value[0].numel() ** 0.5)
            elif key.endswith(("gamma", "lambda1")) or "norm" in key and key.endswith("weight"):
                value.copy_(1 + 0.3 * noise)
            elif "decoder_pos_embed" in key:
                value[:, 1:].copy_(0.5 * noise[:, 1:])  # the class token's is zero in all of them
            elif value.is_floating_point():
                value.copy_(0.5 * noise)
    return net.eval()


def image() -> torch.Tensor:
    """The image that features are computed from."""
    return torch.randn(2, 3, SMALL["img_size"], SMALL["img_size"], generator=torch.Generator().manual_seed(1))


def _timm(**options: Any) -> tuple[nn.Module, dict[str, Any]]:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(**{**SMALL, "num_classes": 3, **options}), {"num_heads": SMALL["num_heads"]}


def _without_token() -> tuple[nn.Module, dict[str, Any]]:
    net, _ = _timm(class_token=False, global_pool="avg", fc_norm=False, num_classes=0)
    return net, {"num_heads": 2, "act_layer": "gelu"}


def _dinov2(chunks: int) -> tuple[nn.Module, dict[str, Any]]:
    from dinov2.models.vision_transformer import DinoVisionTransformer

    return DinoVisionTransformer(**SMALL, init_values=1.0, block_chunks=chunks), {"num_heads": SMALL["num_heads"]}


def _transformers(name: str, config: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    made = getattr(transformers, config)(**options)
    return getattr(transformers, name)(made), made.to_dict()


def _hf(name: str, **options: Any) -> Callable[[], tuple[nn.Module, dict[str, Any]]]:
    return lambda: _transformers(name, "ViTConfig", **HF, num_labels=3, **options)


def _hf_dinov2() -> tuple[nn.Module, dict[str, Any]]:
    sizes = {key: value for key, value in HF.items() if key != "intermediate_size"}
    return _transformers("Dinov2Model", "Dinov2Config", **sizes, mlp_ratio=2)


def _hf_mae(name: str) -> Callable[[], tuple[nn.Module, dict[str, Any]]]:
    return lambda: _transformers(name, "ViTMAEConfig", **HF, **HF_DECODER, mask_ratio=0.5, layer_norm_eps=1e-6)


BUILDERS: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    "timm": _timm,
    "timm without bias": lambda: _timm(qkv_bias=False),
    "timm with LayerScale": lambda: _timm(init_values=1e-5),
    "timm, no position for the class": lambda: _timm(init_values=1e-5, no_embed_class=True),
    "timm without class token": _without_token,
    "dinov2": lambda: _dinov2(0),
    "dinov2 in chunks": lambda: _dinov2(2),
    "hf": _hf("ViTModel"),
    "hf with another eps": _hf("ViTModel", layer_norm_eps=1e-3),
    "hf without bias": _hf("ViTModel", qkv_bias=False),
    "hf classes": _hf("ViTForImageClassification"),
    "hf-dinov2": _hf_dinov2,
    "hf-mae": _hf_mae("ViTMAEForPreTraining"),
    "hf-mae encoder": _hf_mae("ViTMAEModel"),
}


@torch.no_grad()
def results(name: str, net: nn.Module) -> dict[str, torch.Tensor]:
    """Normalized tokens, and logits or predicted patches where there are some."""
    x = image()
    if name.startswith("timm"):
        tokens = net.forward_features(x)
        return {"tokens": tokens, **({"logits": net(x)} if isinstance(net.head, nn.Linear) else {})}
    if name.startswith("dinov2"):
        found = net.forward_features(x)
        return {"tokens": torch.cat([found["x_norm_clstoken"][:, None], found["x_norm_patchtokens"]], 1)}
    if name.startswith("hf-mae"):
        patches = (SMALL["img_size"] // SMALL["patch_size"]) ** 2
        noise = torch.rand(2, patches, generator=torch.Generator().manual_seed(2))
        if name == "hf-mae":
            kept = noise.argsort(dim=1)[:, : patches // 2]
            return {"patches": net(x, noise=noise).logits, "kept": kept}
        net.config.mask_ratio = 0.0
        tokens = net(x, noise=torch.arange(float(patches)).expand(2, -1)).last_hidden_state
        return {"tokens": tokens}
    if name == "hf classes":
        return {"tokens": net.vit(x).last_hidden_state, "logits": net(x).logits}
    return {"tokens": net(x).last_hidden_state}


def write(name: str, folder: Path, half: bool = False) -> None:
    """Write a file of the package, its results and its configuration."""
    net, config = BUILDERS[name]()
    fill(net)
    if half:
        net.half().float()  # values that a half can hold
    config = json.loads(json.dumps(config, default=str))
    content = {"config": config, "x": image(), **results(name, net), "state_dict": dict(net.state_dict())}
    if name.startswith("hf"):
        content["memory"] = content["state_dict"]
        content["state_dict"] = _saved(net)
    if half:
        kept = {key: value.half() for key, value in content["state_dict"].items()}
        content = {**{key: content[key] for key in content if key != "memory"}, "state_dict": kept}
    torch.save(content, folder / f"{name}.pt")


def write_tiny(name: str, folder: Path) -> None:
    """Write a file that is small enough to be kept, in half precision."""
    for sizes, changes in TINY:
        sizes.update(changes)
    write(name, folder, half=True)


def _saved(net: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of the file that transformers writes, whose keys are not those in memory."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        return load_file(Path(folder, "model.safetensors"))


def read(name: str, folder: Path) -> None:
    """Load what this package wrote for it, and write the results of the package."""
    content = torch.load(folder / f"{name}.back.pt", weights_only=True)
    if not name.startswith("hf"):
        net, _ = BUILDERS[content["builder"]]()
        net.load_state_dict(content["state_dict"])
    else:
        from safetensors.torch import save_file

        first, _ = BUILDERS[name]()
        with tempfile.TemporaryDirectory() as place:
            tensors = {key: value.contiguous() for key, value in content["state_dict"].items()}
            save_file(tensors, Path(place, "model.safetensors"), {"format": "pt"})
            Path(place, "config.json").write_text(json.dumps(content["config"]))
            net, info = type(first).from_pretrained(place, output_loading_info=True)
        missing = [key for key in info["missing_keys"] if not key.startswith("pooler")]
        if missing or info["unexpected_keys"] or info["mismatched_keys"]:
            raise RuntimeError(f"{name}: missing {missing}, unexpected {info['unexpected_keys']}")
    torch.save(results(name, net.eval()), folder / f"{name}.read.pt")


def main() -> None:
    """``writer.py write|tiny|read FOLDER [NAME ...]``"""
    torch.set_num_threads(1)
    for name in sys.argv[3:] or BUILDERS:
        {"write": write, "tiny": write_tiny, "read": read}[sys.argv[1]](name, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
