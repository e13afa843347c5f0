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

"""Older checkpoints through MONAI's helpers that copy by names."""

from __future__ import annotations

import tempfile
import unittest
import warnings

import torch
import torch.nn as nn
from ignite.engine import Engine

from monai.handlers import CheckpointLoader

torch.set_num_threads(1)


def engine(max_epochs: int | None = 1, epoch: int = 0) -> Engine:
    made = Engine(lambda engine, batch: None)
    made.state.max_epochs, made.state.epoch = max_epochs, epoch
    return made


class TestCheckpointLoader(unittest.TestCase):
    """``strict_shape=False`` copies what fits; the release copied nothing, of any checkpoint."""

    def run_loader(self, content, load_dict, **kwargs) -> None:
        with tempfile.TemporaryDirectory() as folder:
            torch.save(content, f"{folder}/c.pt")
            CheckpointLoader(f"{folder}/c.pt", load_dict, **kwargs)(kwargs.pop("engine", None) or engine())

    def test_what_fits_is_copied(self):
        source, net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
        before = net[1].weight.clone()
        for content in (source.state_dict(), {"net": source.state_dict(), "optimizer": {}}):
            nn.init.zeros_(net[0].weight)
            self.run_loader(content, {"net": net}, strict=False, strict_shape=False)
            self.assertTrue(torch.equal(net[0].weight, source[0].weight))
            self.assertTrue(torch.equal(net[1].weight, before))

    def test_an_object_that_is_not_there(self):
        net = nn.Linear(2, 2)
        with self.assertRaisesRegex(ValueError, "second"):
            self.run_loader(
                {"first": net.state_dict()}, {"first": net, "second": nn.Linear(2, 2)}, strict=False, strict_shape=False
            )

    def test_what_is_no_network_is_left_out(self):
        net = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        objects = {"net": net, "optimizer": optimizer}
        with self.assertWarnsRegex(UserWarning, "strict_shape"), warnings.catch_warnings():
            self.run_loader({"net": net.state_dict()}, objects, strict=False, strict_shape=False)
        self.assertEqual(list(objects), ["net"])


if __name__ == "__main__":
    unittest.main()
