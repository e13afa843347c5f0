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

"""``context_mask`` of the conditioned diffusion networks."""

from __future__ import annotations

import inspect
import unittest
from typing import Any

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.blocks import CrossAttentionBlock, SABlock
from monai.networks.nets import ControlNet, DiffusionModelUNet, SPADEDiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionModelEncoder
from tests.differences import energy, max_difference
from tests.networks.nets.diffusion_cases import BASE, CONDITIONED, inputs, randomized
from tests.scripting import assert_scripts

torch.set_num_threads(1)
SIZES = {**BASE, **CONDITIONED}
MAISI = {("num_channels" if key == "channels" else key): value for key, value in SIZES.items()}
EMBEDDING = {"conditioning_embedding_in_channels": 2, "conditioning_embedding_num_channels": (4, 8)}
NETWORKS: list[tuple[Any, dict[str, Any]]] = [
    (DiffusionModelUNet, {**SIZES, "out_channels": 2}),
    (DiffusionModelEncoder, {**SIZES, "out_channels": 2, "input_shape": (8, 8)}),
    (SPADEDiffusionModelUNet, {**SIZES, "out_channels": 2, "label_nc": 3, "spade_intermediate_channels": 8}),
    (DiffusionModelUNetMaisi, {**MAISI, "out_channels": 2}),
    (ControlNet, {**SIZES, **EMBEDDING}),
    (ControlNetMaisi, {**MAISI, **EMBEDDING}),
]
MASK = torch.tensor([[1, 1, 0], [0, 1, 0]])


def built(cls: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    return randomized(cls(**kwargs)), inputs(kwargs)


def sample(values: dict[str, torch.Tensor], number: int, tokens: list[int]) -> dict[str, torch.Tensor]:
    """One sample of a batch, with some tokens of its context."""
    one = {name: value[number : number + 1] for name, value in values.items()}
    return {**one, "context": one["context"][:, tokens]}


def one_of(out: Any, number: int) -> Any:
    if torch.is_tensor(out):
        return out[number : number + 1]
    return type(out)(one_of(part, number) for part in out)


class TestContextMask(unittest.TestCase):
    @parameterized.expand(NETWORKS)
    def test_masked_tokens_are_as_if_cut_off(self, cls, kwargs):
        net, values = built(cls, kwargs)
        for mask in (MASK, MASK.bool(), MASK.float()):
            out = net(**values, context_mask=mask)
            for number, tokens in enumerate(([0, 1], [1])):
                expected = net(**sample(values, number, tokens))
                self.assertLessEqual(max_difference(one_of(out, number), expected), 1e-5)
        self.assertGreater(max_difference(out, net(**values)), 1e-5)

    @parameterized.expand(NETWORKS)
    def test_masked_tokens_get_no_gradient(self, cls, kwargs):
        net, values = built(cls, kwargs)
        values["context"].requires_grad_()
        energy(net(**values, context_mask=MASK)).backward()
        norms = values["context"].grad.norm(dim=-1)
        self.assertTrue(torch.equal(norms > 0, MASK.bool()))

    @parameterized.expand(NETWORKS)
    def test_a_sample_without_tokens(self, cls, kwargs):
        """It gets no NaN, and leaves the other one as it is."""
        net, values = built(cls, kwargs)
        out = net(**values, context_mask=torch.tensor([[0, 0, 0], [1, 1, 1]]))
        self.assertLessEqual(max_difference(one_of(out, 1), one_of(net(**values), 1)), 1e-5)
        energy(out).backward()
        self.assertTrue(all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None))
        self.assertTrue(bool(energy(out).isfinite()))

    @parameterized.expand(NETWORKS)
    def test_one_mask_for_the_whole_batch(self, cls, kwargs):
        net, values = built(cls, kwargs)
        whole = net(**values, context_mask=torch.tensor([[1, 0, 1]]))
        each = net(**values, context_mask=torch.tensor([[1, 0, 1], [1, 0, 1]]))
        self.assertEqual(max_difference(whole, each), 0.0)

    @parameterized.expand(NETWORKS)
    def test_it_reaches_cross_attention_alone(self, cls, kwargs):
        net, values = built(cls, kwargs)
        masks: dict[type, list] = {SABlock: [], CrossAttentionBlock: []}
        for block in net.modules():
            if isinstance(block, (SABlock, CrossAttentionBlock)):
                block.register_forward_pre_hook(
                    lambda block, args, kwargs: masks[type(block)].append(kwargs.get("attn_mask")), with_kwargs=True
                )
        net(**values, context_mask=MASK)
        self.assertTrue(masks[SABlock] and all(mask is None for mask in masks[SABlock]))
        self.assertTrue(masks[CrossAttentionBlock] and all(mask is MASK for mask in masks[CrossAttentionBlock]))

    @parameterized.expand(NETWORKS)
    def test_scripts(self, cls, kwargs):
        net, values = built(cls, kwargs)
        order = list(inspect.signature(cls.forward).parameters)[1:]
        self.assertEqual(order[-1], "context_mask")
        values |= {"conditioning_scale": 1.0} if "conditioning_scale" in order else {}
        without = tuple(values.get(name) for name in order)
        assert_scripts(net, (*without[:-1], MASK), without)

    @parameterized.expand([NETWORKS[0], NETWORKS[3], NETWORKS[5]])
    def test_compiles_and_exports(self, cls, kwargs):
        net, values = built(cls, kwargs)
        values["context_mask"] = MASK
        with torch.no_grad():
            expected = net(**values)
            compiled = torch.compile(net, fullgraph=True, backend="eager")(**values)
            exported = torch.export.export(net, (), values).module()(**values)
        self.assertLessEqual(max_difference(list(compiled), list(expected)), 1e-5)
        self.assertLessEqual(max_difference(list(exported), list(expected)), 1e-5)

    @parameterized.expand(NETWORKS)
    def test_ill_masks(self, cls, kwargs):
        net, values = built(cls, kwargs)
        with self.assertRaisesRegex(ValueError, r"\[2, 4\]"):
            net(**values, context_mask=torch.ones(2, 4))
        context = values.pop("context")
        with self.assertRaisesRegex(ValueError, "context_mask.*without the context"):
            net(**values, context_mask=MASK)
        plain = {key: value for key, value in kwargs.items() if key not in CONDITIONED}
        with self.assertRaisesRegex(ValueError, "context_mask.*with_conditioning=True"):
            cls(**plain)(**values, context_mask=MASK)
        with self.assertRaisesRegex(ValueError, "context was given.*with_conditioning=True"):
            cls(**plain)(**values, context=context, context_mask=MASK)


class TestNoContext(unittest.TestCase):
    @parameterized.expand(NETWORKS)
    def test_a_network_that_needs_one_says_so(self, cls, kwargs):
        net, values = built(cls, kwargs)
        del values["context"]
        with self.assertRaisesRegex(ValueError, r"context.*\(B, K, 6\).*with_conditioning=True.*16 channels"):
            net(**values)

    def test_one_whose_tokens_have_its_width_attends_to_these(self):
        kwargs = {**NETWORKS[0][1], "cross_attention_dim": 16}
        net, values = built(DiffusionModelUNet, kwargs)
        del values["context"]
        with torch.no_grad():
            out = net(**values)
            compiled = torch.compile(net, fullgraph=True, backend="eager")(**values)
        self.assertLessEqual(max_difference(compiled, out), 1e-5)
        assert_scripts(net, (values["x"], values["timesteps"]))

    def test_blocks_that_are_not_as_built_are_left_alone(self):
        """What has its own way to a context is not asked for one."""
        seen = []

        def forward(x: torch.Tensor, context: Any = None) -> torch.Tensor:
            seen.append(context)
            return torch.zeros_like(x)

        net, values = built(*NETWORKS[0])
        del values["context"]
        for block in net.modules():
            if isinstance(block, CrossAttentionBlock):
                block.forward = forward  # type: ignore[method-assign]
        self.assertEqual(net(**values).shape, (2, 2, 8, 8))
        self.assertTrue(seen and all(context is None for context in seen))


class TestParts(unittest.TestCase):
    def test_parts_that_take_no_mask_are_not_handed_one(self):
        """As long as there is none."""

        class Stage(nn.Module):
            def __init__(self, stage: nn.Module) -> None:
                super().__init__()
                self.stage = stage

            def forward(self, hidden_states, temb, context=None):
                return self.stage(hidden_states, temb, context)

        net, values = built(*NETWORKS[0])
        expected = net(**values)
        net.middle_block = Stage(net.middle_block)
        self.assertTrue(torch.equal(net(**values), expected))
        with self.assertRaises(TypeError):
            net(**values, context_mask=MASK)


if __name__ == "__main__":
    unittest.main()
