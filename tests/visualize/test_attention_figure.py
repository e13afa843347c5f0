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
import warnings
from unittest import mock

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from parameterized import parameterized

from monai.visualize.attention.figure import plot_attention
from monai.visualize.attention.maps import AttentionMap
from monai.visualize.attention.on_image import image_planes, to_world
from tests.visualize.made_maps import AFFINES, FLIPPED, captured, made_map
from tests.visualize.pointing import SIZE, SPACING

torch.set_num_threads(1)


def drawn(figure) -> np.ndarray:
    """The pixels of a figure, the row at the top first."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).astype(float)


def overlays(figure) -> list:
    """The panels with attention."""
    return [axes for axes in figure.findobj(Axes) if len(axes.get_images()) == 2]


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


class TestFigure(unittest.TestCase):
    @parameterized.expand(AFFINES)
    def test_peak_is_drawn_where_it_lies(self, _, affine):
        """The brightest pixels of the picture itself lie right, anterior and inferior, where the network looks."""
        corners = [voxel for voxel in np.ndindex(*SIZE) if all(v in (1, n - 2) for v, n in zip(voxel, SIZE))]
        center = np.asarray(to_world(affine, [(n - 1) / 2 for n in SIZE]))
        (voxel,) = [v for v in corners if ((np.asarray(to_world(affine, v)) > center) == (True, True, False)).all()]
        image, maps = captured(voxel, [voxel], affine)
        figure = plot_attention(torch.zeros_like(image), maps, voxel)
        pixels = drawn(figure)
        panels = overlays(figure)
        self.assertEqual(len(panels), 3)
        for axes, (right, up) in zip(panels, ((True, True), (True, False), (True, False))):
            box = axes.get_window_extent()
            x0, x1, y0, y1 = (round(value) for value in (box.x0, box.x1, len(pixels) - box.y1, len(pixels) - box.y0))
            inner = pixels[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3]
            yellow = np.where((inner[..., 0] > 120) & (inner[..., 2] < 110), inner[..., :2].sum(-1), 0)
            rows, columns = np.nonzero(yellow >= 0.9 * yellow.max())
            self.assertEqual(columns.mean() > inner.shape[1] / 2, right)
            self.assertEqual(rows.mean() < inner.shape[0] / 2, up)

    @parameterized.expand([*AFFINES, ("no affine", None)])
    def test_array_of_the_overlay(self, _, affine):
        voxel = (13, 2, 5)
        image, maps = captured(voxel, [voxel], affine)
        figure = plot_attention(image, maps, voxel, mode="nearest")
        for axes, plane in zip(overlays(figure), image_planes(3, affine)):
            array = axes.get_images()[1].get_array()
            column, row = plane.point(voxel, SIZE)
            self.assertGreater(array[row, column], 0.99)
            self.assertEqual(
                int((array > 0.5).sum()), int(np.prod([(4, 4, 2)[axis] for axis in (plane.across, plane.up)]))
            )
            self.assertEqual(axes.lines[0].get_xydata().tolist(), [[column, row]])
            shown = axes.get_images()[0].get_array()
            self.assertAlmostEqual(float(shown[row, column]), float(image[(0, *voxel)]), places=6)

    def test_texts(self):
        image, maps = captured((13, 2, 5), [(1, 1, 1)], FLIPPED)
        found = texts(plot_attention(image, maps, (1, 1, 1)))
        for text in (
            "image, with the query at voxel (1, 1, 1)",
            "blocks.0.attn: maximum 1 at voxel (14, 2, 5)",
            *("axial, k = 1", "coronal, j = 1", "sagittal, i = 1"),
            *("attention weight", "image intensity"),
        ):
            self.assertIn(text, found)
        letters = [text for text in found if text in tuple("LRPAIS")]
        self.assertEqual("".join(letters), "LRPALRISPAIS" * 2)
        self.assertIn("relevance", texts(plot_attention(image, maps, (1, 1, 1), label="relevance")))

    def test_other_names_of_voxels(self):
        image, maps = captured((13, 2, 5), [(1, 1, 1)], FLIPPED)
        figure = plot_attention(image, maps, (1, 1, 1), name_voxel=lambda voxel: tuple(place + 100 for place in voxel))
        found = texts(figure)
        self.assertIn("image, with the query at voxel (101, 101, 101)", found)
        self.assertIn("blocks.0.attn: maximum 1 at voxel (114, 102, 105)", found)
        self.assertIn("axial", found)  # the axes of the other names may be others

    def test_texts_without_an_affine(self):
        image, maps = captured((13, 2, 5), [(1, 1, 1)])
        found = texts(plot_attention(image, maps))
        self.assertIn("image, with the query at voxel (2, 2, 1)", found)  # the center of the only token
        self.assertEqual([text for text in found if text in tuple("LRPAIS")], [])
        for text in ("axis 2 →", "axis 1 →", "← axis 0", "k = 1"):
            self.assertIn(text, found)

    def test_through_the_maximum(self):
        image, maps = captured((13, 2, 5), "all", FLIPPED)
        figure = plot_attention(image, maps)
        self.assertEqual(
            [axes.get_title() for axes in overlays(figure)], ["axial, k = 5", "coronal, j = 2", "sagittal, i = 14"]
        )
        self.assertEqual([len(axes.lines) for axes in overlays(figure)], [0, 0, 0])
        self.assertNotIn("image intensity", texts(figure))

    def test_2d(self):
        attention = made_map((2, 3), queries=(4,))
        image = torch.rand(3, 8, 12)
        figure = plot_attention(image, attention, channel=2)
        left, right = (axes for axes in figure.findobj(Axes) if axes.get_images())
        self.assertTrue(np.allclose(left.get_images()[0].get_array(), image[2].flip(0)))
        self.assertEqual(len(right.get_images()), 2)
        self.assertEqual(left.lines[0].get_xydata().tolist(), [[6, 1]])  # voxel (6, 6): two from the bottom
        self.assertIn("image", texts(figure))
        self.assertEqual(texts(figure).count("attention weight"), 1)

    def test_rows(self):
        maps = [made_map((2, 3), heads=2, queries=(4,)), made_map((4, 6), heads=3, queries=(4,))]
        image = torch.rand(1, 8, 12)
        self.assertEqual(len(overlays(plot_attention(image, maps))), 2)
        figure = plot_attention(image, maps, head="all")
        self.assertEqual(len(overlays(figure)), 5)
        self.assertTrue(any(text.startswith("block, head 2: maximum ") for text in texts(figure)))
        with self.assertRaisesRegex(ValueError, "250 rows do not fit into a figure, 100 do"):
            plot_attention(image, maps * 50, head="all")

    def test_spacing(self):
        image, maps = captured((13, 2, 5), [(1, 1, 1)], FLIPPED)
        figure = plot_attention(image, maps, (1, 1, 1))
        drawn(figure)
        sizes = [size * spacing for size, spacing in zip(SIZE, SPACING)]
        for axes, (across, up) in zip(overlays(figure), ((0, 1), (0, 2), (1, 2))):
            box = axes.get_window_extent()
            self.assertAlmostEqual(box.height / box.width, sizes[up] / sizes[across], delta=0.02)

    @parameterized.expand(
        [
            ("volume", lambda: captured((13, 2, 5), [(1, 1, 1)], FLIPPED)),
            ("volume without an affine", lambda: captured((13, 2, 5), [(1, 1, 1)])),
            ("flat", lambda: (torch.rand(1, 8, 120), [made_map((2, 3), queries=(4,))])),
            ("tall", lambda: (torch.rand(1, 120, 8), [made_map((2, 3), queries=(4,))])),
            (
                "long name",
                lambda: (torch.rand(1, 8, 12), [AttentionMap(**{**vars(made_map((2, 3))), "name": "part." * 50})]),
            ),
        ]
    )
    def test_nothing_is_clipped(self, _, make):
        image, maps = make()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure = plot_attention(image, maps)
            drawn(figure)
        boxes = [text.get_window_extent() for part in figure.subfigs for text in part.texts]
        boxes += [axes.get_tightbbox() for axes in figure.findobj(Axes)]
        self.assertGreater(len(boxes), 2)
        for box in boxes:
            self.assertTrue(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1, box)
            self.assertTrue(box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1, box)

    @parameterized.expand(
        [
            ("constant", torch.full((1, 8, 12), 3.0)),
            ("without a finite voxel", torch.full((1, 8, 12), float("nan"))),
            ("half", torch.rand(1, 8, 12).half()),
            ("integers", torch.randint(0, 9, (1, 8, 12))),
        ]
    )
    def test_images_and_maps_without_contrast(self, _, image):
        attention = made_map((2, 3), queries=(4,))
        flat = AttentionMap(**{**vars(attention), "weights": torch.zeros_like(attention.weights)})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for maps in (attention, flat):
                self.assertGreater(drawn(plot_attention(image, maps)).std(), 0)

    def test_errors(self):
        attention, image = made_map((2, 3), queries=(4,)), torch.rand(1, 8, 12)
        with self.assertRaisesRegex(ValueError, "no map to draw"):
            plot_attention(image, [])
        with self.assertRaisesRegex(ValueError, "has 1 channels, there is no 1"):
            plot_attention(image, attention, channel=1)
        with self.assertRaisesRegex(ValueError, "2 or 3 axes are drawn, got 1"):
            plot_attention(image[0], attention)
        with self.assertRaisesRegex(ValueError, "head should be a number, 'all', or None for the mean, got 'first'"):
            plot_attention(image, attention, head="first")
        with self.assertRaisesRegex(ValueError, r"has the grid \(2, 3\), and the image the size \(8, 12, 4\)"):
            plot_attention(torch.rand(1, 8, 12, 4), attention)
        with mock.patch("monai.visualize.attention.figure.optional_import", return_value=(None, False)):
            with self.assertRaisesRegex(ImportError, "pip install matplotlib"):
                plot_attention(image, attention)


if __name__ == "__main__":
    unittest.main()
