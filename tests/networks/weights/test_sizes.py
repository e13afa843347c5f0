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
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from parameterized import parameterized

from monai.networks.blocks.pos_embed_utils import build_fourier_position_embedding, build_sincos_position_embedding
from monai.networks.state_dict.rules import Misfit
from monai.networks.weights.channels import adapt_in_channels, adapt_out_channels
from monai.networks.weights.inflate import depth_weights, inflate_kernel
from monai.networks.weights.patches import as_kernel, as_linear, resample_patches, told_patch
from monai.networks.weights.positions import place_grid, rebuild_positions, resample_positions, told_grid
from tests.differences import max_difference

# written by timm 1.0.31: python tests/parity/references/timm_sizes.py
TIMM = torch.load(Path(__file__).parents[2] / "testing_data" / "timm_sizes.pt", weights_only=True)

LAYERS = {
    "same": nn.Conv3d(2, 3, 3, padding=1),
    "strided": nn.Conv3d(2, 3, 3, stride=2, padding=1),
    "padded before": nn.Conv3d(2, 3, 3, stride=2),
    "dilated": nn.Conv3d(2, 3, 3, padding=2, dilation=2),
    "even": nn.Conv3d(2, 3, 4, stride=2, padding=1),
    "of one": nn.Conv3d(2, 3, 1),
    "named": nn.Conv3d(2, 3, 3, padding="same"),
    "circular": nn.Conv3d(2, 3, 3, padding=1, padding_mode="circular"),
    "transposed 2": nn.ConvTranspose3d(2, 3, 2, stride=2),
    "transposed 3": nn.ConvTranspose3d(2, 3, 3, stride=2, padding=1, output_padding=1),
    "transposed 4": nn.ConvTranspose3d(2, 3, 4, stride=2, padding=1),
}
AT_THE_BORDER = ("same", "strided", "dilated", "even", "named", "transposed 3", "transposed 4")


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class TestPositions(unittest.TestCase):
    @parameterized.expand([(case,) for case in TIMM["positions"]])
    def test_as_timm(self, case):
        found = resample_positions(case["values"], case["new"], case["old"], class_tokens=case["first"])
        self.assertLessEqual(max_difference(found, case["timm"]), 1e-6)

    @parameterized.expand([(case,) for case in TIMM["positions"] if case["first"] == 0])
    def test_volumes_constant_along_the_third_axis(self, case):
        values = case["values"].repeat_interleave(3, dim=1)
        found = resample_positions(values, (*case["new"], 5), (*case["old"], 3))
        expected = case["timm"].repeat_interleave(5, dim=1)
        self.assertLessEqual(max_difference(found, expected), 1e-6)

    @parameterized.expand([((5,), (8,)), ((4, 3, 6), (4, 5, 2))])
    def test_axes_one_by_one(self, old, new):
        x = randn(1, 2, *old).double()
        expected = x
        for axis, size in enumerate(new):
            moved = expected.movedim(2 + axis, -1)
            rows = moved.reshape(1, 1, -1, moved.shape[-1])
            flat = F.interpolate(rows, size=(rows.shape[2], size), mode="bicubic", antialias=True)
            expected = flat.reshape(*moved.shape[:-1], size).movedim(-1, 2 + axis)
        found = resample_positions(x.flatten(2).transpose(1, 2), new, old)
        self.assertLessEqual(max_difference(found, expected.flatten(2).transpose(1, 2)), 1e-12)

    def test_the_same_grid_is_the_same_tensor(self):
        values = randn(1, 13, 4)
        self.assertIs(resample_positions(values, (3, 4), (3, 4), class_tokens=1), values)
        self.assertIs(
            resample_positions(values, (3, 4), (3, 4), 1, *place_grid((3, 4), (3, 4), (16, 8), (16, 8))), values
        )

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types(self, dtype):
        values = randn(1, 12, 4).to(dtype)
        found = resample_positions(values, (5, 5), (3, 4))
        self.assertEqual(found.dtype, dtype)
        self.assertEqual(max_difference(found, resample_positions(values.double(), (5, 5), (3, 4)).to(dtype)), 0.0)

    def test_by_spacing(self):
        # a ramp keeps its slope per millimeter, and the middle its value
        ramp = torch.arange(16.0)[None, :, None]
        begins, steps = place_grid((16,), (8,), (10.0,), (5.0,))
        found = resample_positions(ramp, (8,), (16,), 0, begins, steps)[0, :, 0]
        torch.testing.assert_close(found, 7.5 + 0.5 * (torch.arange(8.0) - 3.5))
        crop = resample_positions(ramp, (4,), (16,), 0, *place_grid((16,), (4,), (10.0,), (10.0,)))
        self.assertEqual(crop[0, :, 0].tolist(), [6.0, 7.0, 8.0, 9.0])

    def test_outside_of_the_field_is_refused(self):
        begins, steps = place_grid((4, 4), (4, 6), (10.0, 10.0), (10.0, 10.0))
        with self.assertRaisesRegex(Misfit, r"axis 1 the 6 tokens lie from -0.50 to 4.50"):
            resample_positions(randn(1, 16, 2), (4, 6), (4, 4), 0, begins, steps)

    @parameterized.expand([(2, 48), (2, 24), (3, 48)])
    def test_sinusoidal_positions_are_rebuilt(self, dims, width):
        old, new = (4, 5, 3)[:dims], (7, 2, 4)[:dims]
        values = build_sincos_position_embedding(list(old), width, dims)
        built = build_sincos_position_embedding(list(new), width, dims)
        self.assertLessEqual(max_difference(rebuild_positions(values, new, old, "sincos"), built), 1e-5)
        cool = build_sincos_position_embedding(list(old), width, dims, temperature=100.0)
        self.assertIsNone(rebuild_positions(cool, new, old, "sincos"))
        self.assertIsNotNone(rebuild_positions(cool, new, old, "sincos", temperature=100.0))
        self.assertIsNone(rebuild_positions(values.flip(2), new, old, "sincos"))
        half = rebuild_positions(values, old, old, "sincos", begins=[0.25] * dims, steps=[0.5] * dims)
        self.assertLessEqual(max_difference(half[0, 0], values[0, 0]), 1e-6)  # its first token lies where the first lay

    def test_fourier_features_are_rebuilt(self):
        torch.manual_seed(0)
        values = build_fourier_position_embedding([12, 14], 16, 2)
        torch.manual_seed(0)
        built = build_fourier_position_embedding([20, 9], 16, 2)
        self.assertLessEqual(max_difference(rebuild_positions(values, (20, 9), (12, 14), "fourier"), built), 1e-4)
        self.assertIsNone(rebuild_positions(randn(1, 168, 16), (20, 9), (12, 14), "fourier"))
        torch.manual_seed(0)
        coarse = build_fourier_position_embedding([3, 3], 16, 2, scales=4.0)
        self.assertIsNone(rebuild_positions(coarse, (5, 5), (3, 3), "fourier"))

    def test_grid_of_a_file(self):
        self.assertEqual(told_grid(196, 2), (14, 14))
        self.assertEqual(told_grid(7, 1), (7,))
        self.assertEqual(told_grid(12, 2, (3, 4)), (3, 4))
        for tokens, dims, grid, text in (
            (12, 2, None, "12 position"),
            (216, 3, None, r"grid=\(6, 6, 6\) if it is a cube"),
            (12, 2, (3, 5), r"\(3, 5\).*12"),
            (64, 3, (8, 8), "3-D"),
        ):
            with self.assertRaisesRegex(Misfit, text):
                told_grid(tokens, dims, grid)
        with self.assertRaisesRegex(Misfit, "1 class tokens"):
            resample_positions(randn(1, 12, 2), (2, 2), (3, 4), class_tokens=1)


class TestPatches(unittest.TestCase):
    @parameterized.expand([(case,) for case in TIMM["patches"]])
    def test_as_timm(self, case):
        scale = float(case["timm"].abs().max())
        found = resample_patches(case["weight"], case["new"])
        self.assertLessEqual(max_difference(found, case["timm"]), 1e-6 * scale)
        old = case["weight"].shape[2:]
        linear = resample_patches(as_linear(case["weight"]), case["new"], old)
        self.assertLessEqual(max_difference(as_kernel(linear, case["new"]), case["timm"]), 1e-6 * scale)

    def test_three_axes(self):
        case = TIMM["patches"][0]
        weight = case["weight"][..., None].repeat(1, 1, 1, 1, 4)
        slices = resample_patches(weight, (*case["new"], 4)).unbind(-1)
        for each in slices:
            self.assertLessEqual(max_difference(each, case["timm"]), 1e-5)

    def test_same_size_and_misfits(self):
        weight = randn(2, 3, 4, 4)
        self.assertIs(resample_patches(weight, (4, 4)), weight)
        with self.assertRaisesRegex(Misfit, "3 axes"):
            resample_patches(weight, (4, 4, 4))
        with self.assertRaisesRegex(Misfit, r"\(5, 5\)"):
            resample_patches(randn(2, 48), (4, 4), (5, 5))
        self.assertEqual(told_patch(48, 3, 2), (4, 4))
        for columns, channels, dims in ((48, 1, 2), (64, 1, 3), (47, 3, 2)):
            with self.assertRaisesRegex(Misfit, "set_input_size"):
                told_patch(columns, channels, dims)


class TestChannels(unittest.TestCase):
    @parameterized.expand([(how, number) for how in ("mean", "repeat") for number in (1, 3, 4, 6)])
    def test_equal_channels_give_the_same(self, how, number):
        weight, x = randn(2, 3, 3, 3), randn(1, 1, 8, 8)
        found = F.conv2d(x.expand(-1, number, -1, -1), adapt_in_channels(weight, number, how))
        self.assertLessEqual(max_difference(found, F.conv2d(x.expand(-1, 3, -1, -1), weight)), 1e-5)

    @parameterized.expand([(case,) for case in TIMM["channels"] if case["number"] in (1, 6)])
    def test_repeat_as_timm(self, case):
        found = adapt_in_channels(case["weight"], case["number"], "repeat")
        self.assertLessEqual(max_difference(found, case["timm"]), 1e-6)

    def test_chosen_channels(self):
        weight, own = randn(2, 3, 4), torch.full((2, 2, 4), 7.0)
        found = adapt_in_channels(weight, 2, (2, None), own)
        self.assertTrue(torch.equal(found[:, 0], weight[:, 2]) and torch.equal(found[:, 1], own[:, 1]))
        head = adapt_out_channels(randn(5, 8), (None, 4, 0), torch.zeros(3, 8))
        self.assertTrue(torch.equal(head, torch.stack([torch.zeros(8), randn(5, 8)[4], randn(5, 8)[0]])))

    @parameterized.expand(
        [
            ("some left out", 2, "repeat", "without leaving some out"),
            ("none of the old", 1, (3,), r"\[3\], and there are 3"),
            ("too few", 2, (0,), "1 indices"),
            ("nothing to leave", 1, (None,), "are not there"),
        ]
    )
    def test_refused(self, _, number, how, text):
        with self.assertRaisesRegex(Misfit, text):
            adapt_in_channels(randn(2, 3, 4), number, how)


class TestInflate(unittest.TestCase):
    @parameterized.expand([(name, how) for name in LAYERS for how in ("average", "center")])
    def test_equal_slices(self, name, how):
        layer = LAYERS[name]
        flat = layer.weight.detach()[..., 0]
        kind = "conv_transpose" if isinstance(layer, nn.ConvTranspose3d) else "conv"
        options = {"bias": layer.bias, "stride": layer.stride[0], "dilation": layer.dilation[0]}
        options["padding"] = layer.padding if isinstance(layer.padding, str) else layer.padding[0]
        if kind == "conv_transpose":
            options["output_padding"] = layer.output_padding[0]
        x = randn(1, 2, 8, 8)
        if layer.padding_mode == "circular":
            x_flat, options["padding"] = F.pad(x, (1, 1, 1, 1), mode="circular"), 0
        else:
            x_flat = x
        expected = getattr(F, f"{kind}2d")(x_flat, flat, **options)
        layer.weight.data.copy_(inflate_kernel(flat, layer, how))
        found = layer(x[..., None].expand(-1, -1, -1, -1, 8)).detach()
        inner = found[..., 1:-1] if how == "average" and name not in ("dilated",) else found
        inner = found[..., 2:-2] if how == "average" and name == "dilated" else inner
        self.assertLessEqual(max_difference(inner, expected.detach()[..., None].expand_as(inner)), 1e-5)
        if how == "average" and name in AT_THE_BORDER:
            self.assertGreater(max_difference(found, expected.detach()[..., None].expand_as(found)), 1e-3)

    @parameterized.expand(
        [
            ("padding alone", nn.Conv3d(1, 1, 1, padding=1), "padding alone"),
            ("holes", nn.ConvTranspose3d(1, 1, 3, stride=2, output_padding=1), "get nothing"),
            ("smaller than its stride", nn.ConvTranspose3d(1, 1, 1, stride=2), "not inflated"),
        ]
    )
    def test_refused(self, _, layer, text):
        with self.assertRaisesRegex(Misfit, text):
            depth_weights(layer, "center")


if __name__ == "__main__":
    unittest.main()
