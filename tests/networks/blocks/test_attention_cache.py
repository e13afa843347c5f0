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

"""When a block decodes on a cache, which calls none of its layers: only where no layer does anything of its own."""

from __future__ import annotations

import unittest

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import SABlock, TransformerBlock
from monai.networks.blocks.attention.cache import why_not_cached

torch.set_num_threads(1)


def block(cls: type = TransformerBlock, **kwargs) -> TransformerBlock:
    return cls(24, 32, 4, causal=True, sequence_length=16, with_cross_attention=True, **kwargs)


class Flip(nn.Dropout):
    def forward(self, input):
        return super().forward(input).flip(-1)


class OwnForward(TransformerBlock):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) * 2


class OwnAttention(SABlock):
    def forward(self, x, attn_mask=None):
        return super().forward(x, attn_mask) * 2


class Named(TransformerBlock):
    """A subclass that computes nothing else."""


class TestWhyNotCached(unittest.TestCase):
    def test_it_is(self):
        for use_proj_attn in (None, False):
            self.assertIsNone(why_not_cached(block(use_proj_attn=use_proj_attn)))
        self.assertIsNone(why_not_cached(block(Named)))
        net = block()
        net.attn.drop_weights = net.mlp.drop1 = nn.Identity()
        self.assertIsNone(why_not_cached(net))

    @parameterized.expand(
        [
            "",
            "attn",
            "attn.to_q",
            "attn.qkv",
            "attn.input_rearrange",
            "attn.drop_weights",
            "mlp.fn",
            "norm1",
            "cross_attn",
        ]
    )
    def test_watched(self, name):
        for watch in (
            lambda module: module.register_forward_hook(lambda *args: None),
            lambda module: module.register_forward_pre_hook(lambda *args: None),
            lambda module: module.register_full_backward_hook(lambda *args: None),
            lambda module: setattr(module, "forward", module.forward),
        ):
            net = block()
            watch(net.get_submodule(name))
            self.assertRegex(why_not_cached(net), f"{name or 'forward'} has|forward of its own")

    def test_what_is_called_may_be_watched(self):
        net = block()
        net.cross_attn.to_k.register_forward_hook(lambda *args: None)
        net.norm_cross_attn.register_forward_hook(lambda *args: None)
        self.assertIsNone(why_not_cached(net))

    def test_classes_with_a_forward_of_their_own(self):
        self.assertRegex(why_not_cached(block(OwnForward)), "OwnForward has a forward of its own")
        net = block()
        net.attn = OwnAttention(24, 4, causal=True, sequence_length=16)
        self.assertRegex(why_not_cached(net), "OwnAttention has a forward of its own")
        net = block()
        net.cross_attn = nn.Bilinear(1, 1, 1)
        self.assertRegex(why_not_cached(net), "Bilinear")

    @parameterized.expand(["attn.drop_weights", "attn.drop_output", "mlp.drop1", "mlp.drop2"])
    def test_a_dropout_that_does_something_in_evaluation(self, name):
        net = block()
        owner, _, part = name.rpartition(".")
        setattr(net.get_submodule(owner), part, Flip())
        self.assertRegex(why_not_cached(net), f"{name} is Flip")

    def test_a_projection_that_is_switched_off(self):
        net = block()
        net.attn.include_fc = False
        self.assertIsNone(why_not_cached(net))


if __name__ == "__main__":
    unittest.main()
