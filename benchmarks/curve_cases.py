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

"""Cases that differ in their number of tokens alone: for the picture, for large volumes, for a GPU."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.case import Case, Goals, Growth, Input
from benchmarks.target_cases import NETS, SA_256, SABLOCK, SPATIAL, TIMESTEPS, sampling, tokens_of

__all__ = ["CURVES", "GPU", "GROWTHS", "LARGE"]

RELEASE_UP_TO = 8192
"""Beyond so many tokens the release's L x L matrices of 8 heads, some of them at once, take more than 10 GB."""


def sablock(tokens: int) -> Case:
    """Self attention of a number of tokens."""
    return Case(
        f"curve-sablock-{tokens}",
        f"SABlock 256 wide, 8 heads, {tokens} tokens",
        "curves",
        SABLOCK,
        SA_256,
        tokens_of(tokens),
        tokens=tokens,
        release=tokens <= RELEASE_UP_TO,
        curve="sablock",
        slow=tokens > 4096,
    )


def rel_pos(side: int, axes: int = 2) -> Case:
    """Self attention with relative positions on a grid."""
    tokens = side**axes
    return Case(
        f"curve-rel-pos-{axes}d-{tokens}",
        f"SABlock with rel-pos, {' x '.join([str(side)] * axes)} tokens",
        "curves",
        SABLOCK,
        {**SA_256, "rel_pos_embedding": "decomposed", "input_size": (side,) * axes},
        tokens_of(tokens),
        tokens=tokens,
        release=axes == 2 and tokens <= RELEASE_UP_TO,
        curve=f"rel-pos-{axes}d",
        slow=tokens > 4096,
    )


CURVES = (
    *(sablock(2**power) for power in range(6, 15)),
    *(rel_pos(2**power) for power in range(3, 8)),
    *(rel_pos(side, axes=3) for side in (4, 8, 16, 24)),
)


def volume(side: int, channels: int) -> Case:
    """Attention between all positions of a volume, with a single head, in the fork alone."""
    return Case(
        f"large-{side}^3-{channels}",
        f"SpatialAttentionBlock {side}^3, one head of {channels}",
        "large",
        SPATIAL,
        {"spatial_dims": 3, "num_channels": channels},
        {"x": Input((1, channels, side, side, side))},
        tokens=side**3,
        release=False,
        curve=f"volume-{channels}",
    )


def autoencoder(side: int) -> Case:
    """An autoencoder whose middle blocks attend at ``side``^3."""
    return Case(
        f"large-autoencoder-{side}^3",
        f"AutoencoderKL {2 * side}^3, middle blocks at {side}^3",
        "large",
        f"{NETS}.autoencoderkl.AutoencoderKL",
        {
            "spatial_dims": 3,
            "num_res_blocks": 1,
            "channels": (16, 32),
            "attention_levels": (False, False),
            "norm_num_groups": 16,
        },
        {"x": Input((1, 1, 2 * side, 2 * side, 2 * side))},
        method="reconstruct",
        tokens=side**3,
        release=False,
    )


SIDES = (16, 24, 32, 48)
LARGE = (
    *(volume(side, channels) for channels in (64, 512) for side in SIDES),
    *(autoencoder(side) for side in SIDES[:3]),
)


def wide(tokens: int, **changes: Any) -> Case:
    """Self attention of the size that GPUs are made for."""
    arguments: dict[str, Any] = {
        "name": f"gpu-sablock-{tokens}",
        "title": f"SABlock 1024 wide, 16 heads, {tokens} tokens",
        "group": "gpu",
        "target": SABLOCK,
        "options": {"hidden_size": 1024, "num_heads": 16},
        "inputs": tokens_of(tokens, 1024),
        "tokens": tokens,
        "release": tokens <= RELEASE_UP_TO,
        "curve": "gpu-sablock",
    }
    return Case(**{**arguments, **changes})


GPU = (
    *(wide(2**power) for power in range(10, 16)),
    wide(4096, name="gpu-sablock-compiled", title="the same, 4096 tokens, compiled", compiled=True, curve=None),
    wide(
        4096,
        name="gpu-rel-pos",
        title="the same with rel-pos, 64 x 64 tokens",
        options={"hidden_size": 1024, "num_heads": 16, "rel_pos_embedding": "decomposed", "input_size": (64, 64)},
        curve=None,
    ),
    Case(
        "gpu-maisi-unet",
        "DiffusionModelUNetMaisi, latent 64 x 64 x 32",
        "gpu",
        "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi.DiffusionModelUNetMaisi",
        {
            "spatial_dims": 3,
            "in_channels": 4,
            "out_channels": 4,
            "num_channels": (64, 128, 256, 512),
            "attention_levels": (False, False, True, True),
            "num_head_channels": (0, 0, 32, 32),
            "num_res_blocks": 2,
        },
        {"x": Input((1, 4, 64, 64, 32)), "timesteps": TIMESTEPS},
        tokens=math.prod((16, 16, 8)),
        flash=True,
    ),
    Case(
        "gpu-autoencoder",
        "AutoencoderKL 64^3, attention at 16^3",
        "gpu",
        f"{NETS}.autoencoderkl.AutoencoderKL",
        {"spatial_dims": 3, "channels": (32, 64, 128), "attention_levels": (False, False, True)},
        {"x": Input((1, 1, 64, 64, 64))},
        method="reconstruct",
        tokens=4096,
        flash=True,
    ),
    sampling(
        511,
        name="gpu-decode",
        title="DecoderOnlyTransformer, 511 tokens sampled",
        group="gpu",
        goals=Goals(),
        curve=None,
    ),
)

GROWTHS = (
    Growth(
        "time of sampling, per doubling of its length",
        ("decode-255", "decode-511", "decode-1023"),
        "seconds",
        at_most=2.6,
        per_doubling=True,
    ),
    *(
        Growth(title, tuple(case.name for case in CURVES if case.curve == curve and case.tokens >= 500), "bytes", 1.15)
        for title, curve in (
            ("memory of SABlock", "sablock"),
            ("memory with rel-pos in 2-D", "rel-pos-2d"),
            ("memory with rel-pos in 3-D", "rel-pos-3d"),
        )
    ),
    *(
        Growth(
            f"{what} of one head of {channels}, 16^3 to {side}^3",
            tuple(f"large-{s}^3-{channels}" for s in SIDES if s <= side),
            cost,
            bound,
        )
        for channels in (64, 512)
        for what, cost, bound in (("time", "seconds", 2.15), ("memory", "bytes", 1.15))
        for side in (32, 48)
    ),
    Growth("memory of AutoencoderKL", tuple(f"large-autoencoder-{s}^3" for s in SIDES[:3]), "bytes", 1.15),
)
