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

"""The pictures of the demo."""

from __future__ import annotations

import unittest

import torch
from matplotlib.figure import Figure

from demo.picture import draw_strip
from demo.work import Strip


class TestPicture(unittest.TestCase):
    def test_ends_of_a_slice(self):
        """The letters stand where the scan's axes, which point to the right and to the front, end."""
        ends = torch.zeros(4, 6, 4)
        ends[0, 0], ends[1, -1], ends[2, :, 0], ends[3, :, -1] = 1, 1, 1, 1  # left, right, back, front
        figure = Figure()
        draw_strip(Strip("four ends", ends, ("L", "R", "P", "A"), (0, 1)), figure)
        for axes in figure.axes[:4]:
            pixels = axes.images[0].get_array()
            self.assertEqual((pixels.shape, axes.images[0].origin), ((4, 6), "lower"))
            rows, columns = (torch.from_numpy(pixels.data).nonzero().double().mean(0) / torch.tensor([3, 5])).tolist()
            letter = next(text for text in axes.texts if text.get_text() == axes.get_title())
            for place, drawn in zip(letter.get_position(), (columns, rows)):
                self.assertAlmostEqual(place, drawn, delta=0.1)


if __name__ == "__main__":
    unittest.main()
