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

"""EMAQuantizer beside the release."""

from __future__ import annotations

import unittest

import torch
from parameterized import parameterized

from tests.differences import max_difference
from tests.networks.layers.test_vector_quantizer_contract import SIZES, codebook, encodings
from tests.parity.release import release_run

torch.set_num_threads(1)

TARGET = "monai.networks.layers.EMAQuantizer"

TEST_CASES = [
    {**SIZES, "spatial_dims": dims, "embedding_init": init, "commitment_cost": cost, "decay": decay}
    for dims in (2, 3)
    for init, cost, decay in (("normal", 0.25, 0.99), ("kaiming_uniform", 1.5, 0.5))
]


class TestEMAQuantizer(unittest.TestCase):
    @parameterized.expand([(case,) for case in TEST_CASES])
    def test_equals_the_release(self, kwargs):
        net, x = codebook(**kwargs), encodings(kwargs["spatial_dims"])
        state = release_run(TARGET, kwargs, seed=0, call=None)
        self.assertEqual(list(net.state_dict()), list(state))
        for train in (False, True):
            expected = release_run(TARGET, kwargs, (x,), state=state, train=train)
            self.assertLessEqual(max_difference(net.train(train)(x), expected), 1e-6)
        net.load_state_dict(state)
        expected = release_run(TARGET, kwargs, (x,), call="quantize", state=state)
        self.assertEqual(max_difference(net.quantize(x), expected), 0.0)
        indices = net.quantize(x)[2]
        expected = release_run(TARGET, kwargs, (indices,), call="embed", state=state)
        self.assertEqual(max_difference(net.embed(indices), expected), 0.0)


if __name__ == "__main__":
    unittest.main()
