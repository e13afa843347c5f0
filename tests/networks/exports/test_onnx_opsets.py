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

"""Script-based ONNX export, run by onnxruntime, at operator sets that know no fused attention and at one that does."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import unittest
import warnings

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import CrossAttentionBlock, SABlock, SpatialAttentionBlock, TransformerBlock
from monai.networks.nets import DecoderOnlyTransformer, DiffusionModelUNet, ViT

torch.set_num_threads(1)
OPSETS = (12, 13, 17)
TOKENS, CONTEXT, IMAGE = torch.randn(2, 12, 24), torch.randn(2, 5, 24), torch.randn(2, 1, 16, 16)
MASK = torch.tensor([[1.0] * 5 + [0.0] * 7, [0.0] * 12])
UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": (8, 16), "num_res_blocks": 1}
UNET |= {"attention_levels": (False, True), "norm_num_groups": 4, "num_head_channels": 4}
CASES = {
    "plain": lambda: (SABlock(24, 4), TOKENS),
    "separate": lambda: (SABlock(24, 4, use_combined_linear=False), TOKENS),
    "flash": lambda: (SABlock(24, 4, use_flash_attention=True), TOKENS),
    "causal": lambda: (SABlock(24, 4, causal=True, sequence_length=4), TOKENS),
    "mask": lambda: (SABlock(24, 4), TOKENS, MASK),
    "mask of bools": lambda: (SABlock(24, 4), TOKENS, MASK > 0),
    "positions": lambda: (SABlock(24, 4, rel_pos_embedding="decomposed", input_size=(3, 4)), TOKENS),
    "cross": lambda: (CrossAttentionBlock(24, 4), TOKENS, CONTEXT),
    "spatial": lambda: (SpatialAttentionBlock(2, 16, 4, norm_num_groups=4), torch.randn(2, 16, 3, 4)),
    "transformer": lambda: (TransformerBlock(24, 32, 4, with_cross_attention=True), TOKENS, CONTEXT),
    "vit": lambda: (ViT(1, 16, 8, 24, 32, 2, 4, classification=True, spatial_dims=2), IMAGE),
    "decoder": lambda: (DecoderOnlyTransformer(7, 9, 24, 2, 4), torch.randint(0, 7, (2, 6))),
    "unet": lambda: (DiffusionModelUNet(**UNET), IMAGE, torch.tensor([3, 7])),
}


@unittest.skipUnless(all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))), "needs onnx and onnxruntime")
class TestOpsets(unittest.TestCase):
    @parameterized.expand(list(CASES.items()))
    def test_equals_the_network(self, _, case):
        import onnxruntime

        torch.manual_seed(0)
        net, *arguments = case()
        for parameter in net.eval().parameters():
            nn.init.normal_(parameter, std=0.2)
        names = [f"input_{number}" for number in range(len(arguments))]
        expected = net(*arguments)
        expected = expected[0] if isinstance(expected, tuple) else expected
        for opset in OPSETS:
            file = io.BytesIO()
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                axes = {name: {0: "batch"} for name in names}
                torch.onnx.export(
                    net,
                    tuple(arguments),
                    file,
                    opset_version=opset,
                    dynamo=False,
                    input_names=names,
                    dynamic_axes=axes,
                )
            session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
            found = session.run(None, {name: value.numpy() for name, value in zip(names, arguments)})[0]
            torch.testing.assert_close(torch.from_numpy(found), expected.detach(), atol=1e-5, rtol=1e-5)


if __name__ == "__main__":
    unittest.main()
