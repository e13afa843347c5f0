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
Layouts of GenerativeModels that no package on PyPI writes, made from MONAI's: the renames backwards.

MONAI 1.5 with output projections and separate linears computes what these networks computed, so that its outputs are
theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F

__all__ = ["renamed_back"]

State = dict[str, torch.Tensor]

_SPATIAL = re.compile(r"(.*(?:attentions\.\d+|middle_block\.attention|blocks\.\d+)\.)attn\.(\w+)\.(weight|bias)")
_QUERIES = {"to_q": "query", "to_k": "key", "to_v": "value", "out_proj": "proj_attn"}
_CONVOLUTIONS = {"to_q": "q.conv", "to_k": "k.conv", "to_v": "v.conv", "out_proj": "proj_out.conv"}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
}
_MIDDLE = ("resnet_1", "attention", "resnet_2")


def renamed_back(layout: str, network: str, state_dict: Mapping[str, torch.Tensor], head_width: int) -> State:
    """
    A checkpoint of MONAI 1.5 in the keys of an older network.

    Args:
        layout: as in :class:`~tests.parity.references.cases.Case`.
        network: name of the class.
        state_dict: the checkpoint, which stays as it is.
        head_width: width of one attention head; 0 where one head has all channels.
    """
    revision = layout.removeprefix("monai-generative ")
    state = {key.replace(".postconv.", ".conv."): value for key, value in state_dict.items()}
    if network == "VQVAE":
        return {re.sub(r"^(encoder|decoder)\.blocks\.", r"\1.", key): value for key, value in state.items()}
    if network == "AutoencoderKL":
        return _autoencoder(state, revision)
    state = {_transformer(key): value for key, value in state.items()}
    if revision == "before 0.1.0":
        return _input_blocks(state, head_width)
    if revision == "0.1.0, unscaled":  # nothing divides the logits, so that the queries are smaller by as much
        scale = head_width**-0.5
        state = {key: value * scale if re.search(r"attn\d\.to_q\.", key) else value for key, value in state.items()}
    return {_SPATIAL.sub(lambda found: _spatial(found, _QUERIES), key): value for key, value in state.items()}


def _spatial(found: re.Match, names: Mapping[str, str]) -> str:
    return f"{found[1]}{names[found[2]]}.{found[3]}"


def _transformer(key: str) -> str:
    key = re.sub(r"(\.attn\d)\.out_proj\.", r"\1.to_out.0.", key)
    return key.replace(".ff.linear1.", ".ff.net.0.proj.").replace(".ff.linear2.", ".ff.net.2.")


def _autoencoder(state: State, revision: str) -> State:
    """Attention of 1x1 convolutions and, in release 0.1.0, quantization by 3x3 ones."""
    axes = state["encoder.blocks.0.conv.weight"].dim() - 2
    renamed = {}
    for key, value in state.items():
        found = _SPATIAL.fullmatch(key)
        if found:
            key = _spatial(found, _CONVOLUTIONS)
            value = value.reshape(*value.shape, *[1] * axes) if found[3] == "weight" else value
        elif revision == "0.1.0" and "quant_conv" in key and key.endswith("weight"):
            value = F.pad(value, [1, 1] * axes)
        renamed[key] = value
    return renamed


def _input_blocks(state: State, head_width: int) -> State:
    """The names of the latent diffusion model's U-Net, and one convolution for queries, keys and values."""
    places = _places(state)
    renamed: State = {}
    for key, value in state.items():
        inside = next((place for place in places if key.startswith(place)), "")
        place, rest = places.get(inside, ""), key.removeprefix(inside)
        layer, _, parameter = rest.rpartition(".")
        if layer == "attn.to_q":
            parts = [state[f"{inside}attn.to_{letter}.{parameter}"] for letter in "qkv"]
            renamed[f"{place}qkv.{parameter}"] = _pointwise(_interleaved(parts, head_width or value.shape[0]))
        elif layer == "attn.out_proj":
            renamed[f"{place}proj_out.{parameter}"] = _pointwise(value)
        elif not layer.startswith("attn.to_"):
            first, dot, others = rest.partition(".")
            first = _RESIDUAL.get(first, first) if _is_residual(inside) else first
            renamed[f"{place}{first}{dot}{others}"] = value
    return renamed


def _is_residual(place: str) -> bool:
    return "resnet" in place or "sampler" in place


def _interleaved(parts: list[torch.Tensor], head_width: int) -> torch.Tensor:
    """Rows of queries, keys and values, head by head."""
    heads = [part.reshape(-1, head_width, *part.shape[1:]) for part in parts]
    return torch.cat(heads, dim=1).flatten(0, 1)


def _pointwise(value: torch.Tensor) -> torch.Tensor:
    return value.unsqueeze(-1) if value.dim() == 2 else value


def _places(state: State) -> dict[str, str]:
    """The older name of each part of a U-Net."""
    places = {"conv_in.": "input_blocks.0.0.", "class_embedding.": "label_emb."}
    places |= {f"middle_block.{part}.": f"middle_block.{number}." for number, part in enumerate(_MIDDLE)}
    for side, box, block in (("down", "input_blocks", 1), ("up", "output_blocks", 0)):
        level = 0
        while any(key.startswith(f"{side}_blocks.{level}.") for key in state):
            stage = f"{side}_blocks.{level}."
            resnets = {key.split(".")[3] for key in state if key.startswith(f"{stage}resnets.")}
            attends = any(key.startswith(f"{stage}attentions.") for key in state)
            for number in range(len(resnets)):
                places[f"{stage}resnets.{number}."] = f"{box}.{block}.0."
                places[f"{stage}attentions.{number}."] = f"{box}.{block}.1."
                block += 1
            if any(key.startswith(f"{stage}{side}sampler.") for key in state):
                at = f"{block}.0." if side == "down" else f"{block - 1}.{1 + attends}."
                places[f"{stage}{side}sampler."] = f"{box}.{at}"
                block += side == "down"
            level += 1
    return places
