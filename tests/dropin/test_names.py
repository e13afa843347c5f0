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

"""Names that other code imports, wherever it takes them from."""

from __future__ import annotations

import importlib
import unittest

from parameterized import parameterized

# a module, and the package that exports the same object
TEST_CASES_EXPORTED = [
    ["monai.inferers.inferer", "monai.inferers", "VQVAETransformerInferer"],
    ["monai.inferers.inferer", "monai.inferers", "LatentDiffusionInferer"],
    ["monai.networks.utils", "monai.networks", "copy_model_state"],
    ["monai.networks.nets.diffusion_model_unet", "monai.networks.nets", "DiffusionModelUNet"],
    ["monai.networks.nets.vit", "monai.networks.nets", "ViT"],
    ["monai.visualize.utils", "monai.visualize", "blend_images"],
]


class TestNames(unittest.TestCase):
    @parameterized.expand(TEST_CASES_EXPORTED)
    def test_one_object_under_both_names(self, module, package, name):
        objects = [getattr(importlib.import_module(place), name) for place in (module, package)]
        self.assertIs(*objects)


if __name__ == "__main__":
    unittest.main()
