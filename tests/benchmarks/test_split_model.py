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

"""The model on paper of a split decode: what it counts, against a network of torch."""

from __future__ import annotations

import unittest

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.split_model import Machine, decoder, seconds, table
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

PUBLISHED = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "num_channels": [64, 128, 256],
    "num_res_blocks": [2, 2, 2],
    "norm_num_groups": 32,
    "attention_levels": [False] * 3,
    "num_splits": 1,
}


class TestSplitModel(unittest.TestCase):
    def test_counts_the_operations_of_the_network(self) -> None:
        with torch.device("meta"):
            network = AutoencoderKlMaisi(**PUBLISHED).eval()
            latent = torch.zeros(1, 4, 4, 4, 4)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.decoder(latent)
        counted = sum(layer.operations for layer in decoder(16))
        self.assertLess(abs(counter.get_total_flops() - counted) / counted, 0.01)

    def test_more_ranks_compute_less_and_send_as_much(self) -> None:
        found = [seconds(ranks, 512, Machine()) for ranks in (1, 2, 4, 8, 16)]
        self.assertEqual([each[0] for each in found], sorted((each[0] for each in found), reverse=True))
        self.assertEqual(found[0][1:], (0.0, 0.0))
        self.assertEqual(len({each[2] for each in found[1:]}), 1)
        self.assertGreater(16 * found[-1][0], found[0][0])

    def test_the_table_stands_in_the_documents(self) -> None:
        with open("docs/volumes_split.md", encoding="utf-8") as page:
            self.assertIn(table(), page.read())


if __name__ == "__main__":
    unittest.main()
