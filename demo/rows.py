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

"""The rows of the demo's table: a row is one entry of ``ROWS``, its work on the scan one function of ``work.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn

from demo import work
from demo.checkpoint import as_in_monai
from demo.train_autoencoder import OPTIONS as GENERATIVE_MODELS
from demo.train_vit import OPTIONS as VIT_2D
from demo.volume import Scan
from demo.work import Outcome, Setting

SLICE = VIT_2D["img_size"]
VIT_3D: dict[str, Any] = {
    "in_channels": 1,
    "img_size": (48, 48, 24),
    "patch_size": (4, 4, 4),
    "hidden_size": 96,
    "mlp_dim": 192,
    "num_layers": 3,
    "num_heads": 6,
}
INFLATED: dict[str, Any] = {**VIT_2D, "spatial_dims": 3, "img_size": (*SLICE, 24), "patch_size": (8, 8, 8)}
AUTOENCODER: dict[str, Any] = {
    "in_channels": 1,
    "img_size": SLICE,
    "patch_size": (4, 4),
    "hidden_size": 48,
    "mlp_dim": 96,
    "num_layers": 2,
    "num_heads": 4,
    "spatial_dims": 2,
}
UNETR: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 2,
    "img_size": SLICE,
    "feature_size": 8,
    "hidden_size": 48,
    "mlp_dim": 96,
    "num_heads": 4,
    "spatial_dims": 2,
}
DECODER: dict[str, Any] = {
    "num_tokens": work.LEVELS + 1,
    "max_seq_len": work.SIDE**2,
    "attn_layers_dim": 64,
    "attn_layers_depth": 2,
    "attn_layers_heads": 4,
}


AUTOENCODER_KL: dict[str, Any] = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": (1, 1, 1),
    "channels": (16, 16, 32),
    "attention_levels": (False, False, True),
    "latent_channels": 3,
    "norm_num_groups": 8,
}


@dataclass(frozen=True)
class Row:
    """A network and its real piece of work.

    Args:
        key: its name on the command line.
        title: its name in the table.
        network: class in ``monai.networks.nets``.
        options: arguments of the class.
        batch: picks the inputs, at least two samples, from the scan.
        work: trains or loads the network and reports what that gave.
        release_options: arguments of the release's class, where it spells them otherwise.
    """

    key: str
    title: str
    network: str
    options: dict[str, Any]
    batch: Callable[[Scan], torch.Tensor]
    work: Callable[[nn.Module, Setting], Outcome]
    release_options: dict[str, Any] | None = None


ROWS = (
    Row("vit", "ViT, 2-D slices", "ViT", VIT_2D, lambda scan: scan.test_slices, work.load_old_checkpoint),
    Row("vit3d", "ViT, 3-D blocks", "ViT", VIT_3D, lambda scan: scan.blocks, work.fill_in_blocks),
    Row("inflated", "ViT, 2-D weights in 3-D", "ViT", INFLATED, lambda scan: scan.volumes, work.inflate),
    Row("vitautoenc", "ViTAutoEnc, 2-D slices", "ViTAutoEnc", AUTOENCODER, lambda s: s.test_slices, work.reconstruct),
    Row("unetr", "UNETR, 2-D slices", "UNETR", UNETR, lambda scan: scan.test_slices, work.segment),
    Row(
        "decoder",
        "DecoderOnlyTransformer, tokens",
        "DecoderOnlyTransformer",
        {**DECODER, "use_proj_attn": False},
        lambda scan: work.sequences(scan)[scan.held_out],
        work.predict_tokens,
        release_options={**DECODER, "include_fc": False},
    ),
    Row(
        "autoencoderkl",
        "AutoencoderKL, 2-D slices",
        "AutoencoderKL",
        {**AUTOENCODER_KL, "use_proj_attn": False},
        lambda scan: scan.test_slices,
        work.autoencode,
        release_options={**AUTOENCODER_KL, "include_fc": False},
    ),
    Row(
        "generative",
        "AutoencoderKL, pretrained",
        "AutoencoderKL",
        as_in_monai(GENERATIVE_MODELS),
        lambda scan: scan.test_slices,
        work.load_generative_models,
    ),
)
