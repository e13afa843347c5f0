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

"""A file that an older MONAI trained, inspected."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

import torch

from monai.apps.checkpoints.inspection import inspect_checkpoint

torch.set_num_threads(1)

torch.manual_seed(0)

TRAINED_BY_MONAI = Path(__file__).parents[3] / "testing_data" / "vit_monai_1.5.2.pt"


class TestFile(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "file.pt"

    def test_a_file_that_monai_trained(self):
        """Its cross attentions were saved, and never used."""
        (network,) = inspect_checkpoint(TRAINED_BY_MONAI, name="state_dict").networks
        self.assertEqual([row.stale for row in network.attention], [False, True] * 3)
        self.assertEqual([row.projection for row in network.attention[::2]], ["trained"] * 3)


if __name__ == "__main__":
    unittest.main()
