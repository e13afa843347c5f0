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
What attention blocks did wrong up to MONAI 1.6.1, a test a defect.

It uses nothing but the public interface of that release.
"""

from __future__ import annotations

import unittest

import torch
import torch.nn as nn

from monai.networks.blocks import CrossAttentionBlock, SABlock, SpatialAttentionBlock, TransformerBlock

torch.set_num_threads(1)


def tokens(length: int = 8, batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(seed))


def randomized(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net.eval()


class TestDefects(unittest.TestCase):
    def test_01_relative_position_in_3d(self):
        """The logits of a 2 x 2 x 2 grid, one pair of tokens at a time."""
        net = randomized(SABlock(16, 2, rel_pos_embedding="decomposed", input_size=(2, 2, 2), save_attn=True))
        net(tokens())
        q, k, _ = net.qkv(tokens()).reshape(2, 8, 3, 2, 8).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) * 8**-0.5
        grid = torch.cartesian_prod(*[torch.arange(2)] * 3).tolist()
        for i, here in enumerate(grid):
            for j, there in enumerate(grid):
                for axis, table in enumerate(net.rel_positional_embedding.rel_pos_arr):
                    logits[:, :, i, j] += q[:, :, i] @ table[here[axis] - there[axis] + 1]
        torch.testing.assert_close(net.att_mat, logits.softmax(-1), atol=1e-5, rtol=0)

    def test_01_relative_position_in_3d_of_unequal_sides(self):
        net = randomized(SABlock(16, 2, rel_pos_embedding="decomposed", input_size=(2, 1, 4)))
        self.assertEqual(net(tokens()).shape, (2, 8, 16))

    def test_02_dropout_is_off_in_evaluation(self):
        for cls in (SABlock, CrossAttentionBlock):
            net = randomized(cls(16, 2, dropout_rate=0.5, use_flash_attention=True))
            self.assertTrue(torch.equal(net(tokens()), net(tokens())))

    def test_03_flash_takes_a_mask_over_keys(self):
        for length, batch in ((8, 2), (2, 2), (8, 1)):
            fused = randomized(SABlock(16, 2, use_flash_attention=True))
            mask = torch.ones(batch, length)
            mask[:, length // 2 :] = 0
            x = tokens(length, batch)
            torch.testing.assert_close(fused(x, mask)[:, : length // 2], fused(x[:, : length // 2]))

    def test_04_attention_dtype(self):
        net = randomized(SABlock(16, 2, attention_dtype=torch.float32)).half()
        self.assertEqual(net(tokens().half()).dtype, torch.float16)

    def test_05_a_token_that_attends_to_nothing(self):
        net = randomized(SABlock(16, 2))
        mask = torch.ones(2, 8)
        mask[0] = 0
        out = net(tokens(), mask)
        self.assertTrue(bool(out.isfinite().all()))
        out[1].sum().backward()
        self.assertTrue(all(bool(p.grad.isfinite().all()) for p in net.parameters()))

    def test_06_mask_and_causal_are_refused_on_every_path(self):
        net = randomized(SABlock(16, 2, causal=True, sequence_length=8, use_flash_attention=True))
        with self.assertRaises(ValueError):
            net(tokens(), torch.ones(2, 8))

    def test_07_relative_position_of_a_context(self):
        net = randomized(CrossAttentionBlock(16, 2, rel_pos_embedding="decomposed", input_size=(4, 2)))
        self.assertEqual(net(tokens(), tokens(2)).shape, (2, 8, 16))

    def test_07_relative_position_with_a_depth_of_one(self):
        net = randomized(SABlock(16, 2, rel_pos_embedding="decomposed", input_size=(4, 2, 1)))
        self.assertEqual(net(tokens()).shape, (2, 8, 16))

    def test_08_causal_with_more_tokens_than_planned(self):
        net = randomized(SABlock(16, 2, causal=True, sequence_length=4))
        torch.testing.assert_close(net(tokens())[:, :4], net(tokens()[:, :4]))

    def test_12_empty_batch(self):
        net = SpatialAttentionBlock(2, 16, norm_num_groups=4)
        self.assertEqual(net(torch.ones(0, 16, 4, 4)).shape, (0, 16, 4, 4))

    def test_12_empty_batch_with_relative_position(self):
        net = SABlock(16, 2, rel_pos_embedding="decomposed", input_size=(4, 2))
        self.assertEqual(net(tokens()[:0]).shape, (0, 8, 16))

    def test_13_width_of_a_head_frees_the_hidden_size(self):
        self.assertEqual(SABlock(16, 3, dim_head=4)(tokens()).shape, (2, 8, 16))

    def test_13_a_width_that_cannot_fit(self):
        with self.assertRaises(ValueError):
            SABlock(16, 2, dim_head=4, include_fc=False)

    def test_14_matrix_of_the_cross_attention(self):
        net = TransformerBlock(16, 32, 2, with_cross_attention=True, save_attn=True)
        net(tokens(), context=tokens(5))
        self.assertEqual(net.cross_attn.att_mat.shape, (2, 2, 8, 5))

    def test_14_every_parameter_learns(self):
        """That asks for a gradient: DistributedDataParallel waits for each of them."""
        net = TransformerBlock(16, 32, 2)
        net(tokens()).sum().backward()
        self.assertEqual([name for name, p in net.named_parameters() if p.requires_grad and p.grad is None], [])

    def test_causal_mask_is_not_saved(self):
        net = SABlock(16, 2, causal=True, sequence_length=8)
        self.assertIn("causal_mask", dict(net.named_buffers()))
        self.assertNotIn("causal_mask", net.state_dict())

    def test_relative_position_scripts(self):
        net = randomized(SABlock(16, 2, rel_pos_embedding="decomposed", input_size=(4, 2)))
        torch.testing.assert_close(torch.jit.script(net)(tokens()), net(tokens()))

    def test_no_matrix_by_default(self):
        """Nothing of the size of the attention matrix is kept for the backward pass."""
        sizes: list[int] = []
        net = SABlock(16, 2)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            net(tokens(512, 1))
        self.assertLess(max(sizes), 512 * 512)

    def test_needs_torch_alone(self):
        self.assertFalse([m for m in SABlock(16, 2).modules() if type(m).__module__.startswith("einops")])


if __name__ == "__main__":
    unittest.main()
