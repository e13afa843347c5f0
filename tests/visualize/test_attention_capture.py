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

import copy
import subprocess
import sys
import unittest
import warnings
from unittest import mock

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.data import MetaTensor
from monai.networks.blocks import SABlock
from monai.networks.nets import AutoencoderKL, DecoderOnlyTransformer
from monai.visualize.attention.capture import capture_attention
from tests.differences import max_difference
from tests.networks.nets.diffusion_cases import normal
from tests.visualize.capture_cases import (
    BLOCKS,
    GRID,
    HALF,
    KL,
    NETWORKS,
    SELF,
    TOKENS,
    WORDS,
    build,
    captured,
    run,
    saving,
    vit,
)

torch.set_num_threads(1)

TOLERANCE = 1e-6


class TestExactness(unittest.TestCase):
    @parameterized.expand([(name, *case) for name, case in NETWORKS.items()])
    def test_every_network_like_saved_matrices(self, _name, cls, kwargs, args, call_kwargs):
        net = build(cls, kwargs)
        explicit = saving(net)
        run(explicit, args, call_kwargs)
        maps = captured(net, args, call_kwargs)
        names = [name for name, module in net.named_modules() if hasattr(module, "att_mat")]
        self.assertEqual(sorted(m.name for m in maps), sorted(names))
        for m in maps:
            saved = explicit.get_submodule(m.name).att_mat
            self.assertLessEqual(max_difference(m.weights, saved), TOLERANCE, m.name)

    @parameterized.expand([(name, *case) for name, case in BLOCKS.items()])
    def test_chosen_queries_of_a_block(self, _name, cls, kwargs, call_kwargs):
        net, x = build(cls, kwargs), normal(2, 12, 24)
        explicit = saving(net)
        run(explicit, (x,), call_kwargs)
        queries = torch.tensor([11, 3, 3, 0])
        for chunk_size in (None, 1, 3):
            (m,) = captured(net, (x,), call_kwargs, queries=queries, chunk_size=chunk_size)
            self.assertLessEqual(max_difference(m.weights, explicit.att_mat[:, :, queries]), TOLERANCE)
        (mean,) = captured(net, (x,), call_kwargs, queries=queries, average_heads=True, chunk_size=2)
        expected = explicit.att_mat[:, :, queries].mean(dim=1, keepdim=True)
        self.assertLessEqual(max_difference(mean.weights, expected), TOLERANCE)

    def test_autocast(self):
        net, x = vit(classification=True), normal(2, 1, 16, 8)
        explicit = saving(net)
        with torch.autocast("cpu", dtype=HALF):
            run(explicit, (x,), {})
            maps = captured(net, (x,), blocks="blocks.0.*", queries=torch.tensor([0, 5]))
        saved = explicit.blocks[0].attn.att_mat[:, :, [0, 5]]
        self.assertLessEqual(max_difference(maps[0].weights, saved), TOLERANCE)

    def test_saving_nets(self):
        net, x = saving(vit()), normal(2, 1, 16, 8)
        for m in captured(net, (x,)):
            self.assertEqual(max_difference(m.weights, net.get_submodule(m.name).att_mat), 0.0)

    def test_rows_are_those_before_dropout(self):
        net, x = build(SABlock, {**SELF, "dropout_rate": 0.5}), normal(2, 12, 24)
        (expected,) = captured(net, (x,))
        (m,) = captured(net.train(), (x,))
        self.assertEqual(max_difference(m.weights, expected.weights), 0.0)

    def test_rows_carry_no_graph(self):
        block = build(SABlock, {**SELF, **GRID})
        with capture_attention(block) as capture:
            block(normal(2, 12, 24))
        self.assertFalse(capture.maps[0].weights.requires_grad)

    def test_a_step_of_training_stays_as_it_is(self):
        """Outputs and gradients, with autocast, dropout and activation checkpointing; no call is recorded twice."""
        net = build(AutoencoderKL, {**KL, "use_checkpoint": True}).train()
        results = []
        for capture in (None, capture_attention(net, queries=torch.tensor([0]))):
            net.zero_grad()
            torch.manual_seed(0)
            with torch.autocast("cpu", dtype=HALF), capture or mock.MagicMock():
                out = net(normal(1, 1, 12, 8))[0]
                out.float().pow(2).sum().backward()
            results.append([out, *[p.grad for p in net.parameters() if p.grad is not None]])
        self.assertEqual(max_difference(*results), 0.0)
        self.assertEqual(len({m.name for m in capture.maps}), len(capture.maps))
        self.assertFalse(any(m.weights.requires_grad for m in capture.maps))


class TestContext(unittest.TestCase):
    def hooks(self, net: nn.Module) -> int:
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        return sum(len(getattr(module, kind)) for module in net.modules() for kind in kinds)

    def test_calls_are_counted_and_the_fused_kernel_stays(self):
        net, x = vit(), normal(1, 1, 16, 8)
        kernel = torch.nn.functional.scaled_dot_product_attention
        with mock.patch("torch.nn.functional.scaled_dot_product_attention", side_effect=kernel) as fused:
            with torch.no_grad(), capture_attention(net) as capture:
                net(x)
                net(x)
        self.assertEqual(fused.call_count, 4)
        names = [(m.name, m.call) for m in capture.maps]
        self.assertEqual(names, [(f"blocks.{i}.attn", call) for call in (0, 1) for i in (0, 1)])

    def test_the_output_stays(self):
        net, x = vit(), normal(1, 1, 16, 8)
        with capture_attention(net), torch.no_grad():
            out = net(x)
        self.assertEqual(max_difference(out, run(net, (x,), {})), 0.0)

    def test_removes_itself(self):
        net, x = vit(), normal(1, 1, 16, 8)
        capture = capture_attention(net, queries=[(0, 0)])
        self.assertEqual(self.hooks(net), 0)
        for _ in range(2):
            with capture:
                self.assertGreater(self.hooks(net), 0)
                with self.assertRaisesRegex(RuntimeError, "already"), capture:
                    pass
                net(x)
            self.assertEqual((self.hooks(net), len(capture.maps)), (0, 2))
        with self.assertRaisesRegex(ValueError, "1 tokens.*8 position embeddings"), capture:
            net(normal(1, 1, 4, 4))
        self.assertEqual(self.hooks(net), 0)

    def test_recovers_within_the_context(self):
        """After a call that failed a method beside ``forward`` is given its own image."""
        net = build(AutoencoderKL, KL)
        with torch.no_grad(), capture_attention(net, blocks="encoder", queries=[(11, 7)]) as capture:
            with self.assertRaises(RuntimeError):
                net(normal(1, 3, 16, 16))
            net.encode(normal(1, 1, 12, 8))
        self.assertEqual({m.image_size for m in capture.maps}, {(12, 8)})

    def test_nested(self):
        net, x = vit(classification=True), normal(1, 1, 16, 8)
        with capture_attention(net) as outer:
            with capture_attention(net, blocks="blocks.1", queries="class") as inner:
                net(x)
            net(x)
        self.assertEqual((len(outer.maps), len(inner.maps)), (4, 1))

    def test_wrapped(self):
        net, x = vit(), normal(2, 1, 16, 8)
        (expected, _) = captured(net, (x,), queries=[(5, 5)])
        wrapped = nn.DataParallel(net)
        (m, _) = captured(wrapped, (x,), queries=[(5, 5)])
        self.assertEqual((m.name, m.image_size), (expected.name, expected.image_size))
        self.assertTrue(torch.equal(m.weights, expected.weights))

    def test_replicas_record(self):
        """What ``DataParallel`` makes on each GPU: a copy with the hooks of the original."""
        block, x = build(SABlock, SELF), normal(2, 12, 24)
        replica = block._replicate_for_data_parallel()
        replica.qkv, replica.out_proj = copy.deepcopy(block.qkv), block.out_proj
        with torch.no_grad():
            replica.qkv.weight.mul_(2)
        with capture_attention(block) as capture:
            replica(x)
        with torch.no_grad():
            block.qkv.weight.mul_(2)
        self.assertTrue(torch.equal(capture.maps[0].weights, captured(block, (x,))[0].weights))

    def test_inference_mode_and_meta_tensors(self):
        net, x = vit(), normal(1, 1, 16, 8)
        expected = captured(net, (x,))
        with torch.inference_mode():
            maps = captured(net, (MetaTensor(x),), queries="all")
        self.assertEqual({type(m.weights) for m in maps}, {torch.Tensor})
        self.assertEqual(max_difference([m.weights for m in maps], [m.weights for m in expected]), 0.0)

    @parameterized.expand(
        [
            ("*", ["encoder.blocks.4", "encoder.blocks.6", "decoder.blocks.2", "decoder.blocks.5"]),
            ("encoder", ["encoder.blocks.4", "encoder.blocks.6"]),
            ("decoder.blocks.*.attn", ["decoder.blocks.2", "decoder.blocks.5"]),
            (["encoder.blocks.6.attn", "decoder*"], ["encoder.blocks.6", "decoder.blocks.2", "decoder.blocks.5"]),
            ("*.blocks.6", ["encoder.blocks.6"]),
        ]
    )
    def test_patterns(self, pattern, expected):
        """On the name of a block or of a module around it."""
        found = capture_attention(build(AutoencoderKL, KL), blocks=pattern).blocks
        self.assertEqual(list(found), [f"{name}.attn" for name in expected])

    def test_nothing_recorded(self):
        net = build(DecoderOnlyTransformer, WORDS)
        decoder = net.cached(2)
        with self.assertWarnsRegex(UserWarning, "recorded nothing.*cached"), capture_attention(net):
            decoder(TOKENS)
        with self.assertRaisesRegex(ValueError, "cannot decode on a cache.*has hooks"), capture_attention(net):
            net.cached(2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with self.assertRaises(KeyError), capture_attention(net):
                raise KeyError


MEASURED = """
import resource, sys
from unittest import mock
import torch
from monai.networks.blocks import SABlock, SpatialAttentionBlock
from monai.visualize.attention.capture import capture_attention

torch.set_num_threads(1)
size, channels, kernel = [int(n) for n in sys.argv[1].split(",")], int(sys.argv[2]), sys.argv[3]
block = SpatialAttentionBlock(len(size), channels, channels // 2, norm_num_groups=2).eval()
image, mask = torch.randn(1, channels, *size), torch.zeros(size, dtype=torch.bool)
mask.flatten()[:64] = True

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

with torch.no_grad():
    capture_context = capture_attention(block, queries=mask)
    if kernel == "idle":
        mock.patch.object(SABlock, "attend", lambda self, x, q, k, v, mask: x).start()
    before = peak()
    with capture_context as capture:
        block(image)
weights = capture.maps[0].weights
assert abs(float(weights.sum()) - 2 * 64) < 0.1, weights.sum()
print(list(weights.shape), peak() - before)
"""


class TestMemory(unittest.TestCase):
    """Memory in a process of its own, in MB; the smaller one runs the fused kernel as well."""

    def growth(self, size: str, channels: int, kernel: str) -> tuple[str, float]:
        command = [sys.executable, "-W", "ignore", "-c", MEASURED, size, str(channels), kernel]
        result = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        shape, _, growth = result.stdout.strip().rpartition(" ")
        return shape, float(growth)

    def test_64_queries_of_110592_tokens(self):
        """The kernel, which needs minutes for so many tokens and no memory of note, stands idle."""
        shape, growth = self.growth("48,48,48", 32, "idle")
        self.assertEqual(shape, "[1, 2, 64, 110592]")
        self.assertLess(growth, 500)  # a whole matrix: 2 x 46,656 MB

    def test_64_queries_beside_the_kernel(self):
        shape, growth = self.growth("128,96", 8, "fused")
        self.assertEqual(shape, "[1, 2, 64, 12288]")
        self.assertLess(growth, 150)  # a whole matrix: 2 x 576 MB


if __name__ == "__main__":
    unittest.main()
