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
from unittest import mock

import torch
import torch.nn as nn
import torch.utils.checkpoint
from parameterized import parameterized

from monai.networks.nets import VQVAE
from tests.differences import max_difference

torch.set_num_threads(1)

SIZES = {
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "channels": (4, 8),
    "num_res_layers": 1,
    "num_res_channels": (3, 5),
    "downsample_parameters": ((2, 4, 1, 1),) * 2,
    "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
    "num_embeddings": 8,
    "embedding_dim": 4,
}

ILL_ARGUMENTS = [
    ("too many inner widths", {"num_res_channels": (4, 4, 4)}, "num_res_channels"),
    ("too few encoder parameters", {"downsample_parameters": ((2, 4, 1),) * 2}, "downsample_parameters.*4 integers"),
    ("too few decoder parameters", {"upsample_parameters": (2, 4, 1, 1)}, "upsample_parameters.*5 integers"),
    ("no integers", {"downsample_parameters": ((2, 4, 1, 0.5),) * 2}, "0.5"),
    ("a number among rows", {"upsample_parameters": ((2, 4, 1, 1, 0), 3)}, "upsample_parameters"),
    ("one level too many", {"downsample_parameters": ((2, 4, 1, 1),) * 3}, "3 entries.*2 levels"),
]


def network(**kwargs) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(**{**SIZES, **kwargs}).eval()


def image(dims: int = 2, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, *[8] * dims, generator=torch.Generator().manual_seed(1))


class TestVQVAE(unittest.TestCase):
    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, part):
        with self.assertRaisesRegex(ValueError, part):
            network(**kwargs)

    def test_checkpointing(self):
        plain, again = network(), network(use_checkpointing=True)
        with mock.patch.object(torch.utils.checkpoint, "checkpoint", wraps=torch.utils.checkpoint.checkpoint) as spy:
            for net in (plain, again):
                sum(part.pow(2).sum() for part in net(image())).backward()
        self.assertEqual(spy.call_count, 2)
        learning = [[p.grad for p in net.parameters() if p.requires_grad] for net in (plain, again)]
        self.assertEqual(max_difference(*learning), 0.0)

    @parameterized.expand([({},), ({"spatial_dims": 3, "use_checkpointing": True, "act": "PRELU"},)])
    def test_scripted_methods(self, kwargs):
        net = network(**kwargs)
        script, x = torch.jit.script(net), image(net.spatial_dims)
        self.assertEqual(max_difference(script(x), net(x)), 0.0)
        indices = net.index_quantize(x)
        self.assertTrue(torch.equal(script.index_quantize(x), indices))
        self.assertEqual(max_difference(script.decode_samples(indices), net.decode_samples(indices)), 0.0)

    def test_generative_models(self):
        source, net = network(), network()
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        net.load_state_dict({key.replace(".blocks.", "."): value for key, value in source.state_dict().items()})
        self.assertEqual(max_difference(net(image()), source(image())), 0.0)

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types(self, dtype):
        net = network().to(dtype)
        for mode in (True, False):
            self.assertEqual({part.dtype for part in net.train(mode)(image().to(dtype))}, {dtype})

    def test_autocast(self):
        net = network()
        with torch.autocast("cpu", torch.bfloat16):
            reconstruction, loss = net(image())
        self.assertEqual(reconstruction.dtype, torch.bfloat16)
        self.assertLessEqual(max_difference(loss.float(), net(image())[1]), 0.05)

    def test_empty_batch(self):
        reconstruction, loss = network()(image(batch=0))
        self.assertEqual((reconstruction.shape, float(loss)), ((0, 2, 8, 8), 0.0))

    def test_one_axis(self):
        self.assertEqual(network(spatial_dims=1)(image(1))[0].shape, (2, 2, 8))


if __name__ == "__main__":
    unittest.main()
