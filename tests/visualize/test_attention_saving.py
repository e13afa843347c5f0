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

import tempfile
import unittest
from pathlib import Path
from unittest import mock

import nibabel
import numpy as np
import torch
from parameterized import parameterized

from monai.data import MetaTensor
from monai.visualize.attention import AttentionMap, capture_attention, save_attention, upsample_attention
from monai.visualize.attention.on_image import to_world
from tests.visualize.pointing import PATCH, SIZE, pointing_vit, tilted, turned_affines

torch.set_num_threads(1)
VOXEL, QUERY = (13, 2, 5), (1, 1, 1)


def captured(heads: int = 1, queries=(QUERY,)) -> list[AttentionMap]:
    """What a network attends to that looks at ``VOXEL``."""
    net = pointing_vit(VOXEL, hidden_size=8 * heads, num_heads=heads)
    with torch.no_grad(), capture_attention(net, queries=list(queries)) as capture:
        net(torch.zeros(1, 1, *SIZE))
    return capture.maps


def image(affine: np.ndarray | None = None) -> torch.Tensor:
    made = torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(0))
    return made if affine is None else MetaTensor(made, affine=torch.as_tensor(affine))


class SavingCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def assert_nothing_written(self):
        self.assertEqual(list(self.folder.iterdir()), [])


class TestNifti(SavingCase):
    @parameterized.expand([*[(str(i), affine) for i, affine in enumerate(turned_affines()[::5])], ("tilted", None)])
    def test_peak_lies_at_its_world_coordinates(self, _, affine):
        """Read by nibabel alone: the cell of the peak is centered where the network looks, in the world."""
        affine = tilted(turned_affines()[7]) if affine is None else affine
        path = self.folder / "attention.nii.gz"
        save_attention(path, captured(), image(affine), mode="nearest")
        volume = nibabel.load(path)
        self.assertTrue(np.allclose(volume.affine, affine, atol=1e-5))
        self.assertEqual(volume.shape, SIZE)
        peak = np.argwhere(volume.get_fdata() > 0.5)
        self.assertEqual(len(peak), np.prod(PATCH))
        self.assertGreater(volume.get_fdata()[VOXEL], 0.99)
        center = nibabel.affines.apply_affine(volume.affine, peak).mean(0)
        cell = [(v // p + 0.5) * p - 0.5 for v, p in zip(VOXEL, PATCH)]
        self.assertTrue(np.allclose(center, to_world(affine, cell), atol=1e-3))

    def test_linear(self):
        path, maps = self.folder / "attention.nii", captured()
        save_attention(path, maps, image(np.eye(4)))
        expected = upsample_attention(maps[0], SIZE)[0, 0, 0]
        self.assertTrue(np.allclose(nibabel.load(path).get_fdata(), expected.numpy(), atol=1e-6))

    def test_volumes(self):
        path, maps = self.folder / "attention.nii", captured(heads=2)
        for head, count in (("all", 4), (None, 2), (1, 2)):
            save_attention(path, maps * 2, image(np.eye(4)), QUERY, head)
            self.assertEqual(nibabel.load(path).shape, (*SIZE, count))
        self.assertEqual(bytes(nibabel.load(path).header["descrip"]).rstrip(b"\0"), b"blocks.0.attn, blocks.0.attn")

    @parameterized.expand(
        [
            (np.array([[2.0, 0, 3], [0, -2, 5], [0, 0, 1]]), np.array([[2.0, 0, 0, 3], [0, -2, 0, 5], [0, 0, 1, 0]])),
            (np.diag([1.0, 2, 3, 1]), np.diag([1.0, 2, 3, 1])[:3]),
            (None, np.eye(4)[:3]),
        ]
    )
    def test_2d(self, affine, expected):
        weights = torch.rand(1, 1, 1, 6)
        attention = AttentionMap("block", 0, weights, torch.tensor([0]), (2, 3), (2, 3), 0, (8, 12))
        path, flat = self.folder / "attention.nii", torch.rand(1, 8, 12)
        if affine is not None:
            flat = MetaTensor(flat, affine=torch.as_tensor(affine))
        save_attention(path, attention, flat)
        volume = nibabel.load(path)
        self.assertEqual(volume.shape, (8, 12, 1))
        self.assertTrue(np.allclose(volume.affine[:3], expected))

    def test_equal_runs_equal_files(self):
        paths = [self.folder / name for name in ("a.nii.gz", "b.nii.gz")]
        for path in paths:
            save_attention(path, captured(), image(np.eye(4)))
        self.assertEqual(paths[0].read_bytes(), paths[1].read_bytes())


class TestArrays(SavingCase):
    def test_npy(self):
        path, maps = self.folder / "attention.npy", captured(heads=2)
        save_attention(path, maps, query=QUERY, head="all")
        array = np.load(path)
        self.assertEqual(array.shape, (1, 2, 4, 3, 4))
        self.assertTrue(np.array_equal(array[0], maps[0].on_grid()[0, :, 0].numpy()))
        save_attention(path, maps)
        self.assertTrue(np.allclose(np.load(path)[0, 0], array[0].mean(0)))

    def test_npz(self):
        path, maps = self.folder / "attention.npz", captured()
        again = AttentionMap(**{**vars(maps[0]), "call": 1})
        save_attention(path, [maps[0], again], image(np.diag([2.0, 3, 4, 1])))
        with np.load(path) as arrays:
            self.assertEqual(sorted(arrays), ["affine", "blocks.0.attn, call 0", "blocks.0.attn, call 1"])
            self.assertTrue(np.array_equal(arrays["affine"], np.diag([2.0, 3, 4, 1])))
            self.assertEqual(arrays["blocks.0.attn, call 1"].shape, (1, 4, 3, 4))
        save_attention(path, maps)
        with np.load(path) as arrays:
            self.assertEqual(sorted(arrays), ["blocks.0.attn"])

    def test_grids_of_several_sizes(self):
        small = AttentionMap("small", 0, torch.rand(1, 1, 1, 4), torch.tensor([0]), (2, 2, 1), (2, 2, 1), 0, SIZE)
        with self.assertRaisesRegex(ValueError, r"shapes .*\(1, 2, 2, 1\).*name the file \*.npz"):
            save_attention(self.folder / "attention.npy", [*captured(), small])
        self.assert_nothing_written()
        save_attention(self.folder / "attention.npz", [*captured(), small])


class TestFiles(SavingCase):
    def test_png(self):
        path = self.folder / "attention.PNG"
        save_attention(path, captured(), image(np.eye(4)), label="weight")
        self.assertEqual(path.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")

    def test_suffix(self):
        known = r"name it \*.png, \*.npy, \*.npz, \*.nii, \*.nii.gz"
        for name in ("attention.jpg", "attention", "attention.gz"):
            with self.assertRaisesRegex(ValueError, f"'.*{name}' has no suffix that tells a format: {known}"):
                save_attention(self.folder / name, captured(), image())
        self.assert_nothing_written()

    @parameterized.expand([("png", "a figure"), ("nii", "a NIfTI volume")])
    def test_no_image(self, suffix, what):
        with self.assertRaisesRegex(ValueError, f"{what} needs the image"):
            save_attention(self.folder / f"attention.{suffix}", captured())
        self.assert_nothing_written()

    def test_no_map(self):
        for suffix in ("png", "npy", "npz", "nii.gz"):
            with self.assertRaisesRegex(ValueError, "no map"):
                save_attention(self.folder / f"attention.{suffix}", [], image())
        self.assert_nothing_written()

    @parameterized.expand([("png", "matplotlib"), ("nii.gz", "nibabel")])
    def test_missing_package(self, suffix, package):
        with mock.patch("monai.visualize.attention.saving.optional_import", return_value=(None, False)):
            with self.assertRaisesRegex(ImportError, f"pip install {package}"):
                save_attention(self.folder / f"attention.{suffix}", captured(), image())
        self.assert_nothing_written()

    def test_places(self):
        path = self.folder / "attention.npy"
        save_attention(path, captured())
        before = path.read_bytes()
        with self.assertRaisesRegex(FileExistsError, "exists"):
            save_attention(path, captured(heads=2), overwrite=False)
        self.assertEqual(path.read_bytes(), before)
        with self.assertRaisesRegex(FileNotFoundError, "there is no folder"):
            save_attention(self.folder / "absent" / "attention.npy", captured())
        (self.folder / "folder.npy").mkdir()
        with self.assertRaisesRegex(IsADirectoryError, "is a folder"):
            save_attention(self.folder / "folder.npy", captured())

    @parameterized.expand([("npy", "numpy.save"), ("npz", "numpy.savez"), ("png", "matplotlib.figure.Figure.savefig")])
    def test_nothing_is_kept_of_a_failed_write(self, suffix, function):
        path = self.folder / f"attention.{suffix}"
        path.write_bytes(b"before")

        def fail(*args, **kwargs):
            file = next(value for value in args if hasattr(value, "write"))
            file.write(b"half")
            raise OSError(28, "No space left on device")

        with mock.patch(function, side_effect=fail), self.assertRaisesRegex(OSError, "nothing of it was kept"):
            save_attention(path, captured(), image())
        self.assertEqual([item.name for item in self.folder.iterdir()], [path.name])
        self.assertEqual(path.read_bytes(), b"before")


if __name__ == "__main__":
    unittest.main()
