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

import copy
import io
import pickle
import unittest

import pytest
import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.blocks import PatchEmbeddingBlock, TransformerBlock
from monai.networks.blocks.token_resampling import positions_on_grid
from monai.networks.nets import UNETR, MaskedAutoEncoderViT, ViT, ViTAutoEnc
from monai.networks.state_dict.release import release_arguments, release_state_dict
from monai.visualize import capture_attention
from tests.differences import max_difference

torch.set_num_threads(1)

SIZES = {
    "in_channels": 1,
    "img_size": (32, 24),
    "patch_size": 8,
    "hidden_size": 24,
    "mlp_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "spatial_dims": 2,
}
KINDS = [(proj, pos) for proj in ("conv", "perceptron") for pos in ("learnable", "sincos", "fourier", "none")]
VITS = {
    "vit": (ViT, {**SIZES, "classification": True}),
    "autoencoder": (ViTAutoEnc, {**SIZES, "img_size": 16, "patch_size": 4}),
    "unetr": (UNETR, {"in_channels": 1, "out_channels": 1, "img_size": 16, "spatial_dims": 2}),
    "masked": (MaskedAutoEncoderViT, {**SIZES, "decoder_hidden_size": 24, "decoder_num_heads": 4}),
    "block": (TransformerBlock, {"hidden_size": 24, "mlp_dim": 32, "num_heads": 4}),
}


def network(**kwargs) -> ViT:
    torch.manual_seed(0)
    return ViT(**{**SIZES, **kwargs}).eval()


def axes() -> tuple:
    """Dynamic shapes of an image whose sizes are multiples of a patch."""
    height, width = (8 * torch.export.Dim(name, min=1, max=20) for name in ("height", "width"))
    return ({2: height, 3: width},)


def image(*size: int) -> torch.Tensor:
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1))


class TestNormEps(unittest.TestCase):
    @parameterized.expand(VITS)
    def test_every_norm_has_it(self, name):
        cls, arguments = VITS[name]
        if name == "unetr":
            arguments = {**arguments, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4, "feature_size": 4}
        for given, expected in (({}, 1e-5), ({"norm_eps": 1e-6}, 1e-6)):
            net = cls(**arguments, **given)
            norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
            self.assertEqual({norm.eps for norm in norms}, {expected})
            self.assertGreater(len(norms), 2)

    def test_it_changes_the_outputs(self):
        x = 1e-3 * image(32, 24)
        self.assertGreater(max_difference(network(norm_eps=1e-2)(x)[0], network()(x)[0]), 1e-3)

    def test_the_release_cannot_have_it(self):
        arguments = {**SIZES, "norm_eps": 1e-6}
        with self.assertRaisesRegex(ValueError, "norm_eps=1e-06"):
            net = network(norm_eps=1e-6)
            release_state_dict(net, net.state_dict())
        net = network(norm_eps=1e-5, dynamic_size=True)
        release_state_dict(net, net.state_dict())
        self.assertEqual(release_arguments(net, {**arguments, "dynamic_size": True}), SIZES)


class TestDynamicSize(unittest.TestCase):
    @parameterized.expand(KINDS)
    def test_other_sizes(self, proj, pos):
        net = network(proj_type=proj, pos_embed_type=pos, dynamic_size=True)
        nn.init.normal_(net.patch_embedding.position_embeddings) if pos == "none" else None
        fixed = network(proj_type=proj, pos_embed_type=pos, img_size=(16, 40))
        state = net.state_dict()
        block = net.patch_embedding
        key = "patch_embedding.position_embeddings"
        state[key] = positions_on_grid(block.position_embeddings, [4, 3], [2, 5], pos, 10000.0)
        fixed.load_state_dict(state)
        self.assertLessEqual(max_difference(net(image(16, 40))[0], fixed(image(16, 40))[0]), 1e-6)
        own = network(proj_type=proj, pos_embed_type=pos)
        own.load_state_dict(net.state_dict())
        self.assertEqual(max_difference(net(image(32, 24))[0], own(image(32, 24))[0]), 0.0)

    def test_same_number_of_patches_on_another_grid(self):
        net, other = network(dynamic_size=True), network()
        self.assertGreater(max_difference(net(image(24, 32))[0], other(image(24, 32))[0]), 1e-3)

    def test_fixed_positions_follow_their_formula(self):
        net = network(pos_embed_type="sincos", dynamic_size=True)
        built = network(pos_embed_type="sincos", img_size=(48, 8)).patch_embedding.position_embeddings
        self.assertLessEqual(max_difference(net.patch_embedding.positions_on([6, 1]), built), 1e-6)
        foreign = nn.Parameter(net.patch_embedding.position_embeddings.flip(2))  # of another package's order
        net.patch_embedding.position_embeddings = foreign
        expected = positions_on_grid(foreign, [4, 3], [6, 1], "learnable", 0.0)
        self.assertEqual(max_difference(net.patch_embedding.positions_on([6, 1]), expected), 0.0)

    def test_another_size_is_refused_by_default(self):
        with self.assertRaisesRegex(ValueError, "dynamic_size=True.*set_input_size"):
            network()(image(32, 32))

    @parameterized.expand([("3 axes", (2, 1, 8, 8, 8)), ("smaller than a patch", (2, 1, 4, 32))])
    def test_no_image_of_this_network(self, _, shape):
        with self.assertRaises((ValueError, RuntimeError)):
            network(dynamic_size=True)(torch.ones(shape))

    def test_positions_of_another_grid_are_refused(self):
        net = network(dynamic_size=True)
        net.patch_embedding.position_embeddings = nn.Parameter(torch.zeros(1, 20, 24))
        with self.assertRaisesRegex(ValueError, r"\[1, 20, 24\].*\[4, 3\]"):
            net(image(32, 40))

    def test_nothing_is_older_than_the_parameter(self):
        net = network(dynamic_size=True)
        before = net(image(48, 24))[0]
        positions = net.patch_embedding.position_embeddings
        positions.data.mul_(2)  # as averaging does it: no version of the tensor tells
        other = network(dynamic_size=True)
        other.load_state_dict(net.state_dict())
        self.assertEqual(max_difference(net(image(48, 24))[0], other(image(48, 24))[0]), 0.0)
        self.assertGreater(max_difference(net(image(48, 24))[0], before), 1e-3)

    def test_gradients(self):
        net = network(dynamic_size=True).double()
        positions = net.patch_embedding.position_embeddings
        with torch.inference_mode():
            net(image(16, 40).double())  # what is remembered of a size serves training, too
        net.train()(image(16, 40).double())[0].square().sum().backward()
        step = torch.zeros_like(positions)
        step[0, 5, 7] = 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                positions.add_(sign * step)
                values.append(net(image(16, 40).double())[0].square().sum())
                positions.sub_(sign * step)
        self.assertAlmostEqual(float(positions.grad[0, 5, 7]), float(values[0] - values[1]) / 2e-5, places=4)

    def test_state_copies_and_pickles(self):
        net = network(dynamic_size=True)
        expected = net(image(16, 40))[0]
        self.assertEqual(list(net.state_dict()), list(network().state_dict()))
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            self.assertEqual(max_difference(other(image(16, 40))[0], expected), 0.0)

    @parameterized.expand([("dynamic_size",), ("temperature",)])
    def test_pickle_from_before(self, name):
        block = network().patch_embedding
        state = {key: value for key, value in vars(block).items() if key not in ("dynamic_size", "temperature")}
        old = PatchEmbeddingBlock.__new__(PatchEmbeddingBlock)
        old.__setstate__(state)
        self.assertEqual(getattr(old, name), getattr(block, name))
        self.assertEqual(max_difference(old(image(32, 24)), block(image(32, 24))), 0.0)

    @parameterized.expand([(torch.float16,), (torch.bfloat16,), (torch.float64,)])
    def test_types(self, dtype):
        positions = network(dynamic_size=True).to(dtype).patch_embedding.positions_on([2, 5])
        self.assertEqual(positions.dtype, dtype)
        exact = network(dynamic_size=True).double().patch_embedding.positions_on([2, 5])
        self.assertLessEqual(max_difference(positions.double(), exact), 1e-3)

    def test_autocast_resamples_exactly(self):
        block = network(dynamic_size=True).patch_embedding
        with torch.autocast("cpu", torch.bfloat16):
            found = block.positions_on([2, 5])
        self.assertEqual(max_difference(found, block.positions_on([2, 5])), 0.0)

    @parameterized.expand([("learnable", "conv"), ("sincos", "perceptron"), ("fourier", "conv")])
    def test_script(self, pos, proj):
        net = network(dynamic_size=True, pos_embed_type=pos, proj_type=proj)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(net), buffer)
        buffer.seek(0)
        scripted = torch.jit.load(buffer)
        for size in ((16, 40), (32, 24)):
            self.assertLessEqual(max_difference(scripted(image(*size))[0], net(image(*size))[0]), 1e-6)

    def test_export_with_dynamic_sizes(self):
        block = network(dynamic_size=True, pos_embed_type="sincos").patch_embedding
        exported = torch.export.export(block, (image(16, 40),), dynamic_shapes=axes()).module()
        for size in ((16, 40), (48, 24), (32, 24)):
            self.assertLessEqual(max_difference(exported(image(*size)), block(image(*size))), 1e-6)

    @parameterized.expand([(pos, dynamic) for pos in ("learnable", "sincos", "fourier") for dynamic in (True, False)])
    @pytest.mark.grid
    def test_export_of_the_network(self, pos, dynamic):
        net = network(dynamic_size=True, pos_embed_type=pos, classification=True)
        shapes = axes() if dynamic else None
        exported = torch.export.export(net, (image(16, 40),), dynamic_shapes=shapes).module()
        for size in ((16, 40), (48, 24), (32, 24)) if dynamic else ((16, 40),):
            self.assertLessEqual(max_difference(exported(image(*size))[0], net(image(*size))[0]), 1e-6)

    @parameterized.expand([("learnable",), ("sincos",), ("fourier",)])
    @pytest.mark.grid
    def test_compile_of_the_network(self, pos):
        net = network(dynamic_size=True, pos_embed_type=pos)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        for size in ((16, 40), (32, 24), (48, 24)):
            self.assertLessEqual(max_difference(compiled(image(*size))[0], net(image(*size))[0]), 1e-6)

    def test_attention_maps_know_the_grid(self):
        net = network(dynamic_size=True)
        with capture_attention(net) as capture:
            net(image(24, 32))
            net(image(16, 40))
        self.assertEqual([each.query_grid for each in capture.maps], [(3, 4)] * 2 + [(2, 5)] * 2)


class TestSetInputSize(unittest.TestCase):
    @parameterized.expand(KINDS)
    def test_as_a_dynamic_network(self, proj, pos):
        dynamic, net = (network(proj_type=proj, pos_embed_type=pos, dynamic_size=each) for each in (True, False))
        learns = net.patch_embedding.position_embeddings.requires_grad
        net.set_input_size((16, 40))
        self.assertLessEqual(max_difference(net(image(16, 40))[0], dynamic(image(16, 40))[0]), 1e-6)
        self.assertEqual(net.patch_embedding.position_embeddings.requires_grad, learns)
        built = ViT(**{**SIZES, "img_size": (16, 40), "proj_type": proj, "pos_embed_type": pos})
        built.load_state_dict(net.state_dict())
        with self.assertRaisesRegex(ValueError, r"\[16, 40\]"):
            net(image(32, 24))

    @parameterized.expand([("conv",), ("perceptron",)])
    def test_patches(self, proj):
        net = network(proj_type=proj)
        before = net(image(32, 24))[0]
        # an image that was enlarged linearly gives the tokens of before
        net.set_input_size((64, 48), patch_size=16)
        built = ViT(**{**SIZES, "img_size": (64, 48), "patch_size": 16, "proj_type": proj}).eval()
        built.load_state_dict(net.state_dict())
        self.assertEqual(net.patch_embedding.grid_size, [4, 3])
        self.assertEqual(net.patch_embedding.patch_dim, 256)
        patches = image(32, 24).reshape(2, 1, 4, 8, 3, 8).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        larger = nn.functional.interpolate(patches, size=16, mode="bicubic", antialias=True)
        larger = larger.reshape(2, 4, 3, 1, 16, 16).permute(0, 3, 1, 4, 2, 5).reshape(2, 1, 64, 48)
        self.assertLessEqual(max_difference(net(larger)[0], before), 1e-4)
        self.assertEqual(max_difference(built(larger)[0], net(larger)[0]), 0.0)

    @parameterized.expand(
        [
            ("patch above image", "conv", (4, 24), None, ValueError, "larger"),
            ("a rest for perceptron", "perceptron", (33, 24), None, ValueError, "divisible"),
        ]
    )
    def test_ill_sizes_change_nothing(self, _, proj, size, patch, error, part):
        net = network(proj_type=proj)
        with self.assertRaisesRegex(error, part):
            net.set_input_size(size, patch)
        self.assertEqual(net.patch_embedding.grid_size, [4, 3])
        net(image(32, 24))

    def test_a_grid_that_is_not_known(self):
        net = network()
        net.patch_embedding.grid_size = [0, 0]  # as after unpickling a block of the release
        with self.assertRaisesRegex(ValueError, "not known"):
            net.set_input_size(32)

    def test_layers_that_are_not_known(self):
        net = network()
        net.patch_embedding.patch_embeddings = nn.Sequential(net.patch_embedding.patch_embeddings)
        with self.assertRaisesRegex(TypeError, "Sequential"):
            net.set_input_size(32, patch_size=4)

    def test_unetr(self):
        arguments = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4, "spatial_dims": 2}
        net = UNETR(1, 2, (32, 16), **arguments).eval()
        net.set_input_size((16, 48))
        built = UNETR(1, 2, (16, 48), **arguments).eval()
        built.load_state_dict(net.state_dict())
        self.assertEqual(max_difference(net(image(16, 48)), built(image(16, 48))), 0.0)


if __name__ == "__main__":
    unittest.main()
