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

"""The kernel's memory where it would build the matrix, in a process that allocates as the benchmarks do."""

from __future__ import annotations

import os
import subprocess
import sys
import unittest

import torch
from parameterized import parameterized

from benchmarks.case import Setting
from benchmarks.measure import FIXED_ALLOCATION, peak_bytes
from fork.referee import ROOT
from monai.networks.blocks.attention.kernels import fused_attention


def peak(dropout_p: float) -> int:
    """Bytes of a step over 9 heads of 4096 tokens, with dropout or else with a mask of pairs."""
    torch.set_num_threads(1)
    q, k, v = (torch.randn(1, 9, 4096, 8, requires_grad=True) for _ in range(3))
    mask = None if dropout_p else torch.ones(1, 9, 4096, 4096, dtype=torch.bool)
    return peak_bytes(lambda: fused_attention(q, k, v, mask, False, 0.3, dropout_p).sum().backward(), Setting())


class TestMemory(unittest.TestCase):
    @unittest.skipUnless(sys.platform == "linux", "the memory of a process is read from Linux's /proc")
    @parameterized.expand([("dropout", 0.1, 500e6), ("mask of pairs", 0.0, 200e6)])
    def test_fused_attention(self, _, dropout_p, most):
        """A matrix of logits would be 600 MB; dropout would keep four, a mask's copy in floats one."""
        program = f"from tests.benchmarks.test_attention_memory import peak; print(peak({dropout_p}))"
        environment = {**os.environ, **FIXED_ALLOCATION}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True
        )
        self.assertLess(int(done.stdout), most)


if __name__ == "__main__":
    unittest.main()
