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
from itertools import product

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import PatchEmbed, PatchEmbeddingBlock
from monai.networks.blocks.patchembedding import FlattenPatches
from tests.differences import max_difference
from tests.scripting import assert_scripts

torch.set_num_threads(1)

SIZES = {
    "in_channels": 2,
    "img_size": (16, 24),
    "patch_size": 8,
    "hidden_size": 24,
    "num_heads": 4,
    "spatial_dims": 2,
}

IMAGES = [
    ("1d", {"spatial_dims": 1, "img_size": 24}),
    ("2d", {}),
    ("2d_unequal_patch", {"img_size": 16, "patch_size": (8, 2)}),
    ("3d", {"spatial_dims": 3, "img_size": (8, 4, 12), "patch_size": 4}),
    ("3d_unequal_patch", {"spatial_dims": 3, "img_size": (8, 6, 12), "patch_size": (4, 3, 2)}),
]

POSITIONS = [
    ("none", {"pos_embed_type": "none"}),
    ("learnable", {"pos_embed_type": "learnable"}),
    ("sincos", {"pos_embed_type": "sincos", "pos_embed_kwargs": {"temperature": 500.0}}),
    ("fourier", {"pos_embed_type": "fourier", "pos_embed_kwargs": {"scales": 2.0}}),
]

TEST_CASES = [
    (f"{image}_{proj_type}_{position}", {**SIZES, **size, "proj_type": proj_type, **options})
    for (image, size), proj_type, (position, options) in product(IMAGES, ("conv", "perceptron"), POSITIONS)
    if not (image == "1d" and position == "sincos")  # there is none
]

ILL_ARGUMENTS = [
    ("dropout above one", {"dropout_rate": 1.5}, "1.5"),
    ("dropout below zero", {"dropout_rate": -0.1}, "-0.1"),
    ("width not divisible", {"num_heads": 7}, "24.*7"),
    ("patch above image", {"patch_size": (8, 32)}, "32"),
    ("perceptron with a rest", {"img_size": 20, "proj_type": "perceptron"}, "20.*8"),
    ("unknown projection", {"proj_type": "linear"}, "linear"),
    ("unknown position", {"pos_embed_type": "rotary"}, "rotary"),
    ("too few sizes", {"img_size": (16,)}, "length"),
]

# name, arguments, shape of an image that does not fit
MISFITS = [
    ("smaller", {}, (2, 2, 8, 24)),
    ("larger", {}, (2, 2, 16, 32)),
    ("larger than one patch", {"img_size": 8}, (2, 2, 16, 16)),
    ("smaller for perceptron", {"proj_type": "perceptron"}, (2, 2, 8, 24)),
    ("without batch", {}, (2, 16, 24)),
]

# name, arguments, shape of an image that patches do not tile
UNTILED = [
    ("a rest", {"proj_type": "perceptron"}, (2, 2, 17, 24)),
    ("one axis more", {"proj_type": "perceptron"}, (2, 2, 16, 24, 8)),
    ("one axis less", {"proj_type": "perceptron"}, (2, 2, 24)),
]


def block(kwargs: dict) -> PatchEmbeddingBlock:
    torch.manual_seed(0)
    return PatchEmbeddingBlock(**kwargs).eval()


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def image_for(net: PatchEmbeddingBlock, batch: int = 2) -> torch.Tensor:
    return image(batch, 2, *net.img_size)


class TestPatchEmbeddingBlock(unittest.TestCase):
    @parameterized.expand(ILL_ARGUMENTS)
    def test_ill_arguments(self, _, kwargs, part):
        with self.assertRaisesRegex(ValueError, part):
            PatchEmbeddingBlock(**{**SIZES, **kwargs})

    @parameterized.expand([("none", True), ("learnable", True), ("sincos", False), ("fourier", False)])
    def test_which_positions_learn(self, pos_embed_type, learns):
        embeddings = block({**SIZES, "pos_embed_type": pos_embed_type}).position_embeddings
        self.assertEqual(embeddings.requires_grad, learns)
        self.assertEqual(bool((embeddings == 0).all()), pos_embed_type == "none")

    def test_rows_are_patches(self):
        x = image(2, 3, 4, 6, 10)
        rows = FlattenPatches((2, 3, 5))(x)
        corners = [(i, j, k) for i in (0, 2) for j in (0, 3) for k in (0, 5)]
        for number, (i, j, k) in enumerate(corners):
            patch = x[:, :, i : i + 2, j : j + 3, k : k + 5]
            self.assertTrue(torch.equal(rows[:, number], patch.movedim(1, -1).reshape(2, -1)))

    def test_dropout_in_training_only(self):
        net = block({**SIZES, "dropout_rate": 0.5})
        self.assertTrue(torch.equal(net(image_for(net)), net(image_for(net))))
        dropped = float((net.train()(image_for(net)) == 0).float().mean())
        self.assertAlmostEqual(dropped, 0.5, delta=0.1)

    @parameterized.expand(MISFITS)
    def test_image_that_does_not_fit(self, _, kwargs, shape):
        net = block({**SIZES, **kwargs})
        for run, error in ((net, ValueError), (torch.jit.script(net), torch.jit.Error)):
            with self.assertRaises(error) as caught:
                run(image(*shape))
            for part in (str(list(shape)), str(net.img_size), "img_size"):
                self.assertIn(part, str(caught.exception))

    @parameterized.expand(UNTILED)
    def test_image_that_patches_do_not_tile(self, _, kwargs, shape):
        net = block({**SIZES, **kwargs})
        for run, error in ((net, ValueError), (torch.jit.script(net), torch.jit.Error)):
            with self.assertRaises(error) as caught:
                run(image(*shape))
            for part in (str(list(shape)), str(net.patch_size), "proj_type='conv'"):
                self.assertIn(part, str(caught.exception))

    def test_images_of_another_size_have_another_embedding(self):
        """In place, as another parameter, or as a buffer; in a script, too, and without a warning."""
        wide = torch.randn(1, 8, 24)
        for change in ("data", "parameter", "buffer"):
            net = block(SIZES)
            if change == "data":
                net.position_embeddings.data = wide
            else:
                del net.position_embeddings
                if change == "parameter":
                    net.position_embeddings = nn.Parameter(wide)
                else:
                    net.register_buffer("position_embeddings", wide)
            x = image(2, 2, 16, 32)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                out = net(x)
            self.assertLessEqual(max_difference(out - wide, net.patch_embeddings(x).flatten(2).transpose(1, 2)), 1e-6)
            self.assertEqual(max_difference(torch.jit.script(net)(x), out), 0.0)
            with self.assertRaisesRegex(ValueError, "6 tokens.*8 position"):
                net(image_for(net))

    def test_one_vector_for_all_tokens(self):
        """Whoever wants no positions sets it; a block that was built for one token has no more."""
        net = block(SIZES)
        net.position_embeddings = nn.Parameter(torch.zeros(1, 1, 24))
        for shape in ((2, 2, 16, 24), (2, 2, 32, 32)):
            x = image(*shape)
            self.assertEqual(max_difference(net(x), net.patch_embeddings(x).flatten(2).transpose(1, 2)), 0.0)

    @parameterized.expand(TEST_CASES[::3])
    def test_script(self, _, kwargs):
        net = block(kwargs)
        assert_scripts(net, (image_for(net),), (image_for(net, 3),))

    def test_empty_batch(self):
        for proj_type in ("conv", "perceptron"):
            net = block({**SIZES, "proj_type": proj_type})
            self.assertEqual(net(image_for(net)[:0]).shape, (0, 6, 24))


class TestPatchEmbed(unittest.TestCase):
    def test_ill_arguments(self):
        for spatial_dims in (1, 4):
            with self.assertRaisesRegex(ValueError, str(spatial_dims)):
                PatchEmbed(spatial_dims=spatial_dims)


if __name__ == "__main__":
    unittest.main()
