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

import subprocess
import sys
import unittest

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.blocks.attention.derivatives import attention_gradients, differentiable_twice, kernel_serves
from monai.networks.blocks.attention.kernels import fused_attention

torch.set_num_threads(1)
MASK = torch.tensor([[[[1, 1, 0, 1], [0, 1, 1, 1], [1, 0, 0, 0]]]]) > 0


def qkv(needs: tuple[bool, ...] = (True, True, True)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 2, tokens, 8) for tokens in (3, 4, 4)]
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.requires_grad_(need) for tensor, need in zip(found, needs)]


class TestSecondGradients(unittest.TestCase):
    """With the fused kernel on, as dropin/test_derivatives.py has them for blocks."""

    @parameterized.expand([("plain", None, False), ("causal", None, True), ("mask", MASK, False)])
    def test_formula(self, _, mask, causal):
        q, k, v = qkv()
        out = fused_attention(q, k, v, mask, causal, 0.3, 0.0)
        direction = torch.ones_like(out)
        expected = torch.autograd.grad(out, (q, k, v), direction)
        found = attention_gradients(q, k, v, mask, causal, 0.3, direction)
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=0)

    @parameterized.expand([("at once", None), ("in parts", 16)])
    def test_of_the_kernel(self, _, part):
        """Parts run under checkpointing, which gives out what it keeps once only."""
        for needs in ((True, True, True), (False, True, False)):
            given = [tensor for tensor in qkv(needs) if tensor.requires_grad]

            def call(*changed, needs=needs):
                rest = iter(changed)
                inputs = [next(rest) if need else tensor for need, tensor in zip(needs, qkv(needs))]
                return fused_attention(*inputs, MASK, False, 0.3, 0.0, part)

            self.assertTrue(torch.autograd.gradgradcheck(call, given, fast_mode=True))

    def test_through_hooks_of_saved_tensors(self):
        q, k, v = qkv()
        with torch.autograd.graph.save_on_cpu():
            self.assertTrue(
                torch.autograd.gradgradcheck(
                    lambda *inputs: fused_attention(*inputs, None, True, 0.3, 0.0), (q, k, v), fast_mode=True
                )
            )

    def test_an_ordinary_backward_pass_runs_the_kernels_own(self):
        """One pass of the kernel's gradient, no matrix, and nothing kept alive by the hook."""
        q, k, v = qkv()
        out = fused_attention(q, k, v, None, False, 0.3, 0.0)
        with torch.profiler.profile() as profile:
            out.sum().backward()
        names = [event.key for event in profile.key_averages()]
        self.assertTrue(any("flash_attention_for_cpu_backward" in name for name in names))
        self.assertFalse([name for name in names if "softmax" in name or "bmm" in name])

    def test_with_dropout_in_the_kernel_the_remedy_is_named(self):
        """As on a GPU: what was dropped cannot be known."""
        q, k, v = qkv()
        out = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
        out = differentiable_twice(out, q, k, v, None, False, 0.3, 0.1)
        (gradient,) = torch.autograd.grad(out.sum(), q, create_graph=True)
        with self.assertRaisesRegex(RuntimeError, r"second derivative.*sdpa_kernel\(.*MATH\)"):
            gradient.sum().backward()


class TestWhichKernel(unittest.TestCase):
    def test_outside_of_any_transform(self):
        self.assertTrue(kernel_serves())
        x = torch.ones(2)
        seen = []
        torch.func.grad(lambda value: (seen.append(kernel_serves()), value.sum())[1])(x)
        torch.func.jvp(lambda value: (seen.append(kernel_serves()), value)[1], (x,), (x,))
        torch.func.vmap(lambda value: (seen.append(kernel_serves()), value)[1])(x)
        with torch.autograd.forward_ad.dual_level():
            seen.append(kernel_serves())
        self.assertEqual(seen, [False] * 4)
        self.assertTrue(kernel_serves())

    @parameterized.expand([("jvp",), ("grad",), ("hessian",)])
    def test_compiled(self, transform):
        torch._dynamo.reset()
        net, x = SABlock(8, 2).eval(), torch.randn(1, 3, 8)

        def call(value):
            if transform == "jvp":
                return torch.func.jvp(net, (value,), (torch.ones_like(value),))[1]
            return getattr(torch.func, transform)(lambda inner: net(inner).square().sum())(value)

        found = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(found, call(x), atol=1e-5, rtol=1e-5)

    def test_compiled_with_watched_and_replaced_parts(self):
        torch._dynamo.reset()
        x = torch.randn(2, 6, 8)
        for kwargs in ({}, {"rel_pos_embedding": "decomposed", "input_size": (2, 3)}):
            net = SABlock(8, 2, **kwargs).eval()
            net.drop_weights.register_forward_hook(lambda module, args, out: out * 2)
            replaced = SABlock(8, 2, **kwargs).eval()
            replaced.drop_weights = nn.Hardtanh(0.0, 0.2)
            for block in (net, replaced):
                plain = SABlock(8, 2, **kwargs)
                plain.load_state_dict(block.state_dict())
                found = torch.compile(block, fullgraph=True, backend="aot_eager")(x).detach()
                torch.testing.assert_close(found, block(x).detach(), atol=1e-5, rtol=1e-5)
                self.assertGreater(float((found - plain(x).detach()).abs().max()), 1e-3)

    def test_scripts_with_watched_and_replaced_parts(self):
        x = torch.randn(2, 6, 8)
        for cls in (SABlock, CrossAttentionBlock):
            block = cls(8, 2, rel_pos_embedding="decomposed", input_size=(2, 3)).eval()
            block.drop_weights = nn.Hardtanh(0.0, 0.2)
            torch.testing.assert_close(torch.jit.script(block)(x), block(x), atol=1e-5, rtol=1e-5)
            block.rel_positional_embedding.register_forward_hook(halve)
            torch.testing.assert_close(torch.jit.script(block)(x), block(x), atol=1e-5, rtol=1e-5)


def halve(module, args: tuple[torch.Tensor, torch.Tensor, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    return out / 2


COUNTED_LATE = """
import sys
import torch
from monai.networks.blocks import SABlock

print("torch.utils.flop_counter" in sys.modules)

block, x = SABlock(16, 2), torch.randn(2, 6, 16)
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    block(x)
print(counter.get_total_flops())
"""
GIVEN_BEFORE = """
import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def formula(*args, **kwargs):
    return 10**9

from monai.networks.blocks import SABlock
with FlopCounterMode(display=False) as counter:
    SABlock(16, 2)(torch.randn(2, 6, 16))
print(counter.get_total_flops() >= 10**9)
"""


class TestCounting(unittest.TestCase):
    def printed(self, code: str) -> str:
        result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout.strip()

    def test_backward_as_torch_counts_it(self):
        """Five products of matrices, where the release's path has four: the kernel computes the logits again."""
        from torch.utils.flop_counter import FlopCounterMode

        net, x = SABlock(16, 2, include_fc=False), torch.randn(2, 6, 16, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            net(x).sum().backward()
        linear, product = 2 * 2 * 6 * 16 * 48, 2 * 2 * 6 * 6 * 16
        self.assertEqual(counter.get_total_flops(), 3 * linear + (2 + 5) * product)

    def test_counter_that_was_imported_late(self):
        """Importing the blocks does not import it."""
        self.assertEqual(self.printed(COUNTED_LATE), f"False\n{2 * 2 * 6 * (4 * 16 * 16 + 2 * 6 * 16)}")

    def test_a_formula_that_is_there_stays(self):
        self.assertEqual(self.printed(GIVEN_BEFORE), "True")


if __name__ == "__main__":
    unittest.main()
