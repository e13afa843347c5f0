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


from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Layout", "recognize_layouts", "rivals"]

SPATIAL = r"(?:attentions\.\d+|middle_block\.attention|(?:encoder|decoder)\.blocks\.\d+)"
"""Where a network has a :class:`SpatialAttentionBlock`."""


@dataclass(frozen=True)
class Layout:
    """
    A way in which some release named its weights.

    Args:
        name: a short name.
        source: the package and the versions that wrote it.
        evidence: a key of the checkpoint that shows it.
        meaning: what follows for loading.
    """

    name: str
    source: str
    evidence: str
    meaning: str


# name, source, pattern of the key that shows it, meaning; the most telling first
_KNOWN: tuple[tuple[str, str, str, str], ...] = (
    (
        "x-transformers",
        "GenerativeModels before 0.2.0, DecoderOnlyTransformer",
        r"(?:^|\.)attn_layers\.layers\.\d",
        "another architecture, which this package cannot represent: run it with that release",
    ),
    (
        "input_blocks",
        "GenerativeModels before 0.1.0, DiffusionModelUNet",
        r"(?:^|\.)(?:input_blocks|output_blocks)\.\d",
        "q, k and v lie interleaved by heads in one convolution; the output projection was used",
    ),
    (
        "query",
        "GenerativeModels up to 0.1.0, DiffusionModelUNet",
        r"(?:^|\.)query\.weight$",
        "the output projection proj_attn was used",
    ),
    (
        "q.conv",
        "GenerativeModels before 0.2.0, AutoencoderKL",
        r"(?:^|\.)q\.conv\.weight$",
        "q, k, v and the output projection, which was used, are convolutions of size 1",
    ),
    (
        "ff.net",
        "GenerativeModels up to 0.1.0, with conditioning",
        r"(?:^|\.)ff\.net\.\d",
        "the keys do not tell whether attention was scaled: see CheckpointFacts.cross_attention_scaled",
    ),
    (
        "to_q",
        "GenerativeModels 0.2.0 to 0.2.3",
        rf"(?:^|\.){SPATIAL}\.to_q\.weight$",
        "the output projection proj_attn was saved, and never used",
    ),
    (
        "to_out",
        "GenerativeModels, with conditioning",
        r"(?:^|\.)attn[12]\.to_out\.0\.",
        "the output projections of the transformers were used",
    ),
    (
        "norm3",
        "GenerativeModels 0.2.0 to 0.2.3, DecoderOnlyTransformer",
        r"(?:^|\.)blocks\.\d+\.norm3\.weight$",
        "norm2 belongs to the cross attention, norm3 to the feed-forward network",
    ),
    (
        "param_free_norm.N",
        "GenerativeModels, SPADE",
        r"(?:^|\.)param_free_norm\.N\.",
        "the norms lie one layer deeper",
    ),
    (
        "flat VQVAE",
        "GenerativeModels 0.1.0, VQVAE",
        r"^(?:module\.)?(?:encoder|decoder)\.\d+\.",
        "the blocks have no name before their number",
    ),
    (
        "saved mask",
        "MONAI 1.4 to 1.6, or GenerativeModels 0.2",
        r"(?:^|\.)causal_mask$",
        "the causal mask was saved; it follows from the arguments",
    ),
    (
        "cross_attn",
        "MONAI 1.4 or newer, or GenerativeModels 0.2",
        r"(?:^|\.)cross_attn\.to_q\.weight$",
        "MONAI 1.4 and 1.5 saved a cross attention that was not used, too",
    ),
    (
        "norm_cross_attn",
        "MONAI 1.4 to 1.6",
        r"(?:^|\.)norm_cross_attn\.weight$",
        "MONAI saved this norm without a cross attention, too",
    ),
    (
        "MONAI",
        "MONAI 1.2 or newer",
        rf"(?:^|\.)(?:{SPATIAL}\.attn|blocks\.\d+\.attn|attn1)\.(?:to_q|qkv)\.weight$",
        "this layout; MONAI 1.4 saved output projections that were not used (include_fc=False), too",
    ),
)
_PATTERNS = {name: re.compile(pattern) for name, _, pattern, _ in _KNOWN}
# the layouts of spatial attention: one network has one of them
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


def recognize_layouts(keys: Iterable[str]) -> list[Layout]:
    """
    Tell who wrote a checkpoint.

    Args:
        keys: of its state dict.

    Returns:
        every layout of which a key gives evidence, the most telling first.
    """
    names = list(keys)
    found = []
    for name, source, _, meaning in _KNOWN:
        evidence = next((key for key in names if _PATTERNS[name].search(key)), None)
        if evidence is not None:
            found.append(Layout(name, source, evidence, meaning))
    return found


def rivals(keys: Iterable[str]) -> list[str]:
    """
    Keys of which no two can come from one network: one for each layout of spatial attention that is there.

    Args:
        keys: of a state dict of one network.
    """
    names = list(keys)
    found = [next((key for key in names if pattern.search(key)), None) for pattern in _RIVALS]
    return [key for key in found if key is not None]
