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
import warnings
from pathlib import Path
from unittest import mock

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.checkpoints.conversion import convert_checkpoint
from monai.apps.checkpoints.network_config import NetworkConfig
from monai.networks.blocks import TransformerBlock
from monai.networks.checkpoints import CheckpointFacts, load_checkpoint, read_checkpoint
from monai.networks.checkpoints.untrusted import CheckpointRefused
from monai.networks.nets import DecoderOnlyTransformer, DiffusionModelUNet, ViT
from monai.networks.state_dict.release import release_state_dict

torch.set_num_threads(1)

UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": (8, 16)}

UNET |= {"attention_levels": (False, True), "norm_num_groups": 4, "num_head_channels": 4}

DECODER = {"num_tokens": 7, "max_seq_len": 9, "attn_layers_dim": 24, "attn_layers_depth": 2, "attn_layers_heads": 4}

VIT = {"in_channels": 1, "img_size": 16, "patch_size": 8, "hidden_size": 24, "mlp_dim": 32, "num_layers": 1}

VIT |= {"num_heads": 4, "spatial_dims": 2}


def randomized(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return net.eval()


def config(cls: type[nn.Module], **arguments) -> NetworkConfig:
    return NetworkConfig(Path("net.json"), "", cls, arguments)


class TestReleaseLayout(unittest.TestCase):
    """The release itself loads it strictly, nothing filled in, and gives the same outputs."""

    def test_the_fork_takes_it_back(self):
        net = randomized(DecoderOnlyTransformer(**DECODER))
        state = release_state_dict(net, net.state_dict())
        self.assertEqual(state["blocks.0.attn.causal_mask"].shape, (1, 1, 9, 9))
        again = DecoderOnlyTransformer(**DECODER)
        again.load_state_dict(state)
        for key, value in net.state_dict().items():
            self.assertTrue(torch.equal(again.state_dict()[key], value), key)

    def test_networks_of_a_user(self):
        """Blocks outside of MONAI's networks have the release's own options."""
        net = nn.Sequential(TransformerBlock(24, 32, 4, use_combined_linear=False, include_fc=False))
        state = release_state_dict(net, net.state_dict())
        added = {"0.norm_cross_attn.weight", "0.norm_cross_attn.bias"}
        self.assertEqual(state.keys(), net.state_dict().keys() | added)


class FolderCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.source = self.folder / "old.pt"

    def save_generative_models(self) -> dict[str, torch.Tensor]:
        """A network in the layout of GenerativeModels 0.2, with a projection that it never used."""
        net = randomized(DiffusionModelUNet(**UNET, use_proj_attn=False))
        state = {key.replace(".attn.", "."): value for key, value in net.state_dict().items()}
        for key in [key for key in state if key.endswith("to_q.weight")]:
            state[key.replace("to_q", "proj_attn")] = torch.randn(16, 16)
            state[key.replace("to_q.weight", "proj_attn.bias")] = torch.randn(16)
        torch.save({"state_dict": state}, self.source)
        return net.state_dict()


class TestConversion(FolderCase):
    @parameterized.expand([("new.pt",), ("new.pth",), ("new.ckpt",), ("new.safetensors",), ("NEW.PT",)])
    def test_formats(self, name):
        expected = self.save_generative_models()
        before = self.source.read_bytes()
        report = convert_checkpoint(
            self.source, self.folder / name, config(DiffusionModelUNet, **UNET, use_proj_attn=False)
        )
        found = read_checkpoint(self.folder / name)
        self.assertEqual(found.wrappers, ())
        self.assertEqual(found.state_dict.keys(), expected.keys())
        for key, value in expected.items():
            self.assertTrue(torch.equal(found.state_dict[key], value), key)
        self.assertEqual(report.wrappers, ("state_dict",))
        self.assertEqual((report.keys_read, report.keys_written), (len(expected) + 8, len(expected)))
        self.assertEqual(report.written_by[0].name, "to_q")
        self.assertEqual(report.size, (self.folder / name).stat().st_size)
        self.assertEqual(self.source.read_bytes(), before)
        self.assertEqual(sorted(path.name for path in self.folder.iterdir()), sorted([name, "old.pt"]))

    @parameterized.expand([("new.pt",), ("new.safetensors",)])
    def test_the_scale_factor_stays(self, name):
        net = randomized(DiffusionModelUNet(**UNET))
        torch.save({"unet_state_dict": net.state_dict(), "scale_factor": torch.tensor(1.0169)}, self.source)
        report = convert_checkpoint(self.source, self.folder / name, config(DiffusionModelUNet, **UNET))
        self.assertAlmostEqual(report.scale_factor, 1.0169, places=6)
        self.assertEqual(read_checkpoint(self.folder / name).scale_factor, report.scale_factor)
        if name.endswith(".pt"):
            content = torch.load(self.folder / name, weights_only=True)
            self.assertEqual(list(content), ["unet_state_dict", "scale_factor"])

    def test_facts(self):
        net = randomized(DiffusionModelUNet(**UNET))
        torch.save(net.state_dict(), self.source)
        unused = CheckpointFacts(projection_used=False)
        without = config(DiffusionModelUNet, **UNET, use_proj_attn=False)
        with self.assertRaisesRegex(RuntimeError, "out_proj"):
            convert_checkpoint(self.source, self.folder / "new.pt", without)
        report = convert_checkpoint(self.source, self.folder / "new.pt", without, facts=unused)
        self.assertEqual(report.keys_read - report.keys_written, 8)

    @parameterized.expand([("new.pt",), ("new.safetensors",)])
    def test_what_was_told_need_not_be_told_again(self, name):
        """The target says what the keys of the source did not, as a state dict of the network's own does."""
        net = DiffusionModelUNet(**UNET)
        with torch.no_grad():
            for key, value in net.named_parameters():
                if "out_proj" not in key:
                    value.normal_()
        torch.save(dict(net.state_dict()), self.source)  # as an older release writes it, without versions of modules
        with self.assertWarnsRegex(UserWarning, "never trained"):
            load_checkpoint(DiffusionModelUNet(**UNET), self.source)
        target = self.folder / name
        convert_checkpoint(
            self.source, target, config(DiffusionModelUNet, **UNET), facts=CheckpointFacts(projection_used=True)
        )
        found = read_checkpoint(target)
        self.assertEqual(dict(found.state_dict._metadata), dict(net.state_dict()._metadata))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_checkpoint(DiffusionModelUNet(**UNET), target)

    def test_types_stay(self):
        torch.save(randomized(ViT(**VIT)).half().state_dict(), self.source)
        target = self.folder / "new.safetensors"
        convert_checkpoint(self.source, target, config(ViT, **VIT, use_combined_linear=False), layout="monai-1.6")
        self.assertEqual({value.dtype for value in read_checkpoint(target).state_dict.values()}, {torch.half})


class TestRefusals(FolderCase):
    def setUp(self):
        super().setUp()
        self.net = randomized(ViT(**VIT))
        torch.save(self.net.state_dict(), self.source)
        self.config = config(ViT, **VIT)

    def assert_only_the_source(self) -> None:
        self.assertEqual([path.name for path in self.folder.iterdir()], ["old.pt"])

    def test_a_checkpoint_of_another_network(self):
        with self.assertRaisesRegex(RuntimeError, "size mismatch"):
            convert_checkpoint(self.source, self.folder / "new.pt", config(ViT, **{**VIT, "mlp_dim": 48}))
        self.assert_only_the_source()

    def test_damaged(self):
        self.source.write_bytes(self.source.read_bytes()[:-500])
        with self.assertRaises(CheckpointRefused):
            convert_checkpoint(self.source, self.folder / "new.pt", self.config)
        self.assert_only_the_source()

    def test_two_networks(self):
        state = self.net.state_dict()
        torch.save({"net": dict(state), "ema": dict(state)}, self.source)
        with self.assertRaisesRegex(ValueError, "'net', 'ema'") as caught:
            convert_checkpoint(self.source, self.folder / "new.pt", self.config)
        self.assertNotIsInstance(caught.exception, CheckpointRefused)
        convert_checkpoint(self.source, self.folder / "new.pt", self.config, name="ema")
        self.assertTrue((self.folder / "new.pt").is_file())

    def test_a_batch_norm_that_is_not_there(self):
        """torch would miss it only when it loads."""
        net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        torch.save({f"0.{key}": value for key, value in net[0].state_dict().items()}, self.source)
        made = mock.Mock(cls=nn.Sequential, arguments={}, build=lambda device: net)
        with self.assertRaisesRegex(RuntimeError, r"lacks 4 tensors .* 1\.weight"):
            convert_checkpoint(self.source, self.folder / "new.pt", made)
        self.assert_only_the_source()

    def test_layout(self):
        with self.assertRaisesRegex(ValueError, "fork, monai-1.6"):
            convert_checkpoint(self.source, self.folder / "new.pt", self.config, layout="monai-1.5")


if __name__ == "__main__":
    unittest.main()
