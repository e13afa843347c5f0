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

"""State dicts of older packages, damaged."""

from __future__ import annotations

import unittest

import torch
import torch.nn as nn
from parameterized import parameterized

from tests.networks.checkpoints.test_fuzz import FuzzCase
from tests.parity.references.networks import arguments_taken, find_class, outputs
from tests.parity.references.store import FILES, load_file

torch.set_num_threads(1)

OLD = [  # the beginnings of the names of kept references
    "monai_generative_before_0.1.0_DiffusionModelUNet_3_D",
    "monai_generative_0.1.0_DiffusionModelUNet_2_D_include_fc",
    "monai_generative_0.1.x_AutoencoderKL",
    "monai_generative_0.2.3_AutoencoderKL_2_D",
    "monai_generative_0.2.3_DiffusionModelUNet_2_D",
    "monai_generative_0.2.1_DecoderOnlyTransformer_cross",
]


class TestFuzz(FuzzCase):
    @parameterized.expand([(beginning, options) for beginning in OLD for options in ({}, {"use_proj_attn": False})])
    @torch.no_grad()
    def test_never_other_outputs_of_old_networks(self, beginning: str, options):
        path = next(path for path in sorted(FILES.iterdir()) if path.name.startswith(beginning))
        case, reference = load_file(path)
        net = find_class(case.network)(**arguments_taken(find_class(case.network), {**case.kwargs, **options})).eval()

        def run(net: nn.Module) -> torch.Tensor:
            return outputs(net, case.network, reference["inputs"])

        self.fuzz(reference["state_dict"], reference["output"], net, run)


if __name__ == "__main__":
    unittest.main()
