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

import unittest

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import SABlock
from monai.networks.nets import MaskedAutoEncoderViT
from tests.differences import max_difference
from tests.networks.nets.test_vit_contract import with_stale_keys

torch.set_num_threads(1)

SIZES = {
    "in_channels": 2,
    "img_size": (16, 24),
    "patch_size": 4,
    "hidden_size": 24,
    "mlp_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_hidden_size": 12,
    "decoder_mlp_dim": 16,
    "decoder_num_layers": 2,
    "decoder_num_heads": 2,
    "spatial_dims": 2,
}

ILL_ARGUMENTS = [
    ("dropout above one", {"dropout_rate": 5.0}, "5.0"),
    ("everything masked", {"masking_ratio": 1.0}, "1.0"),
    ("nothing masked", {"masking_ratio": 0.0}, "0.0"),
    ("ratio below zero", {"masking_ratio": -0.5}, "-0.5"),
    ("width not divisible", {"num_heads": 7}, "24.*7"),
    ("decoder width not divisible", {"decoder_num_heads": 5}, "decoder_hidden_size 12.*5"),
    ("a rest", {"img_size": (16, 22)}, "22"),
    ("patch above image", {"patch_size": 48}, "48"),
    ("unknown projection", {"proj_type": "mlp"}, "mlp"),
    ("unknown position", {"pos_embed_type": "rotary"}, "rotary"),
    ("unknown decoder position", {"decoder_pos_embed_type": "fourier"}, "fourier"),
    ("flash and matrix", {"use_flash_attention": True, "save_attn": True}, "save_attn"),
]


def network(**kwargs) -> MaskedAutoEncoderViT:
    torch.manual_seed(0)
    return MaskedAutoEncoderViT(**{**SIZES, **kwargs}).eval()


def image_for(net: MaskedAutoEncoderViT, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 2, *net.img_size, generator=torch.Generator().manual_seed(1))


def seeded(net: nn.Module, *arguments, seed: int = 3):
    torch.manual_seed(seed)
    return net(*arguments)


class TestMaskedAutoEncoderViT(unittest.TestCase):
    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, part):
        with self.assertRaisesRegex(ValueError, part):
            MaskedAutoEncoderViT(**{**SIZES, **kwargs})

    @parameterized.expand([(None, 18), (0.5, 12), (0.25, 6), (0.9, 22), (0.0, 0)])
    def test_masking_ratio_of_a_call(self, ratio, masked):
        net = network()
        patches, mask = net(image_for(net), ratio)
        self.assertEqual(patches.shape, (2, 24, 32))
        self.assertEqual((mask.shape, mask.dtype), ((2, 24), torch.int32))
        self.assertEqual(mask.sum(1).tolist(), [masked, masked])
        self.assertLessEqual(set(mask.unique().tolist()), {0, 1})

    @parameterized.expand([(0.99,), (1.0,), (1.5,), (-0.25,)])
    def test_masking_ratio_that_is_refused(self, ratio):
        net = network()
        with self.assertRaisesRegex(ValueError, f"24 patches, got {ratio}"):
            net(image_for(net), masking_ratio=ratio)
        with self.assertRaisesRegex(torch.jit.Error, "masking_ratio"):
            torch.jit.script(net)(image_for(net), masking_ratio=ratio)

    def test_masked_patches_are_not_seen(self):
        net = network()
        x = image_for(net)
        patches, mask = seeded(net, x)
        changed = x.clone()
        hidden = mask.reshape(2, 1, 4, 6).repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(x) == 1
        changed[hidden] = 100.0
        self.assertEqual(max_difference(seeded(net, changed)[0], patches), 0.0)
        changed[~hidden] += 1.0
        self.assertGreater(max_difference(seeded(net, changed)[0], patches), 0.01)

    def test_masks_differ_within_a_batch_and_between_calls(self):
        net = network()
        first, second = seeded(net, image_for(net))[1], net(image_for(net))[1]
        self.assertFalse(torch.equal(first, second))
        self.assertFalse(torch.equal(first[0], first[1]))

    @parameterized.expand([("sincos", False), ("learnable", True), ("none", True)])
    def test_which_positions_learn(self, position, learns):
        net = network(decoder_pos_embed_type=position, pos_embed_type=position)
        self.assertEqual(net.decoder_pos_embedding.requires_grad, learns)
        self.assertEqual(net.patch_embedding.position_embeddings.requires_grad, learns)

    def test_image_that_does_not_fit(self):
        for shape in ((1, 2, 16, 20), (1, 2, 4, 4)):
            with self.assertRaisesRegex(ValueError, "img_size"):
                network()(torch.ones(shape))

    @parameterized.expand([(torch.bfloat16,), (torch.float16,)])
    def test_autocast(self, dtype):
        net = network()
        x = image_for(net)
        with torch.autocast("cpu", dtype):
            patches, mask = seeded(net, x)
            patches.float().pow(2).sum().backward()
        self.assertEqual(patches.dtype, dtype)
        expected, expected_mask = seeded(net, x)
        self.assertTrue(torch.equal(mask, expected_mask))
        self.assertLess(max_difference(patches.float(), expected), 0.1 * float(expected.abs().max()))
        learning = [p for p in net.parameters() if p.requires_grad]
        self.assertTrue(all(bool(p.grad.isfinite().all()) and p.grad.dtype == torch.float32 for p in learning))

    @parameterized.expand([(torch.bfloat16,), (torch.float16,), (torch.float64,)])
    def test_types(self, dtype):
        net = network().to(dtype)
        self.assertEqual(net(image_for(net).to(dtype))[0].dtype, dtype)

    def test_options_reach_encoder_and_decoder(self):
        net = network(use_combined_linear=False, use_flash_attention=True, use_proj_attn=False)
        blocks = [module for module in net.modules() if isinstance(module, SABlock)]
        self.assertEqual([block.hidden_input_size for block in blocks], [24, 24, 12, 12])
        for block in blocks:
            self.assertTrue(block.use_flash_attention)
            self.assertIsInstance(block.out_proj, nn.Identity)
            self.assertIsInstance(block.to_q, nn.Linear)

    @parameterized.expand([("load_old_state_dict",), ("load_state_dict",)])
    def test_older_checkpoint(self, method):
        source, net = network(), network()
        state = with_stale_keys(source)
        self.assertIn("decoder_blocks.1.cross_attn.out_proj.weight", state)
        keys = list(state)
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        getattr(net, method)(state)
        self.assertEqual(list(state), keys)
        self.assertEqual(max_difference(seeded(net, image_for(net)), seeded(source, image_for(net))), 0.0)

    def test_every_parameter_learns(self):
        net = network(decoder_pos_embed_type="learnable", pos_embed_type="learnable")
        net(image_for(net))[0].sum().backward()
        self.assertEqual([name for name, p in net.named_parameters() if p.requires_grad and p.grad is None], [])

    def test_empty_batch(self):
        net = network()
        patches, mask = net(image_for(net, 0))
        self.assertEqual((patches.shape, mask.shape), ((0, 24, 32), (0, 24)))


if __name__ == "__main__":
    unittest.main()
