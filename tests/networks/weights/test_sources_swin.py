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

"""Self-supervised weights of MONAI, VoCo and BrainSegFounder reach SwinUNETR and ViT, or are refused."""

from __future__ import annotations

import tempfile
import unittest
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from parameterized import parameterized

from monai.networks import load_checkpoint, save_pretrained
from monai.networks.nets import UNETR, SwinUNETR, ViT, ViTAutoEnc
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinTransformer
from monai.networks.weights import EarlyPatchMerging, Journal
from monai.networks.weights.source import recognize, translate, translate_back
from monai.networks.weights.sources_swin import EARLY_SWIN, SELF_SUPERVISED_VIT, SOURCES, SWIN
from tests.networks.weights.foreign.files import kept
from tests.networks.weights.foreign.fuzz import silently_wrong
from tests.networks.weights.foreign.loading import build, difference, load, outputs
from tests.networks.weights.foreign.rows import TOLERANCE

SWINVIT = "monai==1.3.2, SwinTransformer, model_swinvit, v1"
HEADS = "a head of the self-supervised training"

_kept = lru_cache(kept)


def _backbone() -> dict[str, torch.Tensor]:
    """The transformer's tensors, under its own names."""
    state = {key.removeprefix("module."): value for key, value in _kept(SWINVIT)[1]["state_dict"].items()}
    inside = {key: value for key, value in state.items() if key.startswith(("patch_embed.", "layers"))}
    return {key.replace("mlp.fc", "mlp.linear"): value for key, value in inside.items()}


def _under(prefix: str, *more: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in {**_backbone(), **{key: torch.ones(2) for key in more}}.items()}


# keys as scripts save them, and who wrote them
TEST_CASES_WRAPPED = [
    ["SSLHead", "module.swinViT.", ()],
    ["SSLHead of one GPU, before 2022-08", "swin_vit.", ()],
    ["VoCo", "module.student.swinViT.", ()],
    ["nnSSL", "backbone.swinViT.", ()],
    ["bare", "", ("norm.weight", "rotation_head.weight", "contrastive_pre.bias", "convTrans3d.weight")],
]
# arguments of our network, keys to add to the file, and what the refusal has to say
TEST_CASES_REFUSED: list[list[Any]] = [
    [{"downsample": "merging"}, (), "EarlyPatchMerging"],
    [{"downsample": "mergingv2"}, (), "EarlyPatchMerging"],
    [{"use_v2": True}, (), "use_v2=False"],
    [{}, ("module.layers1c.0.layer.conv1.conv.weight",), "use_v2=True"],
    [{"normalize": False}, (), "normalize=True"],
    [{}, ("module.student.norm.weight", "module.teacher.norm.weight"), "student.* and teacher.*"],
]


class TestSwin(unittest.TestCase):
    def test_same_features(self):
        row, reference = _kept(SWINVIT)
        net = build(row)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        report = load(net, reference["state_dict"], EARLY_SWIN, allow=row.allow)
        self.assertLessEqual(difference(outputs(net, reference["inputs"]), reference["output"]), TOLERANCE)
        left = report.left
        self.assertEqual(report.counts, {"loaded": len(_backbone()), "left": len(left)})
        self.assertTrue(all(torch.equal(net.state_dict()[key], before[key]) for key in left))
        self.assertTrue(all(not key.startswith("swinViT.") for key in left))
        self.assertEqual(report.ignored["module.rotation_head.weight"], HEADS)
        self.assertIn("norm", report.ignored["module.norm.weight"])

    @parameterized.expand(TEST_CASES_WRAPPED)
    def test_wrapped(self, _, prefix, heads):
        row, reference = _kept(SWINVIT)
        net = build(row)
        report = load(net, _under(prefix, *heads), EARLY_SWIN, allow=row.allow)
        self.assertEqual(len(report.ignored), len(heads))
        self.assertLessEqual(difference(outputs(net, reference["inputs"]), reference["output"]), TOLERANCE)

    @parameterized.expand(TEST_CASES_WRAPPED)
    def test_recognized(self, _, prefix, heads):
        """Nothing in the keys tells who merged the patches: the user has to say it, by the name of the layout."""
        found = [source for source, _ in recognize(SOURCES, _under(prefix, *heads))]
        self.assertEqual(found, [EARLY_SWIN, SWIN])

    def test_own_keys_show_nothing(self):
        self.assertEqual(recognize(SOURCES, build(_kept(SWINVIT)[0]).state_dict()), [])

    def test_whole_encoder_of_voco(self):
        """VoCo trains the convolutions behind the transformer, too."""
        row = _kept(SWINVIT)[0]
        net, other = build(row), build(row)
        state = {key: value for key, value in other.state_dict().items() if not key.startswith(("decoder", "out"))}
        load(
            net,
            {f"module.teacher.{key}": value for key, value in state.items()},
            EARLY_SWIN,
            allow=("decoder*", "out*"),
        )
        self.assertTrue(all(torch.equal(net.state_dict()[key], value) for key, value in state.items()))

    def test_alone(self):
        """The transformer alone takes the same files."""
        net = SwinTransformer(1, 12, (2,) * 3, (2,) * 3, (1,) * 4, (1, 2, 3, 4), 1.0, downsample=EarlyPatchMerging)
        load(net, _kept(SWINVIT)[1]["state_dict"], EARLY_SWIN)
        with self.assertRaisesRegex(RuntimeError, "EarlyPatchMerging"):
            other = SwinTransformer(1, 12, (2,) * 3, (2,) * 3, (1,) * 4, (1, 2, 3, 4), 1.0)
            translate(other, Journal(_under("swinViT.")), EARLY_SWIN)

    def test_disruptive_autoencoder(self):
        """Its last convolution has the name of SwinUNETR's, and made an image."""
        row = _kept(SWINVIT)[0]
        net = build(row)
        deeper = {
            key if key.startswith("patch") else f"{key[:10]}0.{key[10:]}": value for key, value in _backbone().items()
        }
        state = {f"encoder.{key}": value for key, value in {**deeper, "mask_token": torch.ones(1)}.items()}
        before = net.out.conv.conv.weight.detach().clone()
        report = load(net, {**state, "out.conv.conv.weight": before + 1}, EARLY_SWIN, allow=row.allow)
        self.assertTrue(torch.equal(net.out.conv.conv.weight, before))
        self.assertEqual(set(report.ignored), {"encoder.mask_token", "out.conv.conv.weight"})

    @parameterized.expand(TEST_CASES_REFUSED)
    def test_refused(self, changes, more, said):
        row, reference = _kept(SWINVIT)
        with self.assertRaises(RuntimeError) as caught:
            state = {**reference["state_dict"], **{key: torch.ones(1) for key in more}}
            translate(build(row, **changes), Journal(state), EARLY_SWIN)
        self.assertIn(said, str(caught.exception))

    def test_recent_layout(self):
        row, reference = _kept(SWINVIT)
        with self.assertRaisesRegex(RuntimeError, "source='swin'"):
            translate(build(row, downsample="merging"), Journal(reference["state_dict"]), SWIN)
        with self.assertRaisesRegex(RuntimeError, "downsample='merging'"):
            translate(build(row), Journal(_under("module.swinViT.")), SWIN)
        load(build(row, downsample="merging"), _under("module.swinViT."), SWIN, allow=row.allow)

    def test_release_computes_something_else(self):
        """What the release makes of the same weights by its own loader differs from MONAI 1.3's features."""
        row, reference = _kept(SWINVIT)
        net = SwinUNETR(**{**row.arguments, "downsample": "merging"}).eval()
        net.load_from({"state_dict": reference["state_dict"]})
        self.assertGreater(difference(outputs(net, reference["inputs"]), reference["output"]), 0.1)

    def test_partial_file(self):
        row, reference = _kept(SWINVIT)
        state = {key: value for key, value in reference["state_dict"].items() if "layers2" not in key}
        with self.assertRaisesRegex(RuntimeError, "layers2"):
            load(build(row), state, EARLY_SWIN, allow=row.allow)

    def test_no_way_back(self):
        net = build(_kept(SWINVIT)[0])
        with self.assertRaisesRegex(ValueError, "no way back"):
            translate_back(net, net.state_dict(), EARLY_SWIN)

    def test_damaged_files(self):
        results = list(silently_wrong(*_kept(SWINVIT), range(25)))
        self.assertEqual([what for what, verdict in results if verdict == "WRONG"], [])
        self.assertGreater(sum(verdict == "refused" for _, verdict in results), 12)

    @parameterized.expand([[2], [3]])
    def test_merging_in_two_dimensions(self, spatial_dims):
        """In 2-D it is what the release does; in 3-D it is not. Odd sizes are padded."""
        early, recent = EarlyPatchMerging(3, spatial_dims=spatial_dims), PatchMergingV2(3, spatial_dims=spatial_dims)
        recent.load_state_dict(early.state_dict())
        tokens = torch.randn(2, *[5, 4, 3][:spatial_dims], 3)
        self.assertEqual(early(tokens).shape, recent(tokens).shape)
        self.assertEqual(torch.equal(early(tokens), recent(tokens)), spatial_dims == 2)


class TestOwnKeys(unittest.TestCase):
    """A whole network's file, whose keys are the same before MONAI 1.5 and after."""

    WORDS = "if MONAI 1.4 or older wrote it"

    def warned(self, net: torch.nn.Module, path: Path) -> bool:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_checkpoint(net, path)
        return any(self.WORDS in str(one.message) for one in caught)

    @parameterized.expand([[3, "merging", True], [2, "merging", False], [3, "mergingv2", False]])
    def test_the_user_is_told(self, spatial_dims, downsample, expected):
        sizes = [(2,) * spatial_dims, (2,) * spatial_dims, (1,) * 4, (1, 2, 3, 4), 1.0]
        net = SwinTransformer(1, 12, *sizes, downsample=downsample, spatial_dims=spatial_dims)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "net.pt")
            torch.save(net.state_dict(), path)
            self.assertEqual(self.warned(net, path), expected)
            if spatial_dims == 3:
                self.assertFalse(self.warned(SwinTransformer(1, 12, *sizes, downsample=EarlyPatchMerging), path))

    def test_a_folder_tells(self):
        net = SwinUNETR(1, 1, feature_size=12, depths=(1, 1, 1, 1))
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(net, Path(folder, "net"))
            self.assertFalse(self.warned(net, Path(folder, "net")))
            torch.save(net.state_dict(), Path(folder, "net.pt"))
            self.assertTrue(self.warned(net, Path(folder, "net.pt")))


class TestVisionTransformer(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)
        sizes = {"in_channels": 1, "img_size": (16, 16), "hidden_size": 12, "mlp_dim": 24, "num_heads": 2}
        self.theirs = ViTAutoEnc(patch_size=(4, 4), spatial_dims=2, num_layers=12, **sizes).eval()
        self.state = {f"{key}": value for key, value in self.theirs.state_dict().items()}
        self.sizes = {**sizes, "patch_size": (4, 4), "spatial_dims": 2}
        self.image = torch.randn(1, 1, 16, 16)

    @parameterized.expand([[True], [False]])
    def test_vit(self, combined):
        net = ViT(**self.sizes, use_combined_linear=combined).eval()
        journal = Journal({**self.state, "linear_1.weight": torch.ones(1), "patch_embedding.cls_token": torch.ones(1)})
        translate(net, journal, SELF_SUPERVISED_VIT)
        self.assertEqual(journal.keys(), net.state_dict().keys())
        net.load_state_dict(dict(journal))
        for found, wanted in zip(net(self.image)[1], self.theirs(self.image)[1]):
            torch.testing.assert_close(found, wanted)
        why = {key.partition(".")[0]: reason for key, reason in journal.ignored.items()}
        self.assertIn("decoder", why["conv3d_transpose"])

    def test_unetr(self):
        net = UNETR(1, 2, (32, 32), 4, 12, 24, 2, spatial_dims=2)
        theirs = ViTAutoEnc(1, (32, 32), (16, 16), hidden_size=12, mlp_dim=24, num_heads=2, spatial_dims=2)
        load(net.vit, theirs.state_dict(), SELF_SUPERVISED_VIT)
        self.assertTrue(torch.equal(net.vit.norm.weight, theirs.norm.weight))
        with self.assertRaisesRegex(RuntimeError, "into="):
            translate(net, Journal(theirs.state_dict()), SELF_SUPERVISED_VIT)

    def test_recognized(self):
        self.assertEqual([source for source, _ in recognize(SOURCES, self.state)], [SELF_SUPERVISED_VIT])


if __name__ == "__main__":
    unittest.main()
