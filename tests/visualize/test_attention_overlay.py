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

import nibabel
import numpy as np
import torch
from parameterized import parameterized

from monai.data import MetaTensor
from monai.visualize.attention.on_image import (
    attention_of_query,
    axis_codes,
    captured_voxel,
    image_planes,
    maximum_voxel,
    to_world,
    token_of_query,
    upsample_attention,
)
from tests.visualize.made_maps import PERMUTED, made_map
from tests.visualize.pointing import SIZE, tilted, turned_affines

torch.set_num_threads(1)


class TestUpsampling(unittest.TestCase):
    @parameterized.expand([((2, 3), (4, 9)), ((2, 3, 2), (4, 6, 2)), ((3,), (9,))])
    def test_nearest_repeats_cells(self, grid, size):
        cells = torch.arange(float(np.prod(grid))).reshape(grid)
        expected = cells
        for axis, (count, length) in enumerate(zip(grid, size)):
            expected = expected.repeat_interleave(length // count, axis)
        self.assertTrue(torch.equal(upsample_attention(cells, size, "nearest"), expected))

    def test_nearest_gives_each_voxel_its_token(self):
        """Also where cells do not fill whole voxels: a voxel belongs to the cell that its center lies in."""
        attention = made_map((2, 3), image_size=(5, 7), queries=range(6))
        numbers = upsample_attention(torch.arange(6.0).reshape(2, 3), (5, 7), "nearest")
        for voxel in np.ndindex(5, 7):
            self.assertEqual(int(numbers[voxel]), token_of_query(attention, voxel, (5, 7)))

    def test_linear_keeps_centers(self):
        """Two cells over 8 voxels have their centers at 1.5 and 5.5."""
        ramp = torch.tensor([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])
        self.assertTrue(torch.allclose(upsample_attention(torch.tensor([0.0, 1.0]), (8,)), ramp))
        product = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
        self.assertTrue(torch.allclose(upsample_attention(product, (8, 8)), ramp[:, None] * ramp))

    def test_map(self):
        attention = made_map((2, 3), queries=(0, 4))
        voxels = upsample_attention(attention, (8, 12), "nearest")
        self.assertEqual(voxels.shape, (1, 2, 2, 8, 12))
        self.assertIsInstance(voxels, torch.Tensor)
        self.assertTrue(torch.equal(voxels[..., ::4, ::4], attention.on_grid()))

    def test_uncovered_voxels_get_nothing(self):
        attention = made_map((2, 3), image_size=(9, 14), covered_size=(8, 12))
        voxels = upsample_attention(attention, (9, 14), "nearest")
        self.assertTrue(torch.equal(voxels[..., :8:4, :12:4], attention.on_grid()))
        self.assertEqual(float(voxels[..., 8:, :].abs().sum() + voxels[..., 12:].abs().sum()), 0.0)
        doubled = upsample_attention(attention, (18, 28), "nearest")
        self.assertTrue(torch.equal(doubled[..., :16:8, :24:8], attention.on_grid()))

    @parameterized.expand([(torch.float16, torch.float32), (torch.float64, torch.float64)])
    def test_dtype(self, given, expected):
        self.assertEqual(upsample_attention(torch.ones(2, 2, dtype=given), (4, 4)).dtype, expected)

    def test_image_gives_its_affine(self):
        image = MetaTensor(torch.rand(1, *SIZE), affine=torch.as_tensor(PERMUTED))
        voxels = upsample_attention(made_map((4, 3, 4)), image)
        self.assertIsInstance(voxels, MetaTensor)
        self.assertTrue(torch.equal(voxels.affine, image.affine))
        self.assertEqual(voxels.shape[-3:], SIZE)

    def test_affine_of_weights_follows_their_grid(self):
        cells = MetaTensor(torch.rand(4, 3, 4), affine=torch.as_tensor(tilted(PERMUTED)))
        voxels = upsample_attention(cells, SIZE)
        self.assertIsInstance(voxels, MetaTensor)
        for cell in ((0, 0, 0), (3, 2, 3)):
            center = [(place + 0.5) * size / n - 0.5 for place, size, n in zip(cell, SIZE, (4, 3, 4))]
            self.assertTrue(
                np.allclose(to_world(np.asarray(voxels.affine), center), to_world(cells.affine.numpy(), cell))
            )

    @parameterized.expand(
        [
            ("axes", made_map((2, 3)), (8, 12, 4), "linear", r"shape \(1, 2, 3, 2, 3\) has no place .*\(8, 12, 4\)"),
            ("weights", torch.ones(3), (8, 12), "linear", "no place"),
            ("mode", made_map((2, 3)), (8, 12), "cubic", "mode should be one of 'linear', 'nearest', got 'cubic'"),
            ("no grid", made_map((2, 3), key_grid=None), (8, 12), "linear", "'block' lie on no grid"),
        ]
    )
    def test_errors(self, _, attention, size, mode, pattern):
        with self.assertRaisesRegex(ValueError, pattern):
            upsample_attention(attention, size, mode)


class TestQuery(unittest.TestCase):
    def test_rows(self):
        attention = made_map((2, 3), class_tokens=1, queries=(0, 1, 6), batch=2)
        grid, size = attention.on_grid(), (8, 12)
        for query, row in (("class", 0), ((0, 3), 1), ((7, 8), 2)):
            self.assertEqual(token_of_query(attention, query, size), int(attention.queries[row]))
            self.assertTrue(torch.equal(attention_of_query(attention, size, query, 1, batch=1), grid[1, 1, row]))
            self.assertTrue(torch.allclose(attention_of_query(attention, size, query), grid[0, :, row].mean(0)))
        self.assertTrue(torch.allclose(attention_of_query(attention, size), grid[0].mean((0, 1))))

    def test_places(self):
        attention = made_map((2, 3), class_tokens=1, queries=(6,))
        self.assertEqual(captured_voxel(attention, (8, 12)), (6, 10))
        self.assertIsNone(captured_voxel(made_map(class_tokens=1, queries=(0,)), (8, 12)))
        self.assertIsNone(captured_voxel(made_map(), (8, 12)))
        weights = torch.zeros(2, 3)
        weights[1, 0] = 1
        self.assertEqual(maximum_voxel(attention, weights, (8, 12)), (6, 2))

    @parameterized.expand(
        [
            ((0, 8), {}, r"query \(0, 8\) is token 2 of 'block', which was not captured"),
            ((0, 12), {}, r"voxel \(0, 12\) lies outside of the image, whose size is \(8, 12\)"),
            ((0, 0, 0), {}, r"\(0, 0, 0\) lies outside"),
            ("class", {}, "'block' has no class token"),
            ("word", {}, "got 'word'"),
            (None, {"head": 2}, "has 2 heads, there is no 2"),
            (None, {"batch": 1}, "batch of 1, there is no 1"),
        ]
    )
    def test_errors(self, query, options, pattern):
        with self.assertRaisesRegex(ValueError, pattern):
            attention_of_query(made_map((2, 3)), (8, 12), query, **options)

    def test_queries_on_no_grid(self):
        with self.assertRaisesRegex(ValueError, "lie on no grid"):
            token_of_query(made_map((2, 3), query_grid=None), (0, 0), (8, 12))


class TestPlanes(unittest.TestCase):
    def test_codes_are_those_of_nibabel(self):
        for affine in turned_affines():
            self.assertEqual(axis_codes(affine), nibabel.aff2axcodes(affine))
            self.assertEqual(axis_codes(tilted(affine)), nibabel.aff2axcodes(tilted(affine)))

    def test_patient_right_anterior_superior(self):
        """World coordinates grow to the right and upwards, and the third one is that of the plane, for every affine."""
        voxel = (1, 2, 3)
        for affine in turned_affines():
            places = np.stack(np.meshgrid(*map(np.arange, (4, 5, 6)), indexing="ij"))
            world = np.tensordot(affine[:3, :3], places, 1) + affine[:3, 3].reshape(3, 1, 1, 1)
            planes = image_planes(3, affine)
            self.assertEqual([plane.name for plane in planes], ["axial", "coronal", "sagittal"])
            for plane, (right, up, fixed), codes in zip(
                planes, ((0, 1, 2), (0, 2, 1), (1, 2, 0)), ("LRPA", "LRIS", "PAIS")
            ):
                cuts = [plane.cut(axis, voxel) for axis in world]
                self.assertTrue((np.diff(cuts[right], axis=1) > 0).all() and (np.diff(cuts[up], axis=0) > 0).all())
                self.assertTrue(np.allclose(cuts[fixed], to_world(affine, voxel)[fixed]))
                self.assertEqual("".join(plane.codes), codes)
                column, row = plane.point(voxel, (4, 5, 6))
                self.assertTrue(np.allclose([cut[row, column] for cut in cuts], to_world(affine, voxel)))
                self.assertAlmostEqual(plane.extent((4, 5, 6))[0], cuts[right].shape[1] * plane.spacing[0])

    def test_plane_of_a_2d_image(self):
        image = np.arange(6).reshape(2, 3)
        (plain,) = image_planes(2)
        self.assertEqual(plain.cut(image, (0, 0)).tolist(), image[::-1].tolist())  # as a matrix, row 0 at the top
        self.assertEqual((plain.point((0, 2), (2, 3)), plain.codes, plain.title((0, 2))), ((2, 1), (), ""))
        (coronal,) = image_planes(2, np.array([[0, -2.0, 0, 0], [0, 0, 3, 0], [5, 0, 0, 0], [0, 0, 0, 1]]))
        self.assertEqual((coronal.name, coronal.codes, coronal.spacing), ("coronal", ("L", "R", "I", "S"), (2.0, 5.0)))
        self.assertEqual(coronal.cut(image, (0, 0)).tolist(), image[:, ::-1].tolist())
        (axial,) = image_planes(2, np.diag([2.0, 2.0, 1.0]))
        self.assertEqual((axial.name, axial.cut(image, (0, 0)).tolist()), ("axial", image.T.tolist()))

    def test_planes_without_an_affine(self):
        volume = np.arange(24).reshape(2, 3, 4)
        cuts = [plane.cut(volume, (1, 2, 3))[::-1] for plane in image_planes(3)]
        for cut, expected in zip(cuts, (volume[:, :, 3], volume[:, 2], volume[1])):
            self.assertEqual(cut.tolist(), expected.tolist())
        self.assertEqual([plane.title((1, 2, 3)) for plane in image_planes(3)], ["k = 3", "j = 2", "i = 1"])

    def test_other_axes(self):
        with self.assertRaisesRegex(ValueError, "2 or 3 axes are drawn, got 1"):
            image_planes(1)


if __name__ == "__main__":
    unittest.main()
