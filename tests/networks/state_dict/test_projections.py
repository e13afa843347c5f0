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
import warnings

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import CrossAttentionBlock, SABlock, SpatialAttentionBlock, TransformerBlock
from monai.networks.state_dict import CheckpointFacts
from monai.networks.state_dict.adapting import adapted_state_dict
from monai.networks.state_dict.hooks import OldCheckpoints
from tests.differences import max_difference

torch.set_num_threads(1)
WIDTH = 24
NOT_USED = CheckpointFacts(projection_used=False)


class Net(OldCheckpoints):
    """Two blocks of self attention and one of cross attention."""

    def __init__(self, use_proj_attn: bool | None = None, **kwargs):
        super().__init__()
        self.first = SABlock(WIDTH, 4, use_proj_attn=use_proj_attn, **kwargs)
        self.inner = nn.ModuleDict({"second": SABlock(WIDTH, 4, use_proj_attn=use_proj_attn, **kwargs)})
        self.cross = CrossAttentionBlock(WIDTH, 4, use_proj_attn=use_proj_attn)

    def forward(self, x):
        return self.cross(self.inner["second"](self.first(x)))


class Normed(Net):
    """The same, with a norm."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = nn.LayerNorm(WIDTH)


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net.eval()


def tokens() -> torch.Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def without_projection(net: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of ``net`` without projections of self attention, as one of ``include_fc=False`` is."""
    return {k: v for k, v in net.state_dict().items() if "out_proj" not in k or k.startswith("cross")}


def dead_projections(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network without projections, and its state dict with projections that were never trained, as MONAI 1.4 does."""
    torch.manual_seed(5)
    source = randomized(Net())
    for block in (source.first, source.inner["second"]):
        block.out_proj.reset_parameters()
    state = {key: value.clone() for key, value in source.to(dtype).state_dict().items()}
    for block in (source.first, source.inner["second"]):
        block.out_proj = nn.Identity()
    return source.float(), state


def adapted(net: nn.Module, state: dict[str, torch.Tensor]) -> list[str]:
    """Adapt a checkpoint that may be old, and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted_state_dict(net, state)
    return [str(warning.message) for warning in caught]


def load(net: nn.Module, state: dict[str, torch.Tensor], **kwargs) -> list[str]:
    """Load, and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if kwargs:
            net.load_old_state_dict(state, **kwargs)
        else:
            net.load_state_dict(state)
    return [str(warning.message) for warning in caught]


class TestWithoutProjection(unittest.TestCase):
    @parameterized.expand([(combined,) for combined in (True, False)])
    def test_becomes_an_identity(self, combined):
        source = randomized(Net(use_proj_attn=None, include_fc=False, use_combined_linear=combined))
        net = randomized(Net(use_combined_linear=not combined), 7)
        state = source.state_dict()
        keys = list(state)
        for _ in range(2):  # what one load found must not reach into the next
            self.assertEqual(load(net, state), [])
        self.assertEqual(list(state), keys)
        self.assertLessEqual(max_difference(net(tokens()), source(tokens())), 1e-6)

    def test_is_missing_inside_another_module(self):
        """There nobody says whether the load is strict: torch reports what is missing, a warning names the remedy."""
        net = randomized(Net(), 7)
        before = {key: value.clone() for key, value in net.state_dict().items() if "out_proj" in key}
        outer = nn.ModuleDict({"net": net, "head": nn.Linear(2, 2)})
        state = {k: v for k, v in outer.state_dict().items() if "out_proj" not in k}
        missing = [key for key in outer.state_dict() if key not in state]
        with self.assertWarnsRegex(UserWarning, "Net: .*use_proj_attn=False") as caught:
            with self.assertRaisesRegex(RuntimeError, r"Missing.*net\.first\.out_proj\.weight"):
                outer.load_state_dict(state)
            self.assertEqual(outer.load_state_dict(state, strict=False).missing_keys, missing)
        self.assertEqual(len(caught.warnings), 2)
        for key, value in before.items():
            self.assertTrue(torch.equal(net.state_dict()[key], value))

    def test_never_without_strictness(self):
        net = randomized(Net(), 7)
        before = net.first.out_proj.weight.clone()
        state = without_projection(randomized(Net()))
        result = net.load_state_dict(state, strict=False)
        self.assertEqual(result.missing_keys, [key for key in net.state_dict() if key not in state])
        self.assertTrue(torch.equal(net.first.out_proj.weight, before))

    def test_never_from_a_part(self):
        state = without_projection(randomized(Net()))
        del state["cross.to_q.weight"]
        with self.assertRaisesRegex(RuntimeError, r"Missing.*first\.out_proj\.weight.*cross\.to_q\.weight"):
            Net().load_state_dict(state)

    def test_a_file_that_says_it_had_one(self):
        """A state dict of this package that lost its projections: what is saved beside the tensors tells."""
        net = randomized(Net())
        state = net.state_dict()
        for key in [key for key in state if "out_proj" in key]:
            del state[key]
        with self.assertRaisesRegex(RuntimeError, r"Missing.*first\.out_proj\.weight"):
            Net().load_state_dict(state)
        Net().load_state_dict(dict(state))

    def test_cross_attention(self):
        source, net = randomized(CrossAttentionBlock(WIDTH, 4, use_proj_attn=False)), CrossAttentionBlock(WIDTH, 4)
        net.eval().load_state_dict(source.state_dict())
        self.assertEqual(max_difference(net(tokens()), source(tokens())), 0.0)

    def test_a_projection_that_was_lost_is_missing(self):
        """Other blocks of the checkpoint have one, so that its network had one here, too."""
        state = randomized(Net()).state_dict()
        for key in ("first.out_proj.weight", "first.out_proj.bias"):
            del state[key]
        with self.assertRaisesRegex(RuntimeError, r"Missing.*first\.out_proj\.weight\W+first\.out_proj\.bias"):
            Net().load_state_dict(state)
        net = randomized(Net(), 3)
        before = net.first.out_proj.weight.clone()
        result = net.load_state_dict(state, strict=False)
        self.assertEqual(sorted(result.missing_keys), ["first.out_proj.bias", "first.out_proj.weight"])
        self.assertTrue(torch.equal(net.first.out_proj.weight, before))

    def test_a_lost_weight_is_missing(self):
        state = SABlock(WIDTH, 4).state_dict()
        del state["out_proj.weight"]
        with self.assertRaisesRegex(RuntimeError, r"Missing.*out_proj\.weight"):
            SABlock(WIDTH, 4).load_state_dict(state)

    def test_another_width(self):
        """An identity cannot change the width."""
        state = SABlock(WIDTH, 4, dim_head=5).state_dict()
        for kind in ("weight", "bias"):
            del state[f"out_proj.{kind}"]
        with self.assertRaisesRegex(RuntimeError, "Missing"):
            SABlock(WIDTH, 4, dim_head=5).load_state_dict(state)

    def test_the_used_projection_of_an_old_layout_is_missing(self):
        """There an absent projection was lost: no network of the layout was without."""
        net = SpatialAttentionBlock(1, 8, norm_num_groups=4)
        old = {"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)}
        for name in ("query", "key", "value"):
            old |= {f"{name}.weight": torch.randn(8, 8), f"{name}.bias": torch.randn(8)}
        with self.assertRaisesRegex(RuntimeError, r"Missing.*attn\.out_proj[\s\S]*proj_attn was used"):
            net.load_state_dict(old)
        projection = {"proj_attn.weight": torch.randn(8, 8), "proj_attn.bias": torch.randn(8)}
        net.load_state_dict({**old, **projection})
        self.assertTrue(torch.equal(net.attn.out_proj.weight, projection["proj_attn.weight"]))


class TestNeverTrained(unittest.TestCase):
    @parameterized.expand([(torch.float32, 1e-6), (torch.float16, 1e-2), (torch.bfloat16, 1e-1)])
    def test_dropped_where_there_is_none(self, dtype, tolerance):
        source, state = dead_projections(dtype)
        for nested in (False, True):
            net = Net(include_fc=False).eval()
            if nested:
                outer = nn.ModuleDict({"net": net})
                told = load(outer, {f"net.{key}": value for key, value in state.items()})
            else:
                told = load(net, state)
            self.assertEqual(len(told), 1)
            self.assertRegex(told[0], r"never trained.*use_proj_attn=True.*first\.out_proj.*second\.out_proj")
            self.assertLessEqual(max_difference(net(tokens()), source(tokens())), tolerance)

    def test_warns_where_there_is_one(self):
        """Where the caller says that the checkpoint is an old one: plain loads look at no weight."""
        _, state = dead_projections()
        self.assertEqual(load(Net(), state), [])
        net = Net()
        told = load(net, state, facts=CheckpointFacts())
        self.assertEqual(len(told), 1)
        self.assertRegex(told[0], r"never trained.*use_proj_attn=False.*first\.out_proj.*second\.out_proj")
        self.assertTrue(torch.equal(net.first.out_proj.weight, state["first.out_proj.weight"]))

    def test_refused_where_nothing_was_trained(self):
        """Then the projection tells nothing."""
        torch.manual_seed(0)
        with self.assertRaisesRegex(RuntimeError, r"use_proj_attn=True[\s\S]*projection_used=False"):
            Net(include_fc=False).load_state_dict(dict(Net().state_dict()))

    def test_refused_where_it_was_trained(self):
        with self.assertRaisesRegex(RuntimeError, r"use_proj_attn=True[\s\S]*projection_used=False"):
            Net(include_fc=False).load_state_dict(dict(randomized(Net()).state_dict()))

    def test_only_the_inputs_were_trained(self):
        """With everything else frozen, an untrained projection may be in use: nothing is dropped, nobody is warned."""
        for kind in ("norms", "cross attention"):
            torch.manual_seed(0)
            source = Normed() if kind == "norms" else Net()
            with torch.no_grad():
                for block in (source.first, source.inner["second"]):
                    block.qkv.weight.normal_()
            state = dict(source.state_dict())
            self.assertEqual(load(type(source)(), state, facts=CheckpointFacts()), [])
            with self.assertRaisesRegex(RuntimeError, "use_proj_attn=True"):
                type(source)(include_fc=False).load_state_dict(state)
            with torch.no_grad():
                (source.norm.bias if kind == "norms" else source.cross.to_q.weight).normal_()
            self.assertEqual(len(load(type(source)(include_fc=False), dict(source.state_dict()))), 1)

    def test_what_this_package_wrote_was_used(self):
        """Its state dicts say so, whatever the weights look like."""
        _, state = dead_projections()
        source = Net()
        source.load_state_dict(state)
        self.assertEqual(load(Net(), source.state_dict(), facts=CheckpointFacts()), [])
        with self.assertRaisesRegex(RuntimeError, "use_proj_attn=True.$"):
            Net(include_fc=False).load_state_dict(source.state_dict())

    def test_the_user_knows(self):
        source = randomized(Net())
        state = source.state_dict()
        bare = randomized(Net(include_fc=False), 4)
        self.assertEqual(load(bare, without_projection(source)), [])
        for net in (randomized(Net(), 2), randomized(Net(include_fc=False), 3)):
            self.assertEqual(load(net, state, facts=NOT_USED), [])
            self.assertLessEqual(max_difference(net(tokens()), bare(tokens())), 1e-6)
        _, dead = dead_projections()
        used = CheckpointFacts(projection_used=True)
        self.assertEqual(load(Net(), dead, facts=used), [])
        with self.assertRaisesRegex(RuntimeError, "Unexpected"):
            Net(include_fc=False).load_old_state_dict(dead, facts=used)

    def test_facts_hold_for_one_load(self):
        net, state = Net(include_fc=False), randomized(Net()).state_dict()
        net.load_old_state_dict(state, facts=NOT_USED)
        with self.assertRaisesRegex(RuntimeError, "Unexpected"):
            net.load_state_dict(state)
        with self.assertRaisesRegex(RuntimeError, "Missing"):
            net.load_old_state_dict({}, facts=NOT_USED)
        with self.assertRaisesRegex(RuntimeError, "Unexpected"):
            net.load_state_dict(state)

    @parameterized.expand([("projection_used", "no"), ("cross_attention_scaled", 1), ("transposed_upsampling", 0)])
    def test_facts_are_bools(self, name, value):
        with self.assertRaisesRegex(TypeError, f"{name}.*{value!r}"):
            CheckpointFacts(**{name: value})


class TestStaleCrossAttention(unittest.TestCase):
    def test_warns(self):
        """MONAI 1.4 and 1.5 wrote a cross attention without using it, at its initial weights."""
        torch.manual_seed(0)
        sizes = {"hidden_size": WIDTH, "mlp_dim": 32, "num_heads": 4, "with_cross_attention": True}
        source = randomized(TransformerBlock(**sizes))
        net = TransformerBlock(**sizes)
        self.assertEqual(adapted(net, dict(source.state_dict())), [])
        for linear in (source.cross_attn.to_q, source.cross_attn.to_k, source.cross_attn.to_v):
            linear.reset_parameters()
        self.assertEqual(load(net, dict(source.state_dict())), [])
        told = adapted(net, dict(source.state_dict()))
        self.assertEqual(len(told), 1)
        self.assertRegex(told[0], "never trained.*with_cross_attention=False")


if __name__ == "__main__":
    unittest.main()
