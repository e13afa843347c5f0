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
Who wrote a checkpoint, by its keys, and how its keys become those of today: one entry of a table for each layout.

A module says which part of a network it is by an attribute ``layout_role``. A layout has rules for some roles. To know
one more layout is to add one entry.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from monai.networks.state_dict.rules import (
    CausalMask,
    Drop,
    DropPart,
    Flatten,
    Interleaved,
    Join,
    Layers,
    Misfit,
    Numbered,
    Part,
    Refuse,
    Rename,
    Rule,
    Shift,
    Split,
    Unused,
    When,
    Wrap,
)

__all__ = ["ALWAYS", "LAYOUTS", "Layout", "recognize_layouts", "rivals"]

SPATIAL = r"(?:attentions\.\d+|middle_block\.attention|(?:encoder|decoder)\.blocks\.\d+)"
"""Where a network has a :class:`SpatialAttentionBlock`."""
QKV = ("to_q", "to_k", "to_v")
WITHOUT_CONTEXT = "the checkpoint attends to a context, this block does not: build it with with_cross_attention=True."


@dataclass(frozen=True)
class Layout:
    """
    A way in which some release named its weights.

    Args:
        name: a short name.
        source: the package and the versions that wrote it.
        pattern: of a key that shows it.
        meaning: what follows for loading.
        rules: by the role of a module.
        projections_used: whether the package used every output projection whose key the layout renames; False where
            the keys do not tell.
        is_old: whether it is worth to be named where a load is refused.
        evidence: the key of a checkpoint that showed it.
    """

    name: str
    source: str
    pattern: str
    meaning: str
    rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    projections_used: bool = False
    is_old: bool = True
    evidence: str = ""


@dataclass(frozen=True)
class _ScaledQueries(Rule):
    """
    Transformers of GenerativeModels 0.1: release 0.1.0 did not divide the logits by the square root of the head's
    width. Then the weights of the queries are scaled up.
    """

    blocks: tuple[str, ...]

    def apply(self, part: Part) -> None:
        if not part.foreign("ff.net."):
            return
        scaled = part.facts.cross_attention_scaled
        if scaled is None:
            raise Misfit(
                f"{part.prefix}ff.net.*: GenerativeModels 0.1 wrote this transformer, and its keys do not tell whether "
                "its attention divided the logits by sqrt(num_head_channels). Load it by "
                "load_old_state_dict(state_dict, facts=CheckpointFacts(cross_attention_scaled=False)) if it was "
                "release 0.1.0, which did not, and with True if it was a revision after it, which did."
            )
        for name in self.blocks:
            key = f"{part.prefix}{name}.to_q.weight"
            if not scaled and key in part.state:
                part.state[key] = part.state[key] / part.module.get_submodule(name).scale

    def inverse(self) -> None:
        return None  # the present layout scales, and so did the later revisions of that one


@dataclass(frozen=True)
class _NearestUpsampling(Rule):
    """A checkpoint that is known to need transposed convolutions is refused by a module that repeats positions."""

    def apply(self, part: Part) -> None:
        if part.foreign("conv.") and part.facts.transposed_upsampling:
            raise Misfit(
                f"{part.prefix}conv: the transposed convolutions of GenerativeModels have a kernel of size 3, which "
                "AutoencoderKL cannot represent: AutoencoderKlMaisi(use_convtranspose=True) can."
            )

    def inverse(self) -> None:
        return None


def _renamed(*names: tuple[str, str]) -> tuple[Rename, ...]:
    return tuple(Rename(f"{old}.", f"{new}.") for old, new in names)


_CONVOLUTIONS = (("q.conv", "attn.to_q"), ("k.conv", "attn.to_k"), ("v.conv", "attn.to_v"))
_LINEARS = tuple(f"attn.{name}.weight" for name in (*QKV, "out_proj"))

ALWAYS: Mapping[str, tuple[Rule, ...]] = {
    "self attention": (Join(QKV, "qkv"), Split("qkv", QKV)),
    "nearest upsampling": (_NearestUpsampling(), Rename("conv.", "postconv.")),
    "split convolution": (Rename("conv.weight", "conv.conv.weight"), Rename("conv.bias", "conv.conv.bias")),
}
"""Rules that no layout has to show: what is renamed or joined is never the network's own."""

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "x-transformers",
        "GenerativeModels before 0.2.0, DecoderOnlyTransformer",
        r"(?:^|\.)attn_layers\.layers\.\d",
        "another architecture, which this package cannot represent: run it with that release",
    ),
    Layout(
        "input_blocks",
        "GenerativeModels before 0.1.0, DiffusionModelUNet",
        r"(?:^|\.)(?:input_blocks|output_blocks)\.\d",
        "q, k and v lie interleaved by heads in one convolution; the output projection was used",
        {
            "diffusion residual block": (
                Layers("in_layers", ("norm1", "conv1")),
                Layers("out_layers", ("norm2", "conv2")),
                Layers("emb_layers", ("time_emb_proj",)),
            ),
            "spatial attention": (
                Rename("qkv.conv.", "qkv."),
                Interleaved("qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.num_heads"),
                Rename("proj_out.conv.", "attn.out_proj."),
                Rename("proj_out.", "attn.out_proj."),
                Flatten("attn.out_proj.weight"),
            ),
            "whole diffusion network": (Wrap("conv"),),
        },
        projections_used=True,
    ),
    Layout(
        "query",
        "GenerativeModels up to 0.1.0, DiffusionModelUNet",
        r"(?:^|\.)query\.weight$",
        "the output projection proj_attn was used",
        {
            "spatial attention": (
                When("query.", _renamed(("proj_attn", "attn.out_proj"))),
                *_renamed(("query", "attn.to_q"), ("key", "attn.to_k"), ("value", "attn.to_v")),
            )
        },
        projections_used=True,
    ),
    Layout(
        "q.conv",
        "GenerativeModels before 0.2.0, AutoencoderKL",
        r"(?:^|\.)q\.conv\.weight$",
        "q, k, v and the output projection, which was used, are convolutions of size 1",
        {
            "spatial attention": (
                *_renamed(*_CONVOLUTIONS, ("proj_out.conv", "attn.out_proj")),
                *(Flatten(key) for key in _LINEARS),
            )
        },
        projections_used=True,
    ),
    Layout(
        "ff.net",
        "GenerativeModels up to 0.1.0, with conditioning",
        r"(?:^|\.)ff\.net\.\d",
        "the keys do not tell whether attention was scaled: see CheckpointFacts.cross_attention_scaled",
        {
            "diffusion transformer": (
                _ScaledQueries(("attn1", "attn2")),
                *_renamed(("ff.net.0.proj", "ff.linear1"), ("ff.net.2", "ff.linear2")),
            )
        },
        projections_used=True,
    ),
    Layout(
        "to_q",
        "GenerativeModels 0.2.0 to 0.2.3",
        rf"(?:^|\.){SPATIAL}\.to_q\.weight$",
        "the output projection proj_attn was saved, and never used",
        {
            "spatial attention": (
                When("to_q.", (Unused("proj_attn", "attn.out_proj"),)),
                *_renamed(*((name, f"attn.{name}") for name in QKV)),
            )
        },
        projections_used=True,
    ),
    Layout(
        "to_out",
        "GenerativeModels, with conditioning",
        r"(?:^|\.)attn[12]\.to_out\.0\.",
        "the output projections of the transformers were used",
        {"diffusion transformer": _renamed(*((f"{name}.to_out.0", f"{name}.out_proj") for name in ("attn1", "attn2")))},
        projections_used=True,
    ),
    Layout(
        "norm3",
        "GenerativeModels 0.2.0 to 0.2.3, DecoderOnlyTransformer",
        r"(?:^|\.)blocks\.\d+\.norm3\.weight$",
        "norm2 belongs to the cross attention, norm3 to the feed-forward network",
        {
            "transformer block": (
                When("norm3.", (Refuse("cross_attn.to_q.", WITHOUT_CONTEXT),)),
                Shift((("norm2.", "norm_cross_attn."), ("norm3.", "norm2."))),
            )
        },
        projections_used=True,
    ),
    Layout(
        "param_free_norm.N",
        "GenerativeModels, SPADE",
        r"(?:^|\.)param_free_norm\.N\.",
        "the norms lie one layer deeper",
        {
            "spade residual block": _renamed(
                *((f"{name}.param_free_norm.N", f"{name}.param_free_norm") for name in ("norm1", "norm2"))
            )
        },
    ),
    Layout(
        "flat VQVAE",
        "GenerativeModels 0.1.0, VQVAE",
        r"^(?:module\.)?(?:encoder|decoder)\.\d+\.",
        "the blocks have no name before their number",
        {"blocks in a row": (Numbered("blocks."),)},
    ),
    Layout(
        "saved mask",
        "MONAI 1.4 to 1.6, or GenerativeModels 0.2",
        r"(?:^|\.)causal_mask$",
        "the causal mask was saved; it follows from the arguments",
        {"self attention": (CausalMask("causal_mask"),), "cross attention": (CausalMask("causal_mask"),)},
        is_old=False,
    ),
    Layout(
        "cross_attn",
        "MONAI 1.4 or newer, or GenerativeModels 0.2",
        r"(?:^|\.)cross_attn\.to_q\.weight$",
        "MONAI 1.4 and 1.5 saved a cross attention that was not used, too",
        {"transformer block": (DropPart("cross_attn."),)},
        is_old=False,
    ),
    Layout(
        "norm_cross_attn",
        "MONAI 1.4 to 1.6",
        r"(?:^|\.)norm_cross_attn\.weight$",
        "MONAI saved this norm without a cross attention, too",
        is_old=False,
    ),
    Layout(
        "patch_embedding.cls_token",
        "MONAI 0.6 to 0.8, ViT, ViTAutoEnc and UNETR",
        r"(?:^|\.)patch_embedding\.cls_token$",
        "the class token of the patch embedding was saved, and never used",
        {"patch embedding": (Drop(r"cls_token$"),)},
    ),
    Layout(
        "conv3",
        "MONAI before 0.9, UNETR",
        r"(?:^|\.)(?:conv_block|layer|blocks\.\d+\.\d+)\.conv3\.conv\.weight$",
        "residual blocks that do not change the number of channels saved a convolution of their shortcut, and never "
        "used it",
        {"unetr": (Drop(r"(?:encoder|decoder)\d\.[\w.]*\b(?:conv3|norm3)\."),)},
    ),
    Layout(
        "linear_1",
        "MONAI before 0.8, ViTAutoEnc of the self-supervised tutorial",
        r"^(?:module\.)?linear_1\.weight$",
        "a linear was saved, and never used",
        {"vit autoencoder": (Drop(r"linear_1\."),)},
    ),
    Layout(
        "thop",
        "the operation counter thop",
        r"(?:^|\.)total_ops$",
        "counters lie among the weights",
        {"": (Drop(r"(?:.*\.)?total_(?:ops|params)$"),)},
        is_old=False,
    ),
    Layout(
        "timm",
        "timm or DINO, a vision transformer",
        r"(?:^|\.)patch_embed\.proj\.weight$",
        "another package's keys: monai.networks.load_checkpoint(net, file) translates those of networks like ViT",
    ),
    Layout(
        "MONAI",
        "MONAI 1.2 or newer",
        rf"(?:^|\.)(?:{SPATIAL}\.attn|blocks\.\d+\.attn|attn1)\.(?:to_q|qkv)\.weight$",
        "this layout; MONAI 1.4 saved output projections that were not used (include_fc=False), too",
        is_old=False,
    ),
)
# of these, one network has one: layouts of spatial attention
_RIVALS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:^|\.)(?:input_blocks|output_blocks)\.\d",
        rf"(?:^|\.){SPATIAL}\.(?:query|key|value)\.",
        r"(?:^|\.)blocks\.\d+\.(?:q|k|v|proj_out)\.conv\.",
        rf"(?:^|\.){SPATIAL}\.to_[qkv]\.",
        rf"(?:^|\.){SPATIAL}\.attn\.",
    )
)
_PATTERNS = {layout.name: re.compile(layout.pattern) for layout in LAYOUTS}
# a key may show one of these only where none of the others is shown
_ONLY_ALONE = {"MONAI": "timm"}


def recognize_layouts(keys: Iterable[str]) -> list[Layout]:
    """
    Tell who wrote a checkpoint.

    Args:
        keys: of its state dict.

    Returns:
        every layout that a key gives evidence of, with that key, the most telling first.
    """
    names = [key for key in keys if isinstance(key, str)]
    found: dict[str, Layout] = {}
    for layout in LAYOUTS:
        evidence = next((key for key in names if _PATTERNS[layout.name].search(key)), None)
        if evidence is not None and _ONLY_ALONE.get(layout.name) not in found:
            found[layout.name] = _with_evidence(layout, evidence)
    return list(found.values())


def _with_evidence(layout: Layout, evidence: str) -> Layout:
    values: dict[str, Any] = {**vars(layout), "evidence": evidence}
    return Layout(**values)


def rivals(keys: Iterable[str]) -> list[str]:
    """
    One key for each layout of spatial attention that is there. No two of them can come from the same network.

    Args:
        keys: of a state dict of one network.
    """
    names = list(keys)
    found = [next((key for key in names if pattern.search(key)), None) for pattern in _RIVALS]
    return [key for key in found if key is not None]
