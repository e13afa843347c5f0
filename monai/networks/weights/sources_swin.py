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

"""MONAI's own self-supervised weights: Swin transformers for SwinUNETR, and vision transformers for ViT and UNETR."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn as nn

from monai.networks.nets.swin_unetr import PatchMerging
from monai.networks.state_dict.rules import Join, Part, Rule, Split

from .early_merging import EarlyPatchMerging
from .journal import Journal
from .patterns import Ignore
from .source import Source

__all__ = ["EARLY_SWIN", "SELF_SUPERVISED_VIT", "SOURCES", "SWIN"]

QKV = ("to_q", "to_k", "to_v")
LAYER_EPS = 1e-5
_WRAPPERS = r"(?:module\.)?(?:student\.|teacher\.)?(?:module\.)?(?:backbone\.)?"
_SWIN = r"(?:swinViT\.|swin_vit\.)?"
_HEADS = "rotation_head|rotation_pre|contrastive_head|contrastive_pre|convTrans3d|conv|proj_head|encoder.mask_token"
_EARLY = re.compile(
    r"\.mlp\.fc[12]\.|(?:^|\.)convTrans3d\.|(?:^|\.)swin_vit\.|^encoder\.(?:mask_token|layers\d\.0\.0\.)"
)
_BACKBONE = re.compile(rf"{_WRAPPERS}{_SWIN}((?:patch_embed|layers[1-4]c?)\..+)")
_AUTOENCODER = re.compile(r"(?:module\.)?encoder\.(patch_embed\..+|layers[1-4]\.0\.)(?:0\.(.+))?")
_BESIDE = re.compile(rf"{_WRAPPERS}((?:encoder|decoder)\d+\..+)")


@dataclass(frozen=True)
class _SwinKeys(Rule):
    """
    Keys of a Swin transformer become those of the one in a SwinUNETR, or of one alone, whatever it was wrapped in when
    it was saved.
    """

    def apply(self, part: Part) -> None:
        place = "swinViT." if hasattr(part.module, "swinViT") else ""
        for key in part.foreign():
            name = _own_name(key, place)
            if name is not None and name != key:
                part.move(key, name)

    def inverse(self) -> None:
        return None


def _own_name(key: str, place: str) -> str | None:
    beside = _BESIDE.fullmatch(key)
    if beside:
        return beside[1] if place else None
    inside = _BACKBONE.fullmatch(key) or _AUTOENCODER.fullmatch(key)
    if not inside:
        return None
    return place + re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", "".join(part for part in inside.groups() if part))


def _is_early(state: Mapping[str, Any]) -> bool:
    """Whether keys show that MONAI before 1.5 wrote them."""
    return any(_EARLY.search(key) for key in state)


def _check_early(net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    yield from _check(net, state)
    found = _merging(net)
    if found not in (None, EarlyPatchMerging):
        yield (
            f"MONAI before 1.5 merged other patches than {found.__name__} does (MONAI issue 8284): build the network "
            "with downsample=EarlyPatchMerging, of monai.networks.weights."
        )


def _check_recent(net: nn.Module, state: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    yield from _check(net, state)
    found = _merging(net)
    if _is_early(state):
        yield f"The keys are those of MONAI before 1.5: source={EARLY_SWIN.name!r}."
    elif found not in (None, PatchMerging):
        yield f"MONAI 1.5 merges other patches than {found.__name__} does: build the network with downsample='merging'."


def _check(net: nn.Module, state: Mapping[str, Any]) -> Iterator[str]:
    swin: Any = getattr(net, "swinViT", net)
    networks = [
        name for name in ("student", "teacher") if any(re.match(rf"(?:module\.)?{name}\.", key) for key in state)
    ]
    if len(networks) > 1:
        yield "There are two networks, student.* and teacher.*: keep the keys of the one that you want."
    if getattr(net, "normalize", True) is not True:
        yield "The transformer was trained with normalized outputs: build the network with normalize=True."
    if any(swin._per_stage_hyena):
        yield "The transformer was trained with attention in windows: build the network with use_hyena=False."
    convolutions = any(re.search(r"(?:^|\.)layers[1-4]c\.", key) for key in state)
    if convolutions != swin.use_v2:
        yield f"The file is of version {2 if convolutions else 1}: build the network with use_v2={convolutions}."
    for name, module in swin.named_modules():
        if isinstance(module, nn.LayerNorm) and module.eps != LAYER_EPS:
            yield f"{name}: the transformer was trained with {LAYER_EPS} added to the variance, not {module.eps}."
            return


def _merging(net: nn.Module) -> Any:
    """The class that merges patches; None in 2-D, where MONAI has always merged the same."""
    swin: Any = getattr(net, "swinViT", net)
    if swin.patch_embed.proj.weight.dim() != 5:
        return None
    classes = {type(stage[0].downsample) for stage in (swin.layers1, swin.layers2, swin.layers3, swin.layers4)}
    return classes.pop() if len(classes) == 1 else nn.ModuleList


def _without_last_convolution(journal: Journal, config: Mapping[str, Any]) -> None:
    """A disrupted autoencoder has a last convolution under the name of SwinUNETR's, for another purpose."""
    if any(key.startswith("encoder.layers") for key in journal):
        for key in [key for key in journal if re.match(r"(?:module\.)?out\.conv\.conv\.", key)]:
            journal.ignore(key, "it made the image of the self-supervised training")


_RULES: Mapping[str, tuple[Rule, ...]] = {
    "": (
        Ignore(rf"{_WRAPPERS}(?:{_HEADS})(?:\.|$)", "a head of the self-supervised training"),
        Ignore(
            rf"{_WRAPPERS}{_SWIN}(?:encoder\.)?norm\.(?:weight|bias)$",
            "a last norm, whose output SwinUNETR does not take",
        ),
        _SwinKeys(),
    )
}
_PATTERN = (
    rf"^{_WRAPPERS}(?:swin_vit\.|layers[1-4]c?\.0\.|(?:rotation|contrastive|proj)_head\.|convTrans3d\.)|"
    r"^(?:module\.|student\.|teacher\.|backbone\.)+swinViT\.|^(?:module\.)?encoder\.layers\d\.0\.0\."
)
_NETWORKS = ("SwinUNETR", "SwinTransformer")

EARLY_SWIN = Source(
    name="swin",
    package="MONAI 0.9 to 1.4, self-supervised training of a Swin transformer (as model_swinvit.pt, VoCo),",
    pattern=_PATTERN,
    networks=_NETWORKS,
    rules=_RULES,
    check=_check_early,
    adapt=_without_last_convolution,
    reversible=False,
    is_monai=True,
)
SWIN = Source(
    name="swin-1.5",
    package="MONAI 1.5 or newer, self-supervised training of a Swin transformer,",
    pattern=_PATTERN,
    networks=_NETWORKS,
    rules=_RULES,
    check=_check_recent,
    reversible=False,
    is_monai=True,
)
SELF_SUPERVISED_VIT = Source(
    name="vit-ssl",
    package="MONAI, self-supervised training of a vision transformer (ViTAutoEnc),",
    pattern=r"^(?:module\.)?conv3d_transpose(?:_1)?\.",
    networks=("ViT",),
    rules={
        "": (
            Ignore(r"conv3d_transpose(?:_1)?\.|linear_1\.", "the decoder of the self-supervised training"),
            Ignore(r"patch_embedding\.cls_token$", "a class token that was never used"),
        ),
        "self attention": (Join(QKV, "qkv"), Split("qkv", QKV)),
    },
    reversible=False,
    is_monai=True,
)

SOURCES: tuple[Source, ...] = (EARLY_SWIN, SWIN, SELF_SUPERVISED_VIT)
