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


"""What a network must be like to compute what another package's vision transformer does, beyond what keys tell."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn as nn

__all__ = ["FileFacts", "check_dinov2", "check_hf", "check_hf_dinov2", "check_hf_mae", "check_mae", "check_timm"]

HEADS = {(width, 4 * width): heads for width, heads in ((192, 3), (384, 6), (512, 8), (768, 12), (896, 14), (1024, 16))}
HEADS.update({(1280, 5120): 16, (1408, 6144): 16, (1664, 8192): 16})
"""
Number of heads of the networks of timm, DINO, DINOv2 and MAE that have a class token, by their width and that of their
feed-forward networks.
"""
DECODER_HEADS = {(512, 2048): 16}
"""Of MAE's decoders."""
TIMM_EPS = 1e-6
SAY = "where that is wrong, say {0} in the configuration of the file"


@dataclass(frozen=True)
class FileFacts:
    """
    What keys and shapes of a file tell of its network, in any of the layouts; None where they do not.

    Args:
        depth: number of blocks.
        width: of the tokens.
        mlp: width of the feed-forward networks' hidden layer.
        bias: whether q, k and v have a bias.
    """

    depth: int | None
    width: int | None
    mlp: int | None
    bias: bool | None

    @classmethod
    def read(cls, state: Mapping[str, Any], decoder: bool = False) -> FileFacts:
        """Those of the encoder, or of a masked autoencoder's decoder."""
        own = {key: value for key, value in state.items() if ("decoder" in key) == decoder}
        numbers = [re.search(r"(?:blocks|layers?)\.(?:\d+\.)?(\d+)\.(?=.*norm)", key) for key in own]
        depths = [int(found[1]) + 1 for found in numbers if found]
        joined = r"attn\.qkv|query|q_proj"
        return cls(
            max(depths, default=None),
            _size(own, r"(?:pos_embed|position_embeddings)$", -1),
            _size(own, r"(?:mlp\.fc1|intermediate\.dense)\.weight$", 0),
            (
                any(re.search(rf"(?:{joined})\.bias$", key) for key in own)
                if any(re.search(rf"(?:{joined})\.weight$", key) for key in own)
                else None
            ),
        )


def check_timm(net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """For timm's layout, with which DeiT and DINO agree."""
    said = {**config, **(config.get("model_args") or {})}
    known = HEADS if not state or _had_class_token(state) else {}
    yield from _common(net, state, said.get("layer_norm_eps", TIMM_EPS), said.get("num_heads"), known)
    if state:
        facts = FileFacts.read(state)
        yield from _of_another_network({"depth": facts.depth, "embed_dim": facts.width}, said)
        yield from _classes(net, state, "head", said)
        yield from _untold(state, said)
    else:
        yield from _way_back(net)


def check_dinov2(net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """For DINOv2's layout, which timm's networks with LayerScale have, too."""
    yield from check_timm(net, state, config)
    if not state:
        yield from _needs_class_token(net)
        if _has_head(net):
            yield (
                "DINOv2's networks have no head: set net.classification_head = torch.nn.Identity() to write the "
                "encoder, or take timm's layout."
            )


def check_mae(net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """For the masked autoencoder of its authors."""
    yield from _common(net, state, config.get("layer_norm_eps", TIMM_EPS), config.get("num_heads"), HEADS)
    if state:
        yield from _token(net, state)
    else:
        yield from _way_back(net, decoder=True)
        if any(not _biased(block) for block in _blocks(net, "blocks")):
            yield "MAE's q, k and v always have a bias: the network has to be built with qkv_bias=True."
    if hasattr(net, "decoder_blocks"):
        yield from _decoder(net, state, config.get("decoder_num_heads"), DECODER_HEADS)


def check_hf(net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """For transformers' ViT."""
    yield from _transformers(net, state, config, 1e-12, ("vit", "vit_mae"))
    if state:
        yield from _classes(net, state, "classifier", {})
    else:
        yield from _way_back(net)
        yield from _needs_class_token(net)


def check_hf_dinov2(net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """For transformers' DINOv2."""
    yield from _transformers(net, state, config, 1e-6, ("dinov2",))
    if state:
        yield from _token(net, state)
    else:
        yield from _way_back(net)
        yield from _needs_class_token(net)
        if _has_head(net):
            yield (
                "transformers' head of a DINOv2 takes the mean of the patches, too: set "
                "net.classification_head = torch.nn.Identity() to write the encoder."
            )


def check_hf_mae(net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """For transformers' masked autoencoder."""
    yield from _transformers(net, state, config, 1e-12, ("vit_mae",))
    if state:
        yield from _token(net, state)
    else:
        yield from _way_back(net, decoder=True)
    if hasattr(net, "decoder_blocks"):
        yield from _decoder(net, state, config.get("decoder_num_attention_heads", 16) if state else None, {})


def _transformers(
    net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any], eps: float, kinds: tuple[str, ...]
) -> Iterator[str]:
    """What is common to transformers' networks. On the way back their configuration takes whatever the network has."""
    if not state:
        yield from _common(net, state, None, None, {})
        return
    if not config:
        yield (
            "transformers keeps the number of heads, the eps of its norms and the activation in config.json, which is "
            "not known here: keep it beside the file, or give its content as the configuration."
        )
        return
    kind = config.get("model_type", kinds[0])
    if kind not in kinds:
        yield (
            f"The configuration is that of a '{kind}', not of {' or '.join(kinds)}, and may compute something else. If "
            f"it is one under another name (Curia), say model_type='{kinds[0]}' in the configuration."
        )
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        yield f"The file's activation is '{activation}' (hidden_act), and the network's is the exact GELU."
    yield from _common(
        net, state, config.get("layer_norm_eps", eps), config.get("num_attention_heads", 12), {}, "num_attention_heads"
    )
    facts = FileFacts.read(state)
    names = {"num_hidden_layers": facts.depth or 0, "hidden_size": facts.width, "intermediate_size": facts.mlp}
    yield from _of_another_network(names, config)


def _of_another_network(found: Mapping[str, int | None], config: Mapping[str, Any]) -> Iterator[str]:
    """A configuration of other sizes than the file's tells nothing of its heads, eps and activation."""
    for name, has in found.items():
        wanted = config.get(name)
        if None not in (has, wanted) and has != wanted:
            yield (
                f"The file has {name}={has}, and its configuration {name}={wanted}: it is that of another network. "
                "Give the file's own as the configuration."
            )


def _common(
    net: nn.Module,
    state: Mapping[str, Any],
    eps: float | None,
    heads: int | None,
    known: Mapping[tuple[int, int], int],
    name: str = "num_heads",
) -> Iterator[str]:
    """The encoder: eps of the norms, heads, sizes, activation and projections."""
    yield from _eps(net, eps)
    blocks = _blocks(net, "blocks")
    yield from _parts(blocks)
    yield from _heads(blocks, state, heads, known, name)
    if state:
        yield from _sizes(net, blocks, FileFacts.read(state))


def _decoder(
    net: nn.Module, state: Mapping[str, Any], heads: int | None, known: Mapping[tuple[int, int], int]
) -> Iterator[str]:
    blocks = _blocks(net, "decoder_blocks")
    yield from _parts(blocks)
    yield from _heads(blocks, state, heads, known, "decoder_num_heads")
    if state:
        yield from _sizes(net, blocks, FileFacts.read(state, decoder=True), "decoder_")


def _eps(net: nn.Module, eps: float | None) -> Iterator[str]:
    norms = [
        norm
        for name, norm in net.named_modules()
        if isinstance(norm, nn.LayerNorm) and not name.endswith("norm_cross_attn")
    ]
    found = sorted({norm.eps for norm in norms})
    if not found:
        yield "It has no LayerNorm, which the other network has before each of its parts."
        return
    wanted = found[0] if eps is None else eps
    if found != [wanted]:
        others = ", ".join(f"{value:g}" for value in found if value != wanted)
        yield f"Its norms have eps {others}, those of the other network {wanted:g}: build it with norm_eps={wanted:g}."


def _parts(blocks: list[nn.Module]) -> Iterator[str]:
    if any(not getattr(_attention(block), "use_proj_attn", False) for block in blocks):
        yield "Its attention has no output projection, that of the other network has: build it with use_proj_attn=True."
    norms = [getattr(block, name, None) for block in blocks for name in ("norm1", "norm2")]
    if any(not isinstance(norm, nn.LayerNorm) for norm in norms):
        yield "Its blocks have other norms than LayerNorm, which those of the other network have."
    activations = [getattr(getattr(block, "mlp", None), "fn", None) for block in blocks]
    if any(not isinstance(fn, nn.GELU) or fn.approximate != "none" for fn in activations):
        yield "Its activation is not the exact GELU, which the other network has."


def _heads(
    blocks: list[nn.Module],
    state: Mapping[str, Any],
    heads: int | None,
    known: Mapping[tuple[int, int], int],
    name: str,
) -> Iterator[str]:
    attentions = [_attention(block) for block in blocks]
    width = next((int(attention.hidden_input_size) for attention in attentions if attention is not None), 0)
    wanted = heads if heads is not None else known.get((width, _hidden(blocks)))
    own = {int(attention.num_heads) for attention in attentions if attention is not None}
    argument = name if name.startswith("decoder") else "num_heads"
    if wanted is None:
        if state:
            yield f"The keys do not tell the number of heads at a width of {width}: say {name} in the configuration."
    elif own != {wanted}:
        guess = "" if heads is not None else f"; {SAY.format(name)}"
        yield (
            f"It has {' and '.join(map(str, sorted(own)))} heads, and the other network with tokens of {width} has "
            f"{wanted}: build it with {argument}={wanted}{guess}."
        )


def _sizes(net: nn.Module, blocks: list[nn.Module], facts: FileFacts, beginning: str = "") -> Iterator[str]:
    block = blocks[0] if blocks else None
    own = (
        ("num_layers", len(blocks), facts.depth),
        ("hidden_size", getattr(_attention(block), "hidden_input_size", None), facts.width),
        ("mlp_dim", _hidden(blocks), facts.mlp),
    )
    for name, has, wanted in own:
        if wanted is not None and has is not None and has != wanted:
            argument = f"{beginning}{name}={wanted}"
            yield f"It has {beginning}{name}={has}, and the file's network {wanted}: build it with {argument}."
    if block is not None and facts.bias is not None and _biased(block) != facts.bias:
        yield (
            f"q, k and v have {'a' if facts.bias else 'no'} bias in the file: build the network with "
            f"qkv_bias={facts.bias}."
        )


def _token(net: nn.Module, state: Mapping[str, Any]) -> Iterator[str]:
    in_file = any(re.search(r"(?:^|\.)cls_token$", key) for key in state)
    if in_file and not hasattr(net, "cls_token"):
        yield (
            "The file has a class token, which its patches attend to, and the network has none: without it features "
            "differ. Build the network with classification=True; UNETR and ViTAutoEnc have no such argument. To begin "
            'a training with other features, leave the token out by ignore=("*cls_token",).'
        )
    if not in_file and hasattr(net, "cls_token"):
        yield "The file has no class token, and the network has one: build it with classification=False."


def _classes(net: nn.Module, state: Mapping[str, Any], head: str, said: Mapping[str, Any]) -> Iterator[str]:
    """The class token and the head."""
    yield from _token(net, state)
    if not any(re.search(rf"(?:^|\.){head}\.(?:weight|bias)$", key) for key in state):
        return
    leave = f'leave the head out by ignore=("{head}.*",)'
    own = getattr(net, "classification_head", None)
    if own is None:
        yield f"The file has a head, and the network has none: {leave}."
    elif isinstance(own, nn.Sequential):
        yield (
            "The network's head ends in a hyperbolic tangent, the file's does not: build it with post_activation=None, "
            f'or {leave} and the network\'s as it is by allow=("classification_head.*",).'
        )
    pool = said.get("global_pool", "token")
    if pool != "token":
        yield (
            f"The file's head takes the pooled patches (global_pool={pool!r}), the network's the class token: {leave}."
        )


def _untold(state: Mapping[str, Any], said: Mapping[str, Any]) -> Iterator[str]:
    """What keys tell of files with a class token alone: timm has networks without one that differ only in this."""
    kind = said.get("act_layer", "gelu" if _had_class_token(state) else None)
    if kind is None:
        yield (
            "The file has no class token, so that keys do not tell the activation: say act_layer='gelu' in the "
            "configuration if it is the exact GELU. The approximate one, as of SigLIP, is not the network's."
        )
    elif kind != "gelu":
        yield f"The file's activation is {kind!r} (act_layer), and the network's is the exact GELU."
    norm = said.get("norm_layer", "layernorm")
    if norm != "layernorm":
        yield f"The file's norms are {norm!r} (norm_layer), and the network's are LayerNorms."


def _had_class_token(state: Mapping[str, Any]) -> bool:
    """Whether there is a class token, or the user has taken it out, and a position is left over."""
    if any(re.search(r"(?:^|\.)cls_token$", key) for key in state):
        return True
    number = _size(state, r"(?:^|\.)pos_embed$", -2) or 0
    return number > 1 and math.isqrt(number - 1) ** 2 == number - 1


def _way_back(net: nn.Module, decoder: bool = False) -> Iterator[str]:
    """What no package has a place for."""
    embedding: Any = net.patch_embedding
    if len(embedding.patch_size) != 2:
        yield f"It takes {len(embedding.patch_size)}-D images, those of other packages take 2-D ones."
    if hasattr(net, "conv3d_transpose"):
        yield "Its transposed convolutions have no place there: write a ViT with the same encoder."
    if hasattr(net, "decoder_blocks") != decoder:
        yield (
            "A masked autoencoder is written by the layouts 'mae' and 'hf-mae' alone, and nothing else is: a ViT by "
            "'timm', 'dinov2', 'hf' or 'hf-dinov2'."
        )
    if isinstance(getattr(net, "classification_head", None), nn.Sequential):
        yield (
            "Its head ends in a hyperbolic tangent, which other packages' do not: set net.classification_head = "
            "torch.nn.Identity() to write the encoder."
        )


def _needs_class_token(net: nn.Module) -> Iterator[str]:
    if not hasattr(net, "cls_token"):
        yield "It has no class token, which the other network always has: only timm's layout can be without."


def _has_head(net: nn.Module) -> bool:
    return bool(list(getattr(net, "classification_head", nn.Identity()).parameters()))


def _blocks(net: nn.Module, name: str) -> list[nn.Module]:
    """The transformer blocks, without a norm behind them."""
    blocks: Iterable[nn.Module] = getattr(net, name, ())
    return [block for block in blocks if hasattr(block, "attn")]


def _hidden(blocks: list[nn.Module]) -> int:
    """Width of the feed-forward networks' hidden layer."""
    linear = getattr(getattr(blocks[0], "mlp", None), "linear1", None) if blocks else None
    return int(getattr(linear, "out_features", 0))


def _attention(block: nn.Module | None) -> Any:
    return getattr(block, "attn", None)


def _biased(block: nn.Module) -> bool:
    attention = _attention(block)
    linear = attention.qkv if isinstance(attention.qkv, nn.Linear) else attention.to_q
    return linear.bias is not None


def _size(state: Mapping[str, Any], pattern: str, axis: int) -> int | None:
    value = next((value for key, value in state.items() if re.search(pattern, key)), None)
    return None if value is None or value.dim() < 2 else int(value.shape[axis])
