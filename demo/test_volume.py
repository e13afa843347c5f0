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

import unittest
from unittest.mock import patch

import nibabel
import numpy as np
import torch
from parameterized import parameterized

from demo import volume
from demo.checks import DemoError
from demo.masked import HIDDEN_VALUE, from_patches, hide, to_patches
from demo.volume import load_scan, scan_path

torch.set_num_threads(1)

TEST_CASE_TOKENS = [(32, 16), (24, 8)]
TEST_CASE_PATCHES = [((2, 1, 8, 12), (4, 2)), ((3, 1, 4, 6, 8), (2, 3, 4))]


class TestScan(unittest.TestCase):
    def test_volumes_are_the_file(self):
        """Crop, orientation and scale against plain nibabel and numpy."""
        image = nibabel.as_closest_canonical(nibabel.load(scan_path()))
        raw = np.asarray(image.dataobj).astype(np.float64)
        self.assertEqual(raw.shape, (128, 96, 24, 2))
        head = raw[16:112]
        expected = np.clip(head / np.percentile(head, 99.8), 0, 1)
        volumes = load_scan().volumes
        self.assertEqual(tuple(volumes.shape), (2, 1, 96, 96, 24))
        self.assertEqual(volumes.dtype, torch.float32)
        np.testing.assert_allclose(volumes[:, 0].numpy(), np.moveaxis(expected, -1, 0), atol=1e-5)

    def test_slices_and_blocks_cover_the_first_volume(self):
        scan = load_scan()
        self.assertTrue(torch.equal(scan.slices[7, 0], scan.volumes[0, 0, :, :, 7]))
        self.assertEqual((len(scan.training_slices), len(scan.test_slices)), (18, 6))
        upper, lower = torch.cat(list(scan.blocks[:2]), 2), torch.cat(list(scan.blocks[2:]), 2)
        self.assertTrue(torch.equal(torch.cat([upper, lower], 1), scan.volumes[0]))

    @parameterized.expand(TEST_CASE_TOKENS)
    def test_tokens(self, side, levels):
        tokens = load_scan().tokens(side, levels)
        self.assertEqual(tuple(tokens.shape), (24, side * side))
        counts = torch.bincount(tokens.flatten(), minlength=levels)
        self.assertEqual(len(counts), levels)
        self.assertLessEqual(int(counts[1:].max() - counts[1:].min()), 0.02 * counts[1:].sum())
        small = load_scan().slices.unflatten(2, (side, -1)).unflatten(4, (side, -1)).mean((1, 3, 5)).flatten()
        for level in range(levels - 1):
            darker, brighter = small[tokens.flatten() == level], small[tokens.flatten() == level + 1]
            self.assertLess(float(darker.max()), float(brighter.min()) + 1e-6)

    def test_tokens_are_deterministic(self):
        first = load_scan().tokens(32, 16)
        load_scan.cache_clear()
        self.assertTrue(torch.equal(first, load_scan().tokens(32, 16)))

    def test_without_nibabel(self):
        with patch.object(volume.resources, "files", side_effect=ModuleNotFoundError):
            with self.assertRaisesRegex(DemoError, "pip install nibabel"):
                scan_path()


class TestPatches(unittest.TestCase):
    @parameterized.expand(TEST_CASE_PATCHES)
    def test_there_and_back(self, shape, size):
        images = torch.rand(shape)
        grid = [s // p for s, p in zip(shape[2:], size)]
        self.assertTrue(torch.equal(from_patches(to_patches(images, size), grid, size), images))

    @parameterized.expand(TEST_CASE_PATCHES)
    def test_order_is_that_of_a_patch_embedding(self, shape, size):
        images = torch.rand(shape)
        convolution = (torch.nn.functional.conv2d, torch.nn.functional.conv3d)[len(size) - 2]
        means = convolution(images, torch.ones(1, 1, *size), stride=size).flatten(1)
        torch.testing.assert_close(to_patches(images, size).sum(2), means)

    @parameterized.expand(TEST_CASE_PATCHES)
    def test_hide(self, shape, size):
        images = torch.rand(shape)
        hidden, mask = hide(images, size, 0.5, torch.Generator().manual_seed(0))
        self.assertEqual(mask.sum(1).tolist(), [mask.shape[1] // 2] * len(images))
        patches = to_patches(hidden, size)
        self.assertTrue(bool((patches[mask] == HIDDEN_VALUE).all()))
        self.assertTrue(torch.equal(patches[~mask], to_patches(images, size)[~mask]))


if __name__ == "__main__":
    unittest.main()
