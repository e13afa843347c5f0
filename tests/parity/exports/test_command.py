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

"""The table of networks and ways out, beside the release's: ``python -m tests.parity.exports --help``."""

from __future__ import annotations

import contextlib
import io
import unittest

import pytest
import torch
from parameterized import parameterized

from fork.referee import release_environment
from tests.networks.exports.runner import passes, run_row
from tests.parity.exports.__main__ import choose, main

torch.set_num_threads(1)


class TestCommand(unittest.TestCase):
    @pytest.mark.slow
    def test_release_against_fork(self):
        (row,) = choose(["SpatialAttentionBlock/2-D"])
        cells = run_row(row, ["script", "trace"], release_environment())
        self.assertIn("cannot statically infer", cells["script"]["error"])
        self.assertTrue(passes(row, "trace", cells["trace"]))
        self.assertTrue(all(passes(row, name, cell) for name, cell in run_row(row, ["script", "trace"]).items()))

    def test_choose(self):
        self.assertEqual({row.network for row in choose(["ViT", "*/rel pos"])}, {"ViT", "CrossAttentionBlock"})
        with self.assertRaisesRegex(ValueError, "no row matches 'VIT': --list"):
            choose(["VIT"])

    @parameterized.expand([(["--rows", "Nothing"], "no row matches 'Nothing'"), (["--columns", "jpeg"], "'jpeg'")])
    def test_name_that_means_nothing_ends_the_program(self, arguments, words):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), self.assertRaises(SystemExit) as end:
            main(arguments)
        self.assertEqual(end.exception.code, 2)
        self.assertIn(words, errors.getvalue())


if __name__ == "__main__":
    unittest.main()
