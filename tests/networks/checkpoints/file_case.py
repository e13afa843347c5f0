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

"""Tests with files in a folder of their own."""

from __future__ import annotations

import tempfile
import unittest
from collections.abc import Mapping
from pathlib import Path

import torch

__all__ = ["FileCase"]


class FileCase(unittest.TestCase):
    """A test with an empty folder, ``folder``, and the name of a file in it, ``path``."""

    name = "checkpoint.pt"

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / self.name

    def assert_same(self, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
        """The same keys in the same order, with equal tensors."""
        self.assertEqual(list(found), list(expected))
        for key, value in expected.items():
            self.assertTrue(torch.equal(found[key], value), key)
            self.assertEqual(found[key].dtype, value.dtype, key)
