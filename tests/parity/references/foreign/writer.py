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

"""Runs in the process of another package: writes weights with outputs, and runs weights that it is handed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn

from tests.networks.weights.foreign.rows import ROWS, STAGES, Row
from tests.parity.references.weights import filled

__all__ = ["main"]


def main(task: str, place: str, package: str) -> None:
    """
    Write a file.

    Args:
        task: "write" for references of all rows of the package, "run" to add the outputs to a file of weights.
        place: of the file.
        package: as in ``PACKAGES``.
    """
    torch.set_num_threads(1)
    if task == "write":
        torch.save({row.full_name: _reference(row) for row in ROWS if row.package == package}, place)
        return
    handed = torch.load(place, weights_only=True)
    for one in handed.values():
        net = _build(one["config"].pop("_class_name"), one["config"])
        net.load_state_dict(one["state_dict"])
        one["output"] = _outputs(net, one["inputs"])
    torch.save(handed, place)


def _build(name: str, config: Mapping[str, Any]) -> nn.Module:
    if name == "SwinTransformer":
        from monai.networks.nets.swin_unetr import SwinTransformer

        return SwinTransformer(**config).eval()
    import diffusers

    return getattr(diffusers, name)(**config).eval()


def _reference(row: Row) -> dict[str, Any]:
    net = _build(row.theirs, row.config)
    state = filled(net.state_dict(), row.seed)
    if row.theirs == "SwinTransformer":
        # three values: a small file. They are even in merged patches, so that each of those matters
        state = {
            key: value.sign() / 4 if value.dim() > 1 and value.is_floating_point() else value
            for key, value in state.items()
        }
        state.update({key: value for key, value in net.state_dict().items() if key.endswith("position_index")})
    net.load_state_dict(state)
    values = _inputs(row)
    named = {key: value for key, value in dict(getattr(net, "config", {})).items() if not key.startswith("_")}
    config = {**named, "_class_name": row.theirs} if row.source == "diffusers" else {}
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    output = _outputs(net, values)
    return {"state_dict": _saved(row.layout, state), "config": config, "inputs": values, "output": output}


def _inputs(row: Row) -> dict[str, torch.Tensor]:
    if row.theirs == "SwinTransformer":
        return {"x": _normal(1, 1, row.config["in_chans"], 32, 32, 32)}
    values = {"x": _normal(1, 2, row.config["in_channels"], 8, 8)}
    if row.theirs == "AutoencoderKL":
        return values
    values["timesteps"] = torch.tensor([3, 700])
    if "cross_attention_dim" in row.config:
        values["context"] = _normal(2, 2, 3, row.config["cross_attention_dim"])
    if "num_class_embeds" in row.config:
        values["class_labels"] = torch.tensor([1, 2])
    return values


@torch.no_grad()
def _outputs(net: nn.Module, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    kind = type(net).__name__
    if kind == "SwinTransformer":
        return torch.cat([stage.reshape(-1) for stage in net(values["x"])[STAGES]])
    if kind == "AutoencoderKL":
        latent = net.encode(values["x"]).latent_dist
        decoded = net.decode(latent.mean).sample
        return torch.cat([part.reshape(-1) for part in (latent.mean, latent.std, decoded)])
    context = {"encoder_hidden_states": values["context"]} if "context" in values else {}
    classes = {"class_labels": values["class_labels"]} if "class_labels" in values else {}
    return net(values["x"], values["timesteps"], **context, **classes).sample.reshape(-1)


def _saved(layout: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The keys as the scripts around these classes save them, with the heads of their training."""
    width = next((value.shape[1] for key, value in state.items() if key == "layers4.0.blocks.0.attn.proj.weight"), 1)
    heads = {"rotation_head.weight": _normal(7, 4, width), "contrastive_head.bias": _normal(8, 5)}
    if layout in ("SSLHead", "BrainSegFounder", "SSLHead before 2022-08"):
        swin = "swin_vit" if "before" in layout else "swinViT"
        named = {f"{swin}.{key}": value for key, value in state.items()}
        return {f"module.{key}": value for key, value in {**named, **heads, "conv.0.weight": _normal(9, 3, 3)}.items()}
    if layout == "model_swinvit":
        named = {key.replace("mlp.linear", "mlp.fc"): value for key, value in state.items()}
        beside = {"norm.weight": _normal(10, 2 * width), "convTrans3d.bias": _normal(9, 1), **heads}
        return {f"module.{key}": value for key, value in {**named, **beside}.items()}
    if layout == "VoCo":
        named = {f"swinViT.{key}": value for key, value in state.items()}
        return {
            f"module.teacher.{key}": value for key, value in {**named, "proj_head.layer3.0.bias": _normal(9, 3)}.items()
        }
    if layout == "disruptive autoencoder":
        deeper = {key if key.startswith("patch") else f"{key[:10]}0.{key[10:]}": value for key, value in state.items()}
        named = {f"encoder.{key}": value for key, value in deeper.items()}
        return {**named, "encoder.mask_token": _normal(9, 1, 1, 3), "out.conv.conv.bias": _normal(11, 2)}
    return dict(state)


def _normal(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal values in steps of 1/16, which any machine makes alike."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (values * 16).round().div(16)


if __name__ == "__main__":
    main(*sys.argv[1:])
