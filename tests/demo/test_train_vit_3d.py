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
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import torch

from demo import train_vit_3d
from demo.train_vit_3d import OPTIONS, liken_queries_to_keys
from demo.volume import scan_path
from monai.apps.checkpoints.network_config import read_network_config
from monai.networks import load_checkpoint
from monai.networks.nets import ViT


class TestTrainViT3D(unittest.TestCase):
    def test_the_folder_serves_the_command(self):
        """Two steps: the configuration builds the network that the file holds, and the scan is nibabel's."""
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()) as out:
            with patch("sys.argv", ["train_vit_3d", folder, "--steps", "2"]):
                train_vit_3d.main()
            path = Path(folder)
            net = read_network_config(str(path / "net.json")).build()
            load_checkpoint(net, path / "net.pt")
            self.assertEqual((path / "scan.nii.gz").read_bytes(), Path(scan_path()).read_bytes())
        self.assertIsInstance(net, ViT)
        self.assertEqual(tuple(net.patch_embedding.img_size), OPTIONS["img_size"])
        self.assertRegex(out.getvalue(), r"error of hidden blocks \d\.\d{3}")

    def test_queries_start_as_the_keys(self):
        net = ViT(**OPTIONS)
        liken_queries_to_keys(net)
        for block in net.blocks:
            queries, keys, values = block.attn.qkv.weight.chunk(3)
            self.assertTrue(torch.equal(queries, keys))
            self.assertFalse(torch.equal(queries, values))


if __name__ == "__main__":
    unittest.main()
