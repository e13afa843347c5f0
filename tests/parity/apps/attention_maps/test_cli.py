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

"""Attention maps of a checkpoint that an older MONAI trained."""

from __future__ import annotations

import json
import unittest
from pathlib import Path

import nibabel
import numpy as np
import torch

from tests.apps.attention_maps.test_cli import CommandCase, run

torch.set_num_threads(1)

OLD_VIT = Path(__file__).parents[3] / "testing_data" / "vit_monai_1.5.2.pt"

SCAN = Path(nibabel.__file__).parent / "tests" / "data" / "example4d.nii.gz"


class TestNetworks(CommandCase):
    def test_old_checkpoint_on_a_slice_of_the_real_scan(self):
        old = torch.load(OLD_VIT, weights_only=True)
        self.config.write_text(json.dumps({"_target_": "monai.networks.nets.ViT", **old["options"]}))
        options = ["--name", "state_dict", "--volume", "0", "--orientation", "RAS", "--slice", "12", "--fit", "crop"]
        arguments = self.arguments(*options, "--layers", "blocks.2.*", query="60,40,12")
        arguments[arguments.index(self.ckpt)], arguments[arguments.index(self.scan)] = OLD_VIT, SCAN
        code, out, err = run(*arguments, "--json")
        self.assertEqual((code, err), (0, ""), out)
        (layer,) = json.loads(out)["layers"]
        column = (127 - 60 - 16) // 8  # the file's axis runs to the left, 16 voxels are cut off
        self.assertEqual((layer["token"], layer["grid"]), (column * 12 + 40 // 8, [12, 12]))
        affine = nibabel.load(SCAN).affine
        z = np.linalg.solve(affine, [*layer["world"], 1])[2]
        self.assertAlmostEqual(z, 12, places=2)


if __name__ == "__main__":
    unittest.main()
