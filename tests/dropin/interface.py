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
Lists what the release's modules offer to other code, and the fork's do not: names, arguments, methods and attributes.

usage: python -m tests.dropin.interface

Run as a script it describes the ``monai`` that the process imports, as JSON: so the release describes itself.
"""

from __future__ import annotations

import configparser
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["differences"]

ROOT = Path(__file__).resolve().parents[2]


def replaced_modules() -> list[str]:
    """Dotted names of the release's modules that the fork replaces, wholly or in part, by setup.cfg."""
    config = configparser.ConfigParser(delimiters="=")
    config.optionxform = str  # type: ignore[assignment,method-assign]
    config.read(ROOT / "setup.cfg")
    names = [*config["upstream:replaces"], *config["upstream:amends"]]
    paths = [Path(name).with_suffix("").parts for name in names]
    return sorted({".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in paths})


def differences() -> list[str]:
    """A line for each thing that a module of the release has and the fork's lacks, or takes otherwise."""
    from fork.referee import release_environment  # which the release's own process does not have

    command = [sys.executable, "-W", "ignore", __file__, *replaced_modules()]
    asked: dict[str, Any] = {"check": True, "capture_output": True, "text": True, "cwd": "/"}
    release = json.loads(subprocess.run(command, env=release_environment(), **asked).stdout)
    fork = json.loads(subprocess.run(command, **asked).stdout)
    return [line for module, there in release.items() for line in _lacking(module, there, fork.get(module, {}))]


def _lacking(path: str, there: Any, here: Any) -> list[str]:
    if not isinstance(there, dict):
        return [] if there == here else [_apart(path, there, here)]
    lines = []
    for name, value in there.items():
        place = f"{path}.{name}"
        if not isinstance(here, dict) or name not in here:
            lines.append(f"{place}: missing")
        elif name == "()":
            lines += _arguments(path, value, here[name])
        else:
            lines += _lacking(place, value, here[name])
    return lines


def _apart(path: str, there: Any, here: Any) -> str:
    """Say where two values differ; of lists, what each of them has alone."""
    if isinstance(there, list) and isinstance(here, list):
        lost, new = [one for one in there if one not in here], [one for one in here if one not in there]
        there, here = (lost, new) if lost or new else ("another order", here)
    return f"{path}: {there} in the release, {here} here"


def _arguments(path: str, there: list[list[str]], here: list[list[str]]) -> list[str]:
    """The release's arguments have to be ours, in their places; further ones may follow."""
    return [] if there == here[: len(there)] else [f"{path}(): takes {there} in the release, {here} here"]


def describe(module: ModuleType) -> dict[str, Any]:
    """What other code may hold on to in a module: its names, the arguments of its functions, its classes' methods."""
    found = {}
    for name, value in vars(module).items():
        if name.startswith("__") or isinstance(value, ModuleType):
            continue
        own = getattr(value, "__module__", "") or ""
        found[name] = _describe(value) if own.startswith("monai") else _foreign(own, value)
    return {name: value for name, value in found.items() if value is not None}


def _foreign(module: str, value: Any) -> Any:
    """What a module imports from Python, torch or einops is that package's; what it sets itself is its own."""
    return None if module or callable(value) or value is inspect.Parameter.empty else {}


def _describe(value: Any) -> dict[str, Any]:
    if inspect.isclass(value):
        own = [base for base in reversed(value.__mro__) if base.__module__.startswith("monai")]
        members = {name: _plain(item) for base in own for name, item in vars(base).items()}
        wanted = {name: item for name, item in members.items() if not name.startswith("__") or name == "__init__"}
        return {name: {"()": _signature(item)} for name, item in wanted.items() if inspect.isfunction(item)}
    return {"()": _signature(value)} if inspect.isfunction(value) else {}


def _plain(item: Any) -> Any:
    return item.__func__ if isinstance(item, (staticmethod, classmethod)) else item


def _signature(function: Any) -> list[list[str]]:
    """Name, kind and default of each argument."""
    parameters = inspect.signature(function).parameters.values()
    return [[item.name, item.kind.name, _default(item.default)] for item in parameters]


def _default(value: Any) -> str:
    return "" if value is inspect.Parameter.empty else repr(value).partition(" at 0x")[0]


NETS, BLOCKS, MAISI = "monai.networks.nets.", "monai.networks.blocks.", "monai.apps.generation.maisi.networks."
UNET = {"spatial_dims": 2, "in_channels": 4, "num_res_blocks": 1, "attention_levels": (False, True)}
UNET |= {"norm_num_groups": 4, "num_head_channels": 4}
CONTROL = {**UNET, "conditioning_embedding_num_channels": (4, 8)}
CONTEXT = {"with_conditioning": True, "cross_attention_dim": 6}
TOKENS = {"in_channels": 1, "img_size": 32, "patch_size": 16, "hidden_size": 24, "num_heads": 4, "spatial_dims": 2}
AUTOENCODER = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": (1, 1)}
AUTOENCODER |= {"attention_levels": (False, True), "norm_num_groups": 4, "latent_channels": 4}
GRID = {"rel_pos_embedding": "decomposed", "input_size": (3, 4)}
LAYER = {"hidden_size": 24, "mlp_dim": 32, "num_heads": 4}
LARGE = {**AUTOENCODER, "spatial_dims": 3, "num_channels": (8, 16)}
OUT, WIDTHS, NUM = {"out_channels": 4}, {"channels": (8, 16)}, {"num_channels": (8, 16)}
BUILT: dict[str, tuple[str, dict[str, Any]]] = {
    "SABlock": (BLOCKS + "SABlock", {"hidden_size": 24, "num_heads": 4}),
    "SABlock separate": (BLOCKS + "SABlock", {"hidden_size": 24, "num_heads": 4, "use_combined_linear": False}),
    "SABlock rel-pos": (BLOCKS + "SABlock", {"hidden_size": 24, "num_heads": 4, **GRID}),
    "CrossAttentionBlock": (BLOCKS + "CrossAttentionBlock", {"hidden_size": 24, "num_heads": 4, **GRID}),
    "SpatialAttentionBlock": (BLOCKS + "SpatialAttentionBlock", {"spatial_dims": 2, "num_channels": 32}),
    "TransformerBlock": (BLOCKS + "TransformerBlock", LAYER),
    "TransformerBlock cross": (BLOCKS + "TransformerBlock", {**LAYER, "with_cross_attention": True}),
    "ViT": (NETS + "ViT", {**TOKENS, "mlp_dim": 32, "num_layers": 2, "classification": True}),
    "ViTAutoEnc": (NETS + "ViTAutoEnc", {**TOKENS, "mlp_dim": 32, "num_layers": 2}),
    "UNETR": (NETS + "UNETR", {**{k: v for k, v in TOKENS.items() if k != "patch_size"}, "out_channels": 2}),
    "MaskedAutoEncoderViT": (NETS + "MaskedAutoEncoderViT", {**TOKENS, "num_layers": 2, "decoder_hidden_size": 24}),
    "DecoderOnlyTransformer": (
        NETS + "DecoderOnlyTransformer",
        dict(
            zip(
                ("num_tokens", "max_seq_len", "attn_layers_dim", "attn_layers_depth", "attn_layers_heads"),
                (10, 6, 8, 2, 2),
            )
        ),
    ),
    "AutoencoderKL": (NETS + "AutoencoderKL", {**AUTOENCODER, **WIDTHS}),
    "SPADEAutoencoderKL": (NETS + "SPADEAutoencoderKL", {**AUTOENCODER, **WIDTHS, "label_nc": 3}),
    "AutoencoderKlMaisi": (MAISI + "autoencoderkl_maisi.AutoencoderKlMaisi", LARGE),
    "VQVAE": (NETS + "VQVAE", {"spatial_dims": 2, "in_channels": 1, "out_channels": 1}),
    "DiffusionModelUNet": (NETS + "DiffusionModelUNet", {**UNET, **OUT, **WIDTHS}),
    "DiffusionModelUNet conditioned": (NETS + "DiffusionModelUNet", {**UNET, **OUT, **WIDTHS, **CONTEXT}),
    "DiffusionModelEncoder": (NETS + "diffusion_model_unet.DiffusionModelEncoder", {**UNET, **OUT, **WIDTHS}),
    "SPADEDiffusionModelUNet": (NETS + "SPADEDiffusionModelUNet", {**UNET, **OUT, **WIDTHS, "label_nc": 3}),
    "ControlNet": (NETS + "ControlNet", {**CONTROL, **WIDTHS}),
    "DiffusionModelUNetMaisi": (MAISI + "diffusion_model_unet_maisi.DiffusionModelUNetMaisi", {**UNET, **OUT, **NUM}),
    "ControlNetMaisi": (MAISI + "controlnet_maisi.ControlNetMaisi", {**CONTROL, **NUM}),
}


def built(name: str) -> dict[str, Any]:
    """What other code may hold on to in a network: attributes, modules, and parameters and buffers in their order."""
    path, kwargs = BUILT[name]
    module, _, cls = path.rpartition(".")
    net = getattr(importlib.import_module(module), cls)(**kwargs)
    found: dict[str, Any] = {}
    for place, part in net.named_modules():
        names = [name for name in vars(part) if not name.startswith("_")] + list(part._buffers)
        # einops' layers and buffers without values have attributes that nobody holds on to
        if type(part).__module__.startswith(("monai", "torch.nn.modules.container")):
            found[place or "itself"] = {name: {} for name in names + list(part._modules)}
    parameters = [[key, list(p.shape), p.requires_grad] for key, p in net.named_parameters()]
    return {"attributes": found, "parameters": parameters, "state dict": list(net.state_dict())}


def main(modules: list[str]) -> int:
    if modules:
        found: dict[str, Any] = {name: describe(importlib.import_module(name)) for name in modules}
        print(json.dumps({**found, **{f"built {name}": built(name) for name in BUILT}}))
        return 0
    lines = differences()
    print("\n".join(lines))
    print(f"{len(lines)} differences")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
