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

import tempfile
import unittest
from pathlib import Path

import torch
from ignite.engine import Engine

from monai.handlers import CheckpointLoader


class TestOtherShapes(unittest.TestCase):
    def test_what_fits_is_loaded(self):
        source = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 4))
        target = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 5))
        last = target[1].weight.detach().clone()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pt"
            torch.save({"net": source.state_dict(), "other": torch.nn.Linear(1, 1).state_dict()}, path)
            loader = CheckpointLoader(str(path), {"net": target}, strict=False, strict_shape=False)
            engine = Engine(lambda engine, batch: None)
            loader.attach(engine)
            engine.run([0], max_epochs=1)
        self.assertTrue(torch.equal(target[0].weight, source[0].weight))
        self.assertTrue(torch.equal(target[1].weight, last))


if __name__ == "__main__":
    unittest.main()
