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

"""Derivatives of any mode and order through attention, which the release's default path has."""

from __future__ import annotations

import unittest
import warnings

import torch
import torch.nn as nn
from parameterized import parameterized
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

from monai.networks.blocks import CrossAttentionBlock, SABlock, SpatialAttentionBlock
from monai.networks.nets import DecoderOnlyTransformer, ViT

torch.set_num_threads(1)
WIDTH, HEADS, TOKENS = 8, 2, 6
BLOCKS = [
    ("plain", SABlock, {}),
    ("separate", SABlock, {"use_combined_linear": False}),
    ("causal", SABlock, {"causal": True, "sequence_length": TOKENS}),
    ("positions", SABlock, {"rel_pos_embedding": "decomposed", "input_size": (2, 3)}),
    ("matrix", SABlock, {"save_attn": True}),
    ("cross", CrossAttentionBlock, {}),
]


def block(cls: type, kwargs: dict) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = cls(WIDTH, HEADS, **kwargs).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return net.eval()


def tokens(seed: int = 1, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(function, x: torch.Tensor, direction: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Derivative of a function along a direction, by finite differences."""
    return (function(x + step * direction) - function(x - step * direction)) / (2 * step)


def scalar(net: nn.Module):
    return lambda x: net(x).square().sum()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


class TestForwardMode(unittest.TestCase):
    @parameterized.expand(BLOCKS)
    def test_along_a_direction(self, _, cls, kwargs):
        net, x, direction = block(cls, kwargs), tokens(), tokens(2)
        expected = slope(net, x, direction)
        close(jvp(net, (x,), (direction,))[1].detach(), expected.detach())
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(net(forward_ad.make_dual(x, direction)))
            close(found.primal, net(x))
            close(found.tangent.detach(), expected.detach())

    @parameterized.expand(BLOCKS)
    def test_jacobians(self, _, cls, kwargs):
        net, x = block(cls, kwargs), tokens()
        direction = tokens(2)
        for jacobian in (jacfwd(net)(x), jacrev(net)(x)):
            found = torch.einsum("bncxyz,xyz->bnc", jacobian, direction)
            close(found.detach(), slope(net, x, direction).detach())

    def test_of_a_context_alone(self):
        net, x, context, direction = block(CrossAttentionBlock, {}), tokens(), tokens(3), tokens(2)
        expected = slope(lambda value: net(x, value), context, direction)
        close(jvp(lambda value: net(x, value), (context,), (direction,))[1].detach(), expected.detach())
        with forward_ad.dual_level():
            found = net(x, forward_ad.make_dual(context, direction))
            close(forward_ad.unpack_dual(found).tangent.detach(), expected.detach())

    def test_of_weights(self):
        net, x = block(SABlock, {}), tokens()
        weights = {key: value.detach() for key, value in net.named_parameters()}
        directions = {key: torch.ones_like(value) for key, value in weights.items()}

        def moved(step: float) -> torch.Tensor:
            return functional_call(net, {key: value + step * directions[key] for key, value in weights.items()}, (x,))

        found = jvp(lambda values: functional_call(net, values, (x,)), (weights,), (directions,))[1]
        close(found, (moved(1e-5) - moved(-1e-5)) / 2e-5)

    def test_masked(self):
        net, direction = block(SABlock, {}), tokens(2)
        mask = torch.tensor([[1, 1, 0, 1, 0, 1]])
        found = jvp(lambda x: net(x, attn_mask=mask), (tokens(),), (direction,))[1]
        close(found.detach(), slope(lambda x: net(x, attn_mask=mask), tokens(), direction).detach())

    def test_with_dropout(self):
        net, direction = block(SABlock, {"dropout_rate": 0.4}).train(), tokens(2)

        def seeded(x):
            torch.manual_seed(3)
            return net(x)

        close(jvp(seeded, (tokens(),), (direction,))[1].detach(), slope(seeded, tokens(), direction).detach())

    def test_in_networks(self):
        image, words = torch.randn(1, 1, 16, 16), torch.tensor([[1, 2, 3]])
        vit = ViT(1, (16, 16), (8, 8), hidden_size=8, mlp_dim=16, num_layers=2, num_heads=2, spatial_dims=2).double()
        found = jvp(lambda x: vit(x)[0], (image.double(),), (torch.ones_like(image).double(),))[1]
        close(found.detach(), slope(lambda x: vit(x)[0], image.double(), torch.ones_like(image)).detach())
        net = DecoderOnlyTransformer(7, 9, 8, 2, 2)
        weight = net.to_logits.weight.detach()
        call = lambda value: functional_call(net, {"to_logits.weight": value}, (words,))  # noqa: E731
        self.assertEqual(jvp(call, (weight,), (weight,))[1].shape, (1, 3, 7))
        spatial = SpatialAttentionBlock(2, 8, norm_num_groups=4)
        x = torch.randn(1, 8, 3, 3)
        self.assertEqual(jvp(spatial, (x,), (x,))[1].shape, x.shape)


class TestNested(unittest.TestCase):
    def test_hessian(self):
        net, x, direction = block(SABlock, {}), tokens()[:, :3], tokens(2)[:, :3]
        expected = slope(grad(scalar(net)), x, direction)
        for found in (hessian(scalar(net))(x), jacrev(jacrev(scalar(net)))(x), jacfwd(jacfwd(scalar(net)))(x)):
            close(torch.einsum("abcxyz,xyz->abc", found, direction).detach(), expected.detach())

    def test_gradient_of_a_gradient(self):
        net, x, direction = block(SABlock, {}), tokens(), tokens(2)
        found = grad(lambda value: (grad(scalar(net))(value) * direction).sum())(x)
        expected = slope(grad(scalar(net)), x, direction)
        close(found.detach(), expected.detach())
        close(jvp(grad(scalar(net)), (x,), (direction,))[1].detach(), expected.detach())
        close(grad(lambda value: jvp(scalar(net), (value,), (direction,))[1])(x).detach(), expected.detach())
        close(vjp(grad(scalar(net)), x)[1](direction)[0].detach(), expected.detach())

    def test_over_a_batch(self):
        net = block(SABlock, {})
        batch = torch.stack([tokens(seed) for seed in range(3)])
        close(vmap(net)(batch).detach(), torch.stack([net(x) for x in batch]).detach())
        close(vmap(grad(scalar(net)))(batch), torch.stack([grad(scalar(net))(x) for x in batch]))
        mask = torch.tensor([[[1.0, 1, 0, 1, 0, 1]], [[1, 0, 0, 0, 0, 1]], [[1, 1, 1, 1, 1, 1]]])
        found = vmap(lambda x, m: net(x, attn_mask=m))(batch, mask)
        close(found.detach(), torch.stack([net(x, attn_mask=m) for x, m in zip(batch, mask)]).detach())

    def test_over_networks(self):
        nets = [block(SABlock, {}) for _ in range(2)]
        with torch.no_grad():
            nets[1].qkv.weight.mul_(2)
        parameters, buffers = stack_module_state(nets)
        x = tokens()
        found = vmap(lambda p, b: functional_call(nets[0], (p, b), (x,)))(parameters, buffers)
        close(found.detach(), torch.stack([net(x) for net in nets]).detach())


class TestSecondGradients(unittest.TestCase):
    """A gradient that is itself differentiated, as by a gradient penalty."""

    @parameterized.expand(BLOCKS)
    def test_penalty(self, _, cls, kwargs):
        net, x = block(cls, kwargs), tokens(batch=2)

        def penalty(value: torch.Tensor) -> torch.Tensor:
            value = value.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(scalar(net)(value), value, create_graph=True)
            return gradient.square().sum()

        penalty(x).backward()
        for name, parameter in net.named_parameters():
            place = tuple(0 for _ in parameter.shape)
            with torch.no_grad():
                parameter[place] += 1e-5
                more = penalty_of(penalty, x)
                parameter[place] -= 2e-5
                less = penalty_of(penalty, x)
                parameter[place] += 1e-5
            found = 0.0 if parameter.grad is None else float(parameter.grad[place])
            self.assertAlmostEqual(found, (more - less) / 2e-5, delta=1e-4 * max(1.0, abs(found)), msg=name)

    @parameterized.expand(BLOCKS)
    def test_checks_of_torch(self, _, cls, kwargs):
        net = block(cls, kwargs)
        x = tokens().requires_grad_()
        self.assertTrue(torch.autograd.gradgradcheck(net, (x,), fast_mode=True))
        self.assertTrue(torch.autograd.gradcheck(net, (x,), fast_mode=True, check_forward_ad=True))

    def test_masked(self):
        net, x = block(SABlock, {}), tokens().requires_grad_()
        for mask in (torch.tensor([[1, 1, 0, 1, 0, 1]]), torch.tensor([[True, False, False, True, True, True]])):
            self.assertTrue(
                torch.autograd.gradgradcheck(lambda v, mask=mask: net(v, attn_mask=mask), (x,), fast_mode=True)
            )

    def test_with_dropout(self):
        net, x = block(SABlock, {"dropout_rate": 0.4}).train(), tokens().requires_grad_()

        def seeded(value):
            torch.manual_seed(3)
            return net(value)

        self.assertTrue(torch.autograd.gradgradcheck(seeded, (x,), fast_mode=True))

    def test_context_and_queries(self):
        net = block(CrossAttentionBlock, {})
        for needs in ((True, True), (True, False), (False, True)):
            x, context = (tokens(seed).requires_grad_(need) for seed, need in enumerate(needs))
            self.assertTrue(torch.autograd.gradgradcheck(net, (x, context), fast_mode=True))

    def test_functions_of_torch(self):
        net, x, direction = block(SABlock, {}), tokens(), tokens(2)
        expected = slope(grad(scalar(net)), x, direction).detach()
        close(torch.autograd.functional.hvp(scalar(net), x, direction)[1], expected)
        close(torch.autograd.functional.vhp(scalar(net), x, direction)[1], expected)
        close(torch.autograd.functional.jvp(net, x, direction)[1], slope(net, x, direction).detach())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for vectorize in (False, True):
                found = torch.autograd.functional.hessian(scalar(net), x, vectorize=vectorize)
                close(torch.einsum("abcxyz,xyz->abc", found, direction), expected)
                found = torch.autograd.functional.jacobian(net, x, vectorize=vectorize)
                close(torch.einsum("abcxyz,xyz->abc", found, direction), slope(net, x, direction).detach())

    def test_third_order(self):
        net, x = block(SABlock, {}), tokens()[:, :2].requires_grad_()

        def power_of_gradient(function):
            def power(value):
                return torch.autograd.grad(function(value), value, create_graph=True)[0].square().sum()

            return power

        second = power_of_gradient(power_of_gradient(scalar(net)))
        (found,) = torch.autograd.grad(second(x), x)
        direction = torch.ones_like(x)
        step = 1e-5 * direction
        sides = [float(second((x + sign * step).detach().requires_grad_()).detach()) for sign in (1, -1)]
        self.assertAlmostEqual(float(found.sum()) / ((sides[0] - sides[1]) / 2e-5), 1.0, places=4)

    def test_recomputed(self):
        """Under activation checkpointing, too."""
        from torch.utils.checkpoint import checkpoint

        net, x = block(SABlock, {}), tokens().requires_grad_()
        results = []
        for call in (net, lambda value: checkpoint(net, value, use_reentrant=False)):
            (gradient,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
            net.zero_grad()
            gradient.square().sum().backward()
            results.append([parameter.grad.clone() for parameter in net.parameters()])
        for first, second in zip(*results):
            close(second, first)


def penalty_of(penalty, x: torch.Tensor) -> float:
    with torch.enable_grad():
        return float(penalty(x))


if __name__ == "__main__":
    unittest.main()
