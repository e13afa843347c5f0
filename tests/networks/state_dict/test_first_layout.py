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

from monai.networks.nets import DiffusionModelUNet
from monai.networks.state_dict import CheckpointFacts
from tests.differences import max_difference
from tests.networks.nets.diffusion_cases import randomized

torch.set_num_threads(1)
NETWORK = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": 2,
    "channels": (8, 16),
    "attention_levels": (False, True),
    "norm_num_groups": 4,
    "num_head_channels": 4,
    "num_class_embeds": 3,
}
CONDITIONED = {**NETWORK, "with_conditioning": True, "cross_attention_dim": 6}
# every numbered part of that network, written down by hand
PARTS = {
    "input_blocks.0.0": "conv_in",
    "input_blocks.1.0": "down_blocks.0.resnets.0",
    "input_blocks.2.0": "down_blocks.0.resnets.1",
    "input_blocks.3.0": "down_blocks.0.downsampler",
    "input_blocks.4.0": "down_blocks.1.resnets.0",
    "input_blocks.4.1": "down_blocks.1.attentions.0",
    "input_blocks.5.0": "down_blocks.1.resnets.1",
    "input_blocks.5.1": "down_blocks.1.attentions.1",
    "middle_block.0": "middle_block.resnet_1",
    "middle_block.1": "middle_block.attention",
    "middle_block.2": "middle_block.resnet_2",
    "output_blocks.0.0": "up_blocks.0.resnets.0",
    "output_blocks.0.1": "up_blocks.0.attentions.0",
    "output_blocks.1.0": "up_blocks.0.resnets.1",
    "output_blocks.1.1": "up_blocks.0.attentions.1",
    "output_blocks.2.0": "up_blocks.0.resnets.2",
    "output_blocks.2.1": "up_blocks.0.attentions.2",
    "output_blocks.2.2": "up_blocks.0.upsampler",
    "output_blocks.3.0": "up_blocks.1.resnets.0",
    "output_blocks.4.0": "up_blocks.1.resnets.1",
    "output_blocks.5.0": "up_blocks.1.resnets.2",
    "label_emb": "class_embedding",
}
LAYERS = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "postconv.": "conv.",
    "attn1.out_proj.": "attn1.to_out.0.",
    "attn2.out_proj.": "attn2.to_out.0.",
    "ff.linear1.": "ff.net.0.proj.",
    "ff.linear2.": "ff.net.2.",
}


def first_layout(net: nn.Module, wrapped: bool = True) -> dict[str, torch.Tensor]:
    """The state dict that the first layout's network with the weights of ``net`` has."""
    state = {}
    names = {new: old for old, new in PARTS.items()}
    for key, value in net.state_dict().items():
        part = next((part for part in names if key.startswith(part + ".")), None)
        rest = key if part is None else key[len(part) + 1 :]
        for new, old in LAYERS.items() if part is not None else ():
            at = rest.find(new)
            in_transformer = rest.startswith("transformer_blocks.") and "_layers." in old
            if not in_transformer and (at == 0 or rest[at - 1 : at] == "."):
                rest = rest[:at] + old + rest[at + len(new) :]
        state[rest if part is None else f"{names[part]}.{rest}"] = value
    for key in [key for key in state if key.endswith("attn.to_q.weight")]:
        interleave(state, key.removesuffix("attn.to_q.weight"), wrapped)
    return state if wrapped else {key.replace(".conv.", "."): value for key, value in unwrapped(state).items()}


def unwrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys without the layer that MONAI wraps around convolutions; an upsampling's own ``conv`` stays."""
    return {key.replace(".conv.conv.", ".c_o_n_v."): value for key, value in state.items()}


def interleave(state: dict[str, torch.Tensor], prefix: str, wrapped: bool) -> None:
    """Join q, k and v head by head; the projection becomes a convolution."""
    conv = "conv." if wrapped else ""
    for kind in ("weight", "bias"):
        separate = [state.pop(f"{prefix}attn.to_{name}.{kind}") for name in "qkv"]
        rows = []
        for head in range(len(separate[0]) // 4):
            for values in separate:
                rows += list(values[4 * head : 4 * head + 4])
        joined, projection = torch.stack(rows), state.pop(f"{prefix}attn.out_proj.{kind}")
        state[f"{prefix}qkv.{conv}{kind}"] = joined[..., None] if kind == "weight" else joined
        state[f"{prefix}proj_out.{conv}{kind}"] = projection[..., None] if kind == "weight" else projection


def output(net: nn.Module, **kwargs) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    with torch.no_grad():
        return net.eval()(x, torch.tensor([3, 700]), class_labels=torch.tensor([0, 2]), **kwargs)


class TestFirstLayout(unittest.TestCase):
    @parameterized.expand([(combined, wrapped) for combined in (True, False) for wrapped in (True, False)])
    def test_same_outputs(self, combined, wrapped):
        source = randomized(DiffusionModelUNet(**NETWORK))
        state = {key.replace("c_o_n_v", "conv"): value for key, value in first_layout(source, wrapped).items()}
        self.assertTrue(any(key.startswith("output_blocks.2.2.conv.") for key in state))
        self.assertFalse(state.keys() & {key for key in source.state_dict() if "attn" in key})
        keys = list(state)
        net = DiffusionModelUNet(**NETWORK, use_combined_linear=combined)
        net.load_state_dict(state)
        self.assertEqual(list(state), keys)
        self.assertLessEqual(max_difference(output(net), output(source)), 1e-6)
        outer = nn.ModuleDict({"net": DiffusionModelUNet(**NETWORK)})
        outer.load_state_dict({f"net.{key}": value for key, value in state.items()})
        self.assertLessEqual(max_difference(output(outer["net"]), output(source)), 1e-6)

    def test_residual_blocks_that_change_the_size(self):
        kwargs = {**NETWORK, "resblock_updown": True}
        source, net = randomized(DiffusionModelUNet(**kwargs)), DiffusionModelUNet(**kwargs)
        net.load_state_dict(first_layout(source))
        self.assertLessEqual(max_difference(output(net), output(source)), 1e-6)

    @parameterized.expand([(True,), (False,)])
    def test_conditioned(self, scaled):
        source = randomized(DiffusionModelUNet(**CONDITIONED))
        state = first_layout(source)
        context = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(2))
        net = DiffusionModelUNet(**CONDITIONED)
        with self.assertRaisesRegex(RuntimeError, r"ff\.net[\s\S]*cross_attention_scaled=False"):
            net.load_state_dict(state)
        if not scaled:  # what divides the queries by the square root of the width does not undo itself
            for key in state:
                if key.endswith(("attn1.to_q.weight", "attn2.to_q.weight")):
                    state[key] = state[key] / 2
        net.load_old_state_dict(state, facts=CheckpointFacts(cross_attention_scaled=scaled))
        self.assertLessEqual(max_difference(output(net, context=context), output(source, context=context)), 1e-6)

    @parameterized.expand(
        [
            ({"num_res_blocks": 1}, "output_blocks"),
            ({"num_res_blocks": 3}, "size mismatch|Missing"),
            ({"attention_levels": (True, True)}, "attentions"),
            ({"attention_levels": (False, False)}, r"input_blocks\.4\.1"),
            ({"use_proj_attn": False}, r"use_proj_attn=True[\s\S]*output projection was used"),
        ]
    )
    def test_another_network(self, change, pattern):
        state = first_layout(randomized(DiffusionModelUNet(**NETWORK)))
        net = DiffusionModelUNet(**{**NETWORK, **change})
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with self.assertRaisesRegex(RuntimeError, pattern):
            net.load_state_dict(state)
        self.assertTrue(all(torch.equal(value, before[key]) for key, value in net.state_dict().items()))

    def test_every_key_counts(self):
        source = DiffusionModelUNet(**NETWORK)
        state = first_layout(source)
        for key in state:
            with self.assertRaises(RuntimeError, msg=key):
                DiffusionModelUNet(**NETWORK).load_state_dict({k: v for k, v in state.items() if k != key})


if __name__ == "__main__":
    unittest.main()
