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

import json
import unittest

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks.attention.block import AttentionBlock
from monai.networks.blocks.attention.config import attention_config
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from monai.networks.nets import (
    UNETR,
    AutoencoderKL,
    DecoderOnlyTransformer,
    DiffusionModelUNet,
    SPADEDiffusionModelUNet,
    ViT,
)

torch.set_num_threads(1)
VIT = {"in_channels": 1, "img_size": (16, 8), "patch_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4}
DECODER = {"num_tokens": 7, "max_seq_len": 9, "attn_layers_dim": 24, "attn_layers_depth": 2, "attn_layers_heads": 3}
UNET = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": 1,
    "channels": (8, 16),
    "attention_levels": (False, True),
    "norm_num_groups": 8,
    "num_head_channels": 8,
}
CONDITIONED = {"with_conditioning": True, "cross_attention_dim": 5}
AUTOENCODER = {
    "spatial_dims": 2,
    "channels": (8, 16),
    "num_res_blocks": 1,
    "attention_levels": (False, True),
    "norm_num_groups": 8,
}
PLAIN = {
    "path": "",
    "kind": "self",
    "heads": 4,
    "head_width": 6,
    "projection": True,
    "combined_linear": True,
    "causal": False,
    "rel_pos": None,
    "dropout": 0.0,
    "dtype": None,
}
TEST_CASES_BLOCKS = [
    ("plain", SABlock(24, 4), {}),
    ("options", SABlock(24, 4, 0.1, use_combined_linear=False), {"combined_linear": False, "dropout": 0.1}),
    ("causal", SABlock(24, 4, causal=True, sequence_length=5), {"causal": True}),
    ("rel_pos", SABlock(24, 4, rel_pos_embedding="decomposed", input_size=(2, 2)), {"rel_pos": "decomposed"}),
    ("head_width", SABlock(24, 4, dim_head=3), {"head_width": 3}),
    ("dtype", SABlock(24, 4, attention_dtype=torch.float32), {"dtype": "float32"}),
    ("bare", SABlock(24, 4, use_proj_attn=False), {"projection": False}),
    ("include_fc", SABlock(24, 4, include_fc=False), {"projection": False}),
    ("cross", CrossAttentionBlock(24, 4), {"kind": "cross", "combined_linear": None}),
    (
        "spatial",
        SpatialAttentionBlock(2, 16, 8, norm_num_groups=8),
        {"path": "attn", "heads": 2, "head_width": 8, "combined_linear": False},
    ),
]
SEGMENTER = {**VIT, "out_channels": 2, "img_size": (32, 16), "feature_size": 4, "spatial_dims": 2}
del SEGMENTER["patch_size"]
# a network, how many self and cross attentions it has, and what all of them share
TEST_CASES_NETWORKS = [
    ("vit", ViT(**VIT, num_layers=3, spatial_dims=2), 3, 0, {"heads": 4, "head_width": 6, "projection": True}),
    ("unetr", UNETR(**SEGMENTER, use_proj_attn=False), 12, 0, {"projection": False, "combined_linear": True}),
    ("decoder", DecoderOnlyTransformer(**DECODER), 2, 0, {"causal": True, "heads": 3, "head_width": 8}),
    ("unet", DiffusionModelUNet(**UNET), 4, 0, {"heads": 2, "head_width": 8, "combined_linear": False}),
    ("unet_bare", DiffusionModelUNet(**UNET, **CONDITIONED, use_proj_attn=False), 4, 4, {"projection": False}),
    ("unet_upcast", DiffusionModelUNet(**UNET, **CONDITIONED, upcast_attention=True), 4, 4, {"dtype": "float32"}),
    ("unet_dropout", DiffusionModelUNet(**UNET, **CONDITIONED, dropout_cattn=0.2), 4, 4, {"dropout": 0.2}),
    ("spade_bare", SPADEDiffusionModelUNet(**UNET, label_nc=2, use_proj_attn=False), 4, 0, {"projection": False}),
    ("autoencoder", AutoencoderKL(**AUTOENCODER, include_fc=False), 4, 0, {"projection": False, "heads": 1}),
]


class TestAttentionConfig(unittest.TestCase):
    @parameterized.expand(TEST_CASES_BLOCKS)
    def test_row_of_a_block(self, _, block, expected):
        self.assertEqual(attention_config(block), [{**PLAIN, **expected}])

    @parameterized.expand(TEST_CASES_NETWORKS)
    def test_rows_of_a_network(self, _, net, num_self, num_cross, shared):
        rows = attention_config(net)
        kinds = [row["kind"] for row in rows]
        self.assertEqual((kinds.count("self"), kinds.count("cross"), len(kinds)), (num_self, num_cross, len(rows)))
        for row in rows:
            self.assertEqual({**row, **shared}, row)
            self.assertIsInstance(net.get_submodule(row["path"]), AttentionBlock)
        order = [name for name, _ in net.named_modules()]
        self.assertEqual([row["path"] for row in rows], sorted((row["path"] for row in rows), key=order.index))

    def test_causal_self_attention_beside_cross_attention(self):
        rows = attention_config(DecoderOnlyTransformer(**DECODER, with_cross_attention=True))
        found = [(row["path"], row["kind"], row["causal"], row["combined_linear"]) for row in rows]
        layer = [("attn", "self", True, False), ("cross_attn", "cross", False, None)]
        self.assertEqual(found, [(f"blocks.{i}.{name}", *rest) for i in (0, 1) for name, *rest in layer])

    def test_json_takes_the_rows(self):
        rows = attention_config(DiffusionModelUNet(**UNET, **CONDITIONED, upcast_attention=True))
        self.assertEqual(json.loads(json.dumps(rows)), rows)

    def test_network_without_attention(self):
        self.assertEqual(attention_config(nn.Linear(2, 2)), [])

    def test_subclasses_and_embeddings_of_the_users_own(self):
        class Own(CrossAttentionBlock):
            pass

        block = Own(24, 4)
        block.rel_positional_embedding = nn.Identity()
        (row,) = attention_config(nn.Sequential(block))
        self.assertEqual((row["path"], row["kind"], row["rel_pos"]), ("0", "cross", "Identity"))


if __name__ == "__main__":
    unittest.main()
