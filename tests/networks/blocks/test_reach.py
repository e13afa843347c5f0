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

"""How far layers look: parts that get what a layer reaches give the outputs of the whole."""

from __future__ import annotations

import unittest

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks.reach import Reach, reach_of

LAYERS = [
    ("conv", lambda: nn.Conv1d(2, 3, 3, padding=1)),
    ("conv_same_even", lambda: nn.Conv1d(2, 3, 4, padding="same")),
    ("conv_valid", lambda: nn.Conv1d(2, 3, 5, padding="valid")),
    ("conv_wide", lambda: nn.Conv1d(2, 3, 5, padding=4)),
    ("conv_dilated", lambda: nn.Conv1d(2, 3, 3, padding=2, dilation=2)),
    ("conv_stride_2", lambda: nn.Conv1d(2, 3, 4, stride=2, padding=1)),
    ("conv_stride_3", lambda: nn.Conv1d(2, 3, 5, stride=3, padding=2, dilation=2)),
    ("conv_patches", lambda: nn.Conv1d(2, 3, 4, stride=4)),
    ("conv_gaps", lambda: nn.Conv1d(2, 3, 1, stride=2)),
    ("conv_wide_padding", lambda: nn.Conv1d(2, 3, 3, padding=4)),
    ("conv_wide_padding_stride_2", lambda: nn.Conv1d(2, 3, 3, stride=2, padding=7)),
    ("transposed_2", lambda: nn.ConvTranspose1d(2, 3, 2, stride=2)),
    ("transposed_3", lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, output_padding=1)),
    ("transposed_4", lambda: nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1)),
    ("transposed_5", lambda: nn.ConvTranspose1d(2, 3, 5, stride=2, padding=0)),
    ("transposed_dilated", lambda: nn.ConvTranspose1d(2, 3, 3, stride=3, padding=2, dilation=3, output_padding=2)),
    ("transposed_gaps", lambda: nn.ConvTranspose1d(2, 3, 1, stride=2, output_padding=1)),
    ("transposed_padding", lambda: nn.ConvTranspose1d(2, 3, 2, dilation=3, output_padding=2)),
    ("transposed_stride_1", lambda: nn.ConvTranspose1d(2, 3, 3, padding=1)),
    ("max_pool", lambda: nn.MaxPool1d(3, stride=2, padding=1)),
    ("avg_pool_padded", lambda: nn.AvgPool1d(3, stride=1, padding=1)),
    ("avg_pool", lambda: nn.AvgPool1d(2)),
    ("nearest", lambda: nn.Upsample(scale_factor=2, mode="nearest")),
    ("linear", lambda: nn.Upsample(scale_factor=(3.0,), mode="linear")),
    ("gelu", nn.GELU),
    ("prelu", nn.PReLU),
]


class Reflecting(nn.Conv1d):
    """Computes in a way of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).flip(2)


class Declared(nn.Module):
    """A layer of a user's, which says how far it looks."""

    def spatial_reach(self, axis: int) -> Reach:
        return Reach(before=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.pad(x[..., :-1], (1, 0))


class DerivedAnew(Declared):
    """Its forward is not the one for which the reach was declared."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(2)


UNKNOWN = [
    ("subclass", Reflecting(2, 3, 3, padding=1)),
    ("reflect", nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect")),
    ("norm", nn.GroupNorm(1, 2)),
    ("linear", nn.Linear(2, 3)),
    ("corners", nn.Upsample(scale_factor=2, mode="linear", align_corners=True)),
    ("to_a_size", nn.Upsample(size=8)),
    ("by_a_fraction", nn.Upsample(scale_factor=1.5)),
    ("ceil", nn.MaxPool1d(2, ceil_mode=True)),
    ("derived", DerivedAnew()),
    ("holds_layers", nn.Sequential(nn.Conv1d(2, 3, 3))),
]


class TestReach(unittest.TestCase):
    """``reach_of`` against the layers themselves."""

    @parameterized.expand(LAYERS)
    def test_parts_are_the_whole(self, _: str, make: type[nn.Module]) -> None:
        torch.manual_seed(0)
        layer = make().double()
        reach = reach_of(layer, 0)
        self.assertIsNotNone(reach)
        for size in (12, 17, 24):
            x = torch.randn(1, 2, size, dtype=torch.float64)
            whole = layer(x)
            self.assertEqual(reach.output_size(size), whole.shape[2])
            for begin in range(0, whole.shape[2], reach.up):
                for end in range(begin + reach.up, whole.shape[2] + reach.up, reach.up):
                    end = min(end, whole.shape[2])
                    first, last = reach.needed(begin, end, size)
                    part = layer(x[:, :, first:last]).narrow(2, reach.skipped(begin, first), end - begin)
                    torch.testing.assert_close(part, whole[:, :, begin:end], rtol=1e-12, atol=1e-12)

    @parameterized.expand([each for each in LAYERS if each[0].startswith(("transposed", "nearest", "linear"))])
    def test_parts_begin_anywhere(self, _: str, make: type[nn.Module]) -> None:
        torch.manual_seed(0)
        layer = make().double()
        reach, x = reach_of(layer, 0), torch.randn(1, 2, 7, dtype=torch.float64)
        whole = layer(x)
        for begin in range(whole.shape[2]):
            first, last = reach.needed(begin, begin + 1, 7)
            part = layer(x[:, :, first:last]).narrow(2, reach.skipped(begin, first), 1)
            torch.testing.assert_close(part, whole[:, :, begin : begin + 1], rtol=1e-12, atol=1e-12)

    @parameterized.expand(UNKNOWN)
    def test_what_is_not_known_has_no_reach(self, _: str, layer: nn.Module) -> None:
        self.assertIsNone(reach_of(layer, 0))

    def test_a_layer_says_its_own_reach(self) -> None:
        self.assertEqual(reach_of(Declared(), 0), Reach(before=1))

    def test_a_replaced_forward_has_no_reach(self) -> None:
        layer = nn.Conv1d(2, 3, 3)
        layer.forward = lambda x: x.cumsum(2)
        self.assertIsNone(reach_of(layer, 0))

    def test_parametrized_layers_keep_their_reach(self) -> None:
        layer = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 3, padding=1))
        self.assertEqual(reach_of(layer, 0), reach_of(nn.Conv1d(2, 3, 3, padding=1), 0))

    @parameterized.expand([({"before": -1},), ({"down": 0},), ({"down": 2, "up": 2},), ({"before": 1, "down": 2},)])
    def test_a_reach_that_cannot_be(self, arguments: dict) -> None:
        with self.assertRaisesRegex(ValueError, "should"):
            Reach(**arguments)


if __name__ == "__main__":
    unittest.main()
