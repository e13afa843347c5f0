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

"""What users do around the inferer of a VQVAE and a transformer. All of it works on the release, too."""

from __future__ import annotations

import unittest

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.inferers import VQVAETransformerInferer
from monai.networks.nets import VQVAE, DecoderOnlyTransformer
from monai.utils.ordering import Ordering

torch.set_num_threads(1)
CODEBOOK = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 1,
    "channels": (4,),
    "num_res_channels": 4,
    "num_res_layers": 1,
    "downsample_parameters": (2, 4, 1, 1),
    "upsample_parameters": (2, 4, 1, 1, 0),
    "num_embeddings": 8,
    "embedding_dim": 4,
}
SIDE = 3


def transformer(cls: type[DecoderOnlyTransformer] = DecoderOnlyTransformer) -> DecoderOnlyTransformer:
    torch.manual_seed(0)
    net = cls(9, SIDE * SIDE + 1, 24, 2, 4).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net


def sample(net: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    codebook = VQVAE(**CODEBOOK).eval()
    begin, ordering = torch.full((2, 1), 8), Ordering("raster_scan", 2, (1, SIDE, SIDE))
    return VQVAETransformerInferer().sample((SIDE, SIDE), begin, codebook, net, ordering, verbose=False)


class TestSampling(unittest.TestCase):
    @parameterized.expand(
        [
            ("",),
            ("token_embeddings",),
            ("position_embeddings",),
            ("position_embeddings.embedding",),
            ("embedding_dropout",),
            ("blocks.1",),
            ("blocks.0.attn.out_proj",),
            ("blocks.1.mlp.linear1",),
            ("to_logits",),
        ]
    )
    def test_who_watches_a_layer_sees_every_step(self, name):
        """Each step computes the whole sequence so far."""
        net, lengths = transformer(), []
        expected = sample(net)
        net.get_submodule(name).register_forward_hook(lambda m, args, out: lengths.append(out.shape[1]))
        self.assertTrue(torch.allclose(sample(net), expected, atol=1e-5))
        self.assertEqual(lengths, list(range(1, SIDE * SIDE + 1)))

    def test_forward_of_a_subclass(self):
        class Mine(DecoderOnlyTransformer):
            def forward(self, x, context=None):
                logits = super().forward(x, context=context)
                return logits.index_fill(2, torch.arange(1, 9), -1e9)

        torch.manual_seed(1)
        expected = VQVAE(**CODEBOOK).eval().decode_samples(torch.zeros(2, SIDE, SIDE, dtype=torch.long))
        self.assertTrue(torch.allclose(sample(transformer(Mine)), expected, atol=1e-5))

    def test_replaced_layers(self):
        class Sinusoids(nn.Module):
            def forward(self, x):
                steps = torch.arange(x.shape[1], dtype=torch.float32)
                return torch.outer(steps, 0.5 ** torch.arange(24)).sin()

        net, reference = transformer(), transformer()
        reference.position_embeddings.embedding.weight.data = Sinusoids()(torch.zeros(1, SIDE * SIDE + 1))
        net.position_embeddings = Sinusoids()
        self.assertTrue(torch.allclose(sample(net), sample(reference), atol=1e-5))
        net.to_logits = nn.Sequential(net.to_logits, nn.Identity())
        self.assertTrue(torch.allclose(sample(net), sample(reference), atol=1e-5))

    def test_any_module_of_the_users_own(self):
        class Mine(nn.Module):
            max_seq_len = SIDE * SIDE + 1

            def forward(self, x, context=None):
                return torch.zeros(*x.shape, 9).index_fill(2, torch.tensor([3]), 1e9)

        torch.manual_seed(1)
        expected = VQVAE(**CODEBOOK).eval().decode_samples(torch.full((2, SIDE, SIDE), 3))
        self.assertTrue(torch.allclose(sample(Mine()), expected, atol=1e-5))


if __name__ == "__main__":
    unittest.main()
