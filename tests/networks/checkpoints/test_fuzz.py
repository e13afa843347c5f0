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

import random
import unittest
import warnings

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.nets import AutoencoderKL, DecoderOnlyTransformer, DiffusionModelUNet, ViT
from tests.differences import max_difference
from tests.networks.nets.diffusion_cases import randomized

torch.set_num_threads(1)

MUTATIONS = 200  # of each of 20 cases

UNET = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": 1,
    "channels": (4, 8),
    "attention_levels": (False, True),
    "norm_num_groups": 4,
    "num_head_channels": 4,
}

AUTOENCODER = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_res_blocks": (1, 1),
    "channels": (4, 8),
    "attention_levels": (False, True),
    "latent_channels": 4,
    "norm_num_groups": 4,
}

DECODER = {
    "num_tokens": 10,
    "max_seq_len": 6,
    "attn_layers_dim": 8,
    "attn_layers_depth": 2,
    "attn_layers_heads": 2,
    "with_cross_attention": True,
}

VIT = {
    "in_channels": 1,
    "img_size": (8, 8),
    "patch_size": (4, 4),
    "hidden_size": 8,
    "mlp_dim": 8,
    "num_layers": 2,
    "num_heads": 2,
    "spatial_dims": 2,
}

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))

TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6]])

CONTEXT = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2))

CASES = [
    (DiffusionModelUNet, UNET, lambda net: net(IMAGE, torch.tensor([7]))),
    (AutoencoderKL, AUTOENCODER, lambda net: net.reconstruct(IMAGE)),
    (DecoderOnlyTransformer, DECODER, lambda net: net(TOKENS, context=CONTEXT)),
    (ViT, VIT, lambda net: net(IMAGE)[0]),
]

OLD_NAMES = {  # what one release or another called a part of a key
    "attn.to_q": "to_q",
    "attn.to_k": "to_k",
    "attn.to_v": "to_v",
    "attn.out_proj": "proj_attn",
    "to_q": "query",
    "to_k": "key",
    "to_v": "value",
    "out_proj": "to_out.0",
    "norm2": "norm3",
    "norm_cross_attn": "norm2",
    "postconv": "conv",
    "blocks.": "",
    "conv.conv": "conv",
    "down_blocks": "input_blocks",
    "up_blocks": "output_blocks",
    "cross_attn": "norm_cross_attn",
    "qkv": "to_q",
}


def mutated(state: dict[str, torch.Tensor], draw: random.Random) -> dict[str, torch.Tensor]:
    """A copy of a state dict with some keys dropped or renamed, at random or as another release called them."""
    result = dict(state)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        key = draw.choice(list(result))
        change = draw.randrange(5)
        if change == 0:
            del result[key]
        elif change == 1:
            position = draw.randrange(len(key))
            result[key[:position] + draw.choice("abc._0123") + key[position + 1 :]] = result.pop(key)
        elif change == 2:  # drop or rename a whole layer
            prefix = key.rpartition(".")[0]
            layer = [name for name in result if name.startswith(prefix + ".")]
            moved = {name: result.pop(name) for name in layer}
            if draw.random() < 0.5:
                result |= {f"{prefix}x.{name[len(prefix) + 1 :]}": value for name, value in moved.items()}
        else:
            new, old = draw.choice(list(OLD_NAMES.items()))
            if old and draw.random() < 0.5:
                new, old = old, new
            for name in [name for name in result if new in name] if change == 3 else [key]:
                if new in name and name.replace(new, old) not in state:
                    result[name.replace(new, old)] = result.pop(name)
        if not result:
            break
    return result


class FuzzCase(unittest.TestCase):
    """Loads damaged state dicts: each gives the outputs of the whole one, or is refused before a weight changes."""

    def fuzz(self, state: dict[str, torch.Tensor], expected: torch.Tensor, net: nn.Module, run) -> None:
        draw = random.Random(0)
        for value in net.state_dict().values():
            value.zero_()
        outcomes = {"refused": 0, "same": 0}
        for number in range(MUTATIONS):
            damaged = mutated(state, draw)
            keys = list(damaged)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    net.load_state_dict(damaged)
            except RuntimeError:
                outcomes["refused"] += 1
                if any(value.any() for value in net.state_dict().values()):
                    self.fail(f"mutation {number}: refused, but weights were changed")
            else:
                outcomes["same"] += 1
                difference = max_difference(run(net), expected)
                bound = 2e-5 * max(1.0, float(expected.abs().max()))
                self.assertLessEqual(difference, bound, f"mutation {number}: {sorted(set(state) ^ set(damaged))}")
                for value in net.state_dict().values():
                    value.zero_()
            self.assertEqual(list(damaged), keys)
        self.assertGreater(outcomes["refused"], MUTATIONS // 2)


class TestFuzz(FuzzCase):
    @parameterized.expand([(cls.__name__, cls, kwargs, run) for cls, kwargs, run in CASES])
    @torch.no_grad()
    def test_never_other_outputs(self, _, cls: type[nn.Module], kwargs, run):
        """A damaged checkpoint is refused and leaves the network as it was, or gives the same outputs."""
        source = randomized(cls(**kwargs)).eval()
        for combined in (False, True):
            net = cls(**kwargs, use_combined_linear=combined).eval()
            self.fuzz(source.state_dict(), run(source), net, run)


if __name__ == "__main__":
    unittest.main()
