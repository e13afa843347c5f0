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

import torch
from parameterized import parameterized

from monai.networks.nets import UNETR, AutoencoderKL, DiffusionModelUNet, MaskedAutoEncoderViT, UNet, ViT
from monai.networks.weights.fit import SizeOptions, fit
from monai.networks.weights.journal import Journal
from monai.networks.weights.positions import place_grid, resample_positions
from monai.networks.weights.size_remedies import remedy_for_size
from tests.differences import max_difference

torch.set_num_threads(1)

VIT = {
    "in_channels": 2,
    "img_size": (16, 16),
    "patch_size": (8, 8),
    "hidden_size": 24,
    "mlp_dim": 32,
    "num_layers": 1,
    "num_heads": 4,
    "spatial_dims": 2,
}
VOLUME = {**VIT, "img_size": (16, 16, 12), "patch_size": (8, 8, 4), "spatial_dims": 3}
LATENT = {
    "in_channels": 1,
    "out_channels": 1,
    "channels": (4, 8),
    "norm_num_groups": 4,
    "num_res_blocks": 1,
    "attention_levels": (False, True),
}
UNET = {**LATENT, "num_head_channels": 4, "with_conditioning": True, "cross_attention_dim": 6}
CONV = {"in_channels": 3, "out_channels": 3, "channels": (4, 8), "strides": (2,), "norm": "batch", "spatial_dims": 2}
POSITION, PATCH = "patch_embedding.position_embeddings", "patch_embedding.patch_embeddings.weight"
SPACINGS = ((2.0, 2.0), (1.0, 1.0))


def network(cls, **arguments):
    """A network whose every weight matters."""
    net, generator = cls(**arguments).eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 0.1 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
            if parameter.dim() == 1:
                parameter.add_(0.5)
    return net


def fitted(source, net, **options) -> Journal:
    """Load the weights of one network into another, with an account."""
    journal = Journal(source.state_dict())
    fit(journal, net, SizeOptions(**options))
    net.load_state_dict(dict(journal))
    return journal


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def deep(x: torch.Tensor, depth: int) -> torch.Tensor:
    """A volume of equal slices."""
    return x[..., None].expand(*x.shape, depth)


class TestOptions(unittest.TestCase):
    @parameterized.expand(
        [
            ("resample", {"resample": ("rotary",)}, ValueError, "rotary"),
            ("grid alone", {"grid": (4, 4)}, ValueError, "goes with"),
            ("a flat grid", {"grid": 16, "resample": "position"}, TypeError, "16"),
            ("no tokens", {"grid": (4, 0), "resample": "position"}, ValueError, "above 0"),
            ("spacings alone", {"spacings": SPACINGS}, ValueError, "go with"),
            ("one spacing", {"spacings": (1.0, 1.0), "resample": "position"}, TypeError, "1.0"),
            ("three spacings", {"spacings": (SPACINGS[0],) * 3, "resample": "position"}, ValueError, "two"),
            ("in_channels", {"in_channels": "first"}, ValueError, "first"),
            ("negative", {"in_channels": (-1,)}, ValueError, "-1"),
            ("a bool", {"out_channels": (True,)}, ValueError, "True"),
            ("a number", {"out_channels": 3}, TypeError, "3"),
            ("nothing", {"out_channels": ()}, ValueError, "at least"),
            ("inflate", {"inflate": "repeat"}, ValueError, "repeat"),
        ]
    )
    def test_refused(self, _, options, error, text):
        with self.assertRaisesRegex(error, text):
            SizeOptions(**options)

    def test_one_name_for_a_tuple(self):
        self.assertEqual(SizeOptions(resample="position"), SizeOptions(resample=("position",)))
        self.assertFalse(SizeOptions())
        self.assertTrue(SizeOptions(inflate="center"))


class TestResample(unittest.TestCase):
    def test_positions(self):
        source, net = network(ViT, **VIT), ViT(**{**VIT, "img_size": (24, 40)}).eval()
        journal = fitted(source, net, resample="position")
        source.set_input_size((24, 40))
        self.assertEqual(max_difference(net(image(1, 2, 24, 40))[0], source(image(1, 2, 24, 40))[0]), 0.0)
        self.assertEqual(journal.origins[POSITION].kind, "resampled")
        self.assertEqual(journal.origins[POSITION].changes, ("positions resampled from 2 x 2 to 3 x 5",))
        others = [key for key, origin in journal.origins.items() if origin.kind != "loaded"]
        self.assertEqual(others, [POSITION])

    def test_the_same_number_on_another_grid(self):
        source, net = network(ViT, **{**VIT, "img_size": (8, 32)}), ViT(**VIT)
        fitted(source, net, resample="position", grid=(1, 4))
        expected = resample_positions(source.patch_embedding.position_embeddings, (2, 2), (1, 4))
        self.assertEqual(max_difference(net.patch_embedding.position_embeddings, expected), 0.0)

    def test_by_spacing(self):
        source, net = network(ViT, **VIT), ViT(**VIT)
        journal = fitted(source, net, resample="position", spacings=SPACINGS)
        places = place_grid((2, 2), (2, 2), (16, 16), (8, 8))
        expected = resample_positions(source.patch_embedding.position_embeddings, (2, 2), (2, 2), 0, *places)
        self.assertEqual(max_difference(net.patch_embedding.position_embeddings, expected), 0.0)
        self.assertIn("by spacing", journal.origins[POSITION].changes[0])

    @parameterized.expand([("conv",), ("perceptron",)])
    def test_patches(self, proj):
        source = network(ViT, **VIT, proj_type=proj)
        net = ViT(**{**VIT, "img_size": (32, 16), "patch_size": (16, 4), "proj_type": proj}).eval()
        fitted(source, net, resample=("position", "patch"))
        source.set_input_size((32, 16), (16, 4))
        self.assertLessEqual(max_difference(net(image(1, 2, 32, 16))[0], source(image(1, 2, 32, 16))[0]), 1e-6)

    @parameterized.expand([(2, (16, 16), (24, 8)), (3, (16, 16, 16), (8, 24, 16))])
    def test_masked_autoencoder(self, dims, old, new):
        arguments = {**VIT, "patch_size": 8, "spatial_dims": dims, "decoder_hidden_size": 24, "decoder_num_heads": 4}
        source, net = (MaskedAutoEncoderViT(**{**arguments, "img_size": size}) for size in (old, new))
        expected = {key: value.clone() for key, value in net.state_dict().items()}
        journal = fitted(source, net, resample="position", **({"grid": (2, 2, 2)} if dims == 3 else {}))
        for key in (POSITION, "decoder_pos_embedding"):
            self.assertEqual(journal.origins[key].kind, "written by rule")
            self.assertLessEqual(max_difference(net.state_dict()[key], expected[key]), 1e-5)

    @parameterized.expand(
        [
            ("a cube", {**VOLUME, "img_size": (16, 16, 8)}, {**VOLUME, "img_size": (24, 16, 8)}, {}, r"\(2, 2, 2\)"),
            ("no square", {**VIT, "img_size": (8, 24)}, VIT, {}, "3 position embeddings"),
            ("another grid", VIT, {**VIT, "img_size": (24, 16)}, {"grid": (3, 1)}, r"grid=\(3, 1\)"),
            ("nothing to do", VIT, VIT, {}, "resample='position' changes nothing"),
            ("beyond the field", VIT, VIT, {"spacings": (SPACINGS[1], (4.0, 4.0))}, "outside of its field"),
            ("axes of spacings", VIT, VIT, {"spacings": ((1.0,), (1.0, 1.0))}, "2 axes"),
        ]
    )
    def test_refused(self, _, old, new, options, text):
        journal = Journal(ViT(**old).state_dict())
        before = dict(journal)
        with self.assertRaisesRegex(RuntimeError, text):
            fit(journal, ViT(**new), SizeOptions(resample="position", **options))
        self.assertTrue(all(journal[key] is value for key, value in before.items()))

    def test_all_problems_at_once(self):
        journal = Journal(ViT(**{**VIT, "img_size": (8, 24), "in_channels": 3}).state_dict())
        with self.assertRaisesRegex(RuntimeError, "(?s)3 position embeddings.*1 indices"):
            fit(journal, ViT(**VIT), SizeOptions(resample="position", in_channels=(1,)))


class TestChannels(unittest.TestCase):
    @parameterized.expand([(how, proj) for how in ("mean", "repeat") for proj in ("conv", "perceptron")])
    def test_equal_channels(self, how, proj):
        source = network(ViT, **VIT, proj_type=proj)
        net = ViT(**{**VIT, "in_channels": 5, "proj_type": proj}).eval()
        fitted(source, net, in_channels=how)
        x = image(1, 1, 16, 16)
        expected = source(x.expand(-1, 2, -1, -1))[0]
        self.assertLessEqual(max_difference(net(x.expand(-1, 5, -1, -1))[0], expected), 1e-5)

    @parameterized.expand([("Tanh",), ("",)])
    def test_classes(self, activation):
        head = {"classification": True, "post_activation": activation}
        source, net = network(ViT, **VIT, **head, num_classes=4), ViT(**VIT, **head, num_classes=3).eval()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        journal = fitted(source, net, out_channels=(3, None, 0))
        x = image(1, 2, 16, 16)
        self.assertLessEqual(max_difference(net(x)[0][:, [0, 2]], source(x)[0][:, [3, 0]]), 1e-6)
        changed = [key for key, origin in journal.origins.items() if origin.kind == "converted"]
        self.assertEqual(len(changed), 2)
        for key in changed:
            self.assertTrue(torch.equal(net.state_dict()[key][1], before[key][1]))

    def test_both_ends(self):
        source, net = network(UNet, **CONV), UNet(**{**CONV, "in_channels": 1, "out_channels": 1}).eval()
        fitted(source, net, in_channels="mean", out_channels=(1,))
        x = image(1, 1, 16, 16)
        self.assertLessEqual(max_difference(net(x), source(x.expand(-1, 3, -1, -1))[:, 1:2]), 1e-5)

    @parameterized.expand(
        [
            ("wider layers", {"channels": (6, 8)}, {"in_channels": "mean", "out_channels": (0,) * 6}, "inner layers"),
            ("a layer takes more", {"channels": (6, 8)}, {"in_channels": "mean"}, "before it gives: these are inner"),
            ("a layer gives more", {"channels": (6, 8)}, {"out_channels": (0,) * 6}, "after it takes: these are inner"),
            ("nothing", {}, {"in_channels": "mean"}, "in_channels='mean' changes nothing"),
            ("another order", {}, {"in_channels": (2, 1, 0)}, "reorder the weights of the file"),
            ("no such class", {"out_channels": 2}, {"out_channels": (0, 3)}, r"\[3\]"),
        ]
    )
    def test_refused(self, _, new, options, text):
        with self.assertRaisesRegex(RuntimeError, text):
            fit(Journal(UNet(**CONV).state_dict()), UNet(**{**CONV, **new}), SizeOptions(**options))

    def test_a_context_is_no_image(self):
        journal = Journal(DiffusionModelUNet(spatial_dims=2, **UNET).state_dict())
        net = DiffusionModelUNet(spatial_dims=2, **{**UNET, "cross_attention_dim": 5})
        with self.assertRaisesRegex(RuntimeError, "changes nothing"):
            fit(journal, net, SizeOptions(in_channels="mean"))


class TestInflate(unittest.TestCase):
    @parameterized.expand([(how, proj) for how in ("average", "center") for proj in ("conv", "perceptron")])
    def test_vit(self, how, proj):
        source, net = network(ViT, **VIT, proj_type=proj), ViT(**VOLUME, proj_type=proj).eval()
        fitted(source, net, inflate=how)
        x = image(1, 2, 16, 16)
        expected = source(x)[0]
        found = net(deep(x, 12))[0].unflatten(1, (4, 3))
        self.assertLessEqual(max_difference(found, expected[:, :, None].expand_as(found)), 1e-5)

    def test_with_all_the_rest(self):
        source = network(ViT, **VIT)
        net = ViT(**{**VOLUME, "in_channels": 1, "img_size": (48, 32, 12), "patch_size": (16, 16, 4)}).eval()
        journal = fitted(source, net, inflate="center", resample=("position", "patch"), in_channels="mean")
        kinds = {key: origin for key, origin in journal.origins.items() if origin.kind != "loaded"}
        self.assertEqual(
            {key: (origin.kind, len(origin.changes)) for key, origin in kinds.items()},
            {POSITION: ("inflated", 2), PATCH: ("inflated", 3)},
        )
        source.set_input_size((48, 32), 16)
        x = image(1, 1, 48, 32)
        found = net(deep(x, 12))[0].unflatten(1, (6, 3))
        expected = source(x.expand(-1, 2, -1, -1))[0]
        self.assertLessEqual(max_difference(found, expected[:, :, None].expand_as(found)), 1e-5)

    @parameterized.expand([(True,), (False,)])
    def test_autoencoder(self, transposed):
        options = {**LATENT, "use_convtranspose": transposed}
        source = network(AutoencoderKL, spatial_dims=2, **options)
        net = AutoencoderKL(spatial_dims=3, **options).eval()
        fitted(source, net, inflate="center")
        x = image(1, 1, 8, 8)
        expected = source.reconstruct(x)
        found = net.reconstruct(deep(x, 6))
        scale = float(expected.abs().max())
        self.assertLessEqual(max_difference(found, deep(expected, 6)), 1e-5 * scale)

    @parameterized.expand([(True,), (False,)])
    def test_diffusion_unet(self, updown):
        options = {**UNET, "resblock_updown": updown}
        source = network(DiffusionModelUNet, spatial_dims=2, **options)
        net = DiffusionModelUNet(spatial_dims=3, **options).eval()
        fitted(source, net, inflate="center")
        x, rest = image(1, 1, 8, 8), (torch.tensor([7]), image(1, 3, 6))
        expected = source(x, *rest)
        scale = float(expected.abs().max())
        self.assertLessEqual(max_difference(net(deep(x, 4), *rest), deep(expected, 4)), 1e-5 * scale)

    def test_unetr(self):
        options = {"feature_size": 2, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4}
        source, net = (
            network(UNETR, in_channels=1, out_channels=1, img_size=32, spatial_dims=2, **options),
            UNETR(1, 1, 32, **options).eval(),
        )
        fitted(source, net, inflate="center")
        x = image(1, 1, 32, 32)
        expected = source(x)
        scale = float(expected.abs().max())
        self.assertLessEqual(max_difference(net(deep(x, 32)), deep(expected, 32)), 1e-5 * scale)

    def test_a_class_token_is_warned_of(self):
        head = {"classification": True}
        with self.assertWarnsRegex(UserWarning, "cls_token attends to itself once and to every patch 3 times"):
            fitted(network(ViT, **VIT, **head), ViT(**VOLUME, **head), inflate="center")

    @parameterized.expand(
        [
            ("three axes", VOLUME, VOLUME, {}, "three axes already"),
            ("three axes, perceptron", {**VOLUME, "proj_type": "perceptron"}, None, {}, "three axes already"),
            ("two axes", VIT, VIT, {}, "inflate='center' changes nothing"),
            ("another grid", {**VIT, "img_size": (24, 24)}, VOLUME, {}, "ask for resample='position', too"),
            ("not told", {**VIT, "img_size": (16, 8)}, {**VOLUME, "img_size": (16, 8, 12)}, {}, "grid="),
        ]
    )
    def test_refused(self, _, old, new, options, text):
        with self.assertRaisesRegex(RuntimeError, text):
            fit(Journal(ViT(**old).state_dict()), ViT(**(new or old)), SizeOptions(inflate="center", **options))


class TestRemedies(unittest.TestCase):
    @parameterized.expand(
        [
            ("position", VIT, {**VIT, "img_size": (24, 16)}, POSITION, "resample='position'"),
            ("position in 3-D", VIT, VOLUME, POSITION, "inflate"),
            ("patch", VIT, {**VIT, "patch_size": 4}, PATCH, "resample='patch'"),
            ("channels", VIT, {**VIT, "in_channels": 1}, PATCH, "in_channels"),
            ("kernel", VIT, VOLUME, PATCH, "inflate"),
            ("width", VIT, {**VIT, "hidden_size": 12}, POSITION, ""),
        ]
    )
    def test_of_a_vit(self, _, old, new, key, text):
        net = ViT(**new)
        found = remedy_for_size(key, ViT(**old).state_dict()[key], net.state_dict()[key], net)
        self.assertIn(text, found)
        self.assertEqual(bool(found), bool(text))

    def test_of_first_and_last_layers(self):
        old, net = UNet(**CONV).state_dict(), UNet(**{**CONV, "in_channels": 1, "out_channels": 2})
        texts = {
            remedy_for_size(key, old[key], own, net)[:20]
            for key, own in net.state_dict().items()
            if old[key].shape != own.shape
        }
        self.assertEqual(texts, {"If it is a first lay", "If it is a last laye"})
        self.assertEqual(remedy_for_size("nowhere", torch.ones(1), torch.ones(2), net), "")


if __name__ == "__main__":
    unittest.main()
