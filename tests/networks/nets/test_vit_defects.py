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
What the ViT family and the decoder did wrong up to MONAI 1.6.1, a test a defect.

It uses nothing but the public interface of that release.
"""

from __future__ import annotations

import unittest

import torch
import torch.nn as nn

from monai.networks.nets import UNETR, DecoderOnlyTransformer, MaskedAutoEncoderViT, ViT, ViTAutoEnc

torch.set_num_threads(1)
SIZES = {"in_channels": 1, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4, "spatial_dims": 2}
SLICE = {**SIZES, "img_size": (16, 8), "patch_size": 4, "num_layers": 2}
SEGMENTER = {**SIZES, "img_size": (32, 16), "out_channels": 2, "feature_size": 4}
MASKED = {**SLICE, "decoder_hidden_size": 12, "decoder_num_heads": 2, "decoder_num_layers": 1}


def decoder(**kwargs) -> DecoderOnlyTransformer:
    torch.manual_seed(0)
    return DecoderOnlyTransformer(7, 9, 24, 2, 4, **kwargs).eval()


def tokens(length: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 7, (batch, length), generator=torch.Generator().manual_seed(0))


class TestDefects(unittest.TestCase):
    def assert_every_parameter_learns(self, net: nn.Module, *arguments: torch.Tensor) -> None:
        out = net(*arguments)
        (out[0] if isinstance(out, tuple) else out).sum().backward()
        self.assertEqual([name for name, p in net.named_parameters() if p.requires_grad and p.grad is None], [])

    def test_11_masked_autoencoder_under_autocast(self):
        with torch.autocast("cpu", torch.bfloat16):
            patches, _ = MaskedAutoEncoderViT(**MASKED)(torch.ones(2, 1, 16, 8))
        self.assertEqual(patches.dtype, torch.bfloat16)

    def test_14_every_parameter_of_vit_learns(self):
        self.assert_every_parameter_learns(ViT(**SLICE, classification=True), torch.ones(2, 1, 16, 8))

    def test_14_every_parameter_of_vitautoenc_learns(self):
        self.assert_every_parameter_learns(ViTAutoEnc(**SLICE), torch.ones(2, 1, 16, 8))

    def test_14_every_parameter_of_unetr_learns(self):
        self.assert_every_parameter_learns(UNETR(**SEGMENTER), torch.ones(2, 1, 32, 16))

    def test_14_every_parameter_of_the_masked_autoencoder_learns(self):
        self.assert_every_parameter_learns(MaskedAutoEncoderViT(**MASKED), torch.ones(2, 1, 16, 8))

    def test_14_every_parameter_of_the_decoder_learns(self):
        self.assert_every_parameter_learns(decoder(), tokens(9))

    def test_17_image_of_one_patch(self):
        with self.assertRaises(ValueError):
            ViT(**SLICE)(torch.ones(2, 1, 4, 4))

    def test_17_image_laid_out_otherwise(self):
        """Tokens get the positions of others: users do train on it, so that it works, but not without a word."""
        for proj_type in ("conv", "perceptron"):
            with self.assertWarnsRegex(UserWarning, r"grid of \[2, 4\].*\[4, 2\]"):
                ViT(**SLICE, proj_type=proj_type)(torch.ones(2, 1, 8, 16))

    def test_17_unetr(self):
        with self.assertRaises(ValueError):
            UNETR(**SEGMENTER)(torch.ones(2, 1, 16, 16))

    def test_17_masked_autoencoder(self):
        with self.assertRaises(ValueError):
            MaskedAutoEncoderViT(**MASKED)(torch.ones(2, 1, 4, 4))

    def test_masking_ratio_that_leaves_nothing(self):
        with self.assertRaisesRegex(ValueError, "0.99"):
            MaskedAutoEncoderViT(**MASKED)(torch.ones(2, 1, 16, 8), masking_ratio=0.99)

    def test_vitautoenc_scripts(self):
        net, x = ViTAutoEnc(**SLICE).eval(), torch.ones(2, 1, 16, 8)
        torch.testing.assert_close(torch.jit.script(net)(x)[0], net(x)[0])

    def test_sequence_length_of_an_exported_decoder(self):
        net = decoder()
        shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)
        program = torch.export.export(net, (tokens(5),), dynamic_shapes=shapes).module()
        torch.testing.assert_close(program(tokens(8, 3)), net(tokens(8, 3)))

    def test_more_tokens_than_the_decoder_has_positions(self):
        with self.assertRaisesRegex(ValueError, "10.*9"):
            decoder()(tokens(10))

    def test_causal_masks_are_not_saved(self):
        self.assertFalse([key for key in decoder().state_dict() if "causal_mask" in key])

    def test_generative_models_norms(self):
        """Their second norm is the cross attention's, their third the feed-forward network's."""
        net = decoder(with_cross_attention=True)
        state = dict(net.state_dict())
        for number, kind in ((n, k) for n in range(2) for k in ("weight", "bias")):
            state.pop(f"blocks.{number}.norm_cross_attn.{kind}")
            state[f"blocks.{number}.norm2.{kind}"] = torch.full((24,), 2.0)
            state[f"blocks.{number}.norm3.{kind}"] = torch.full((24,), 3.0)
        net.load_old_state_dict(state)
        self.assertTrue(bool((net.blocks[1].norm_cross_attn.weight == 2).all()))
        self.assertTrue(bool((net.blocks[1].norm2.weight == 3).all()))

    def test_the_caller_keeps_his_checkpoint(self):
        net = ViT(**SLICE)
        state = {**net.state_dict(), "blocks.0.cross_attn.to_q.weight": torch.ones(24, 24)}
        keys = list(state)
        net.load_old_state_dict(state)
        self.assertEqual(list(state), keys)

    def test_a_misfit_is_refused_before_any_weight_changes(self):
        net = ViT(**SLICE)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        state = {**{key: value + 1 for key, value in before.items()}, "norm.weight": torch.ones(7)}
        with self.assertRaises(RuntimeError):
            net.load_state_dict(state)
        self.assertTrue(all(torch.equal(value, before[key]) for key, value in net.state_dict().items()))

    def test_needs_torch_alone(self):
        net = ViT(**SLICE, proj_type="perceptron")
        self.assertFalse([m for m in net.modules() if type(m).__module__.startswith("einops")])


if __name__ == "__main__":
    unittest.main()
