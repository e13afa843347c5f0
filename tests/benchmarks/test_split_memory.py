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

"""The benchmark of memory on several processes."""

from __future__ import annotations

import unittest

import pytest
import torch.distributed as dist

from benchmarks.split_memory import Need, measure, table


class TestSplitMemory(unittest.TestCase):
    def test_table(self) -> None:
        rows = [(1, Need(8_000_000, 4_000_000, 0), None), (2, Need(4_000_000, 3_000_000, 1_500_000), None)]
        found = table(rows).splitlines()
        self.assertEqual(len(found), 4)
        self.assertEqual(found[-1], "| 2 | decode | 4 MB | 0.50 | 3 MB | 0.75 | 1.5 MB |")

    def test_refuses_what_cannot_be_cut(self) -> None:
        for ranks, size in ((2, 33), (4, 6)):
            with self.assertRaisesRegex(ValueError, f"an image of {size} voxels"):
                measure(ranks, size, False)

    @pytest.mark.distributed
    @pytest.mark.grid
    @unittest.skipUnless(dist.is_available() and dist.is_gloo_available(), "this torch is built without gloo")
    def test_two_processes_need_less(self) -> None:
        one, two = (measure(ranks, 48, False) for ranks in (1, 2))
        self.assertLess(two.tensors, 0.75 * one.tensors)
        self.assertEqual(one.sent, 0)
        self.assertGreater(two.sent, 0)


if __name__ == "__main__":
    unittest.main()
