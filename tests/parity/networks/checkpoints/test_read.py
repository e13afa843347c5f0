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

"""Files of older packages, read, and what the release's own loaders make of checkpoints."""

from __future__ import annotations

import unittest
from pathlib import Path

import torch
from ignite.engine import Engine
from parameterized import parameterized

from monai.handlers import CheckpointLoader
from monai.networks import nets
from monai.networks.checkpoints import load_checkpoint, read_checkpoint
from monai.networks.nets import DiffusionModelUNet
from monai.networks.state_dict.adapting import adapted_state_dict
from monai.networks.utils import copy_model_state
from tests.differences import max_difference
from tests.networks.checkpoints.file_case import FileCase
from tests.networks.checkpoints.test_read import UNET
from tests.parity.release import ReleaseError, release_run

torch.set_num_threads(1)

OLD = Path(__file__).parents[3] / "testing_data" / "vit_monai_1.5.2.pt"


RELEASE = "monai.networks.nets.DiffusionModelUNet"

UNET |= {"attention_levels": (False, True), "norm_num_groups": 4, "num_head_channels": 4, "include_fc": False}


class TestLoading(FileCase):
    def test_an_old_file(self):
        """MONAI 1.5.2 wrote it, beside another network; its outputs come back."""
        with self.assertRaisesRegex(ValueError, "2 networks: choose with name=, from 'state_dict', 'head'"):
            read_checkpoint(OLD)
        content = torch.load(OLD, weights_only=True)
        net = getattr(nets, content["network"])(**content["options"]).eval()
        self.assertEqual(load_checkpoint(net, OLD).wrappers, ("state_dict",))
        with torch.no_grad():
            self.assertLessEqual(max_difference(net(content["input"])[0], content["output"]), 1e-5)


class TestLoadersOfTheRelease(FileCase):
    """MONAI's own ways to load a file stay as they are, and gain from the load hooks of the fork's networks."""

    def setUp(self) -> None:
        super().setUp()
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(1, 1, 8, 8, generator=generator), torch.tensor([5])
        state = release_run(RELEASE, UNET, seed=0, call=None)
        self.state = {key: torch.randn(value.shape, generator=generator) * 0.3 for key, value in state.items()}
        self.expected = release_run(RELEASE, UNET, self.inputs, state=self.state)
        # another layout than the release's: it names the linears of q, k and v in this one's stead
        self.net = DiffusionModelUNet(**UNET, use_combined_linear=True, use_proj_attn=False).eval()
        self.assertFalse(self.state.keys() <= self.net.state_dict().keys())

    def difference(self) -> float:
        with torch.no_grad():
            return max_difference(self.net(*self.inputs), self.expected)

    def handle(self, path: Path, key: str = "net") -> None:
        CheckpointLoader(str(path), {key: self.net})(Engine(lambda engine, batch: None))

    @parameterized.expand([("bare", lambda state: state), ("named", lambda state: {"net": state, "epoch": 3})])
    def test_checkpoint_loader(self, _, wrap):
        """The handler loads another layout, strictly, because it calls load_state_dict."""
        torch.save(wrap(self.state), self.path)
        self.handle(self.path)
        self.assertLessEqual(self.difference(), 1e-5)

    def test_checkpoint_loader_and_an_old_file(self):
        """The release's own network refuses the file, which MONAI 1.5.2 wrote."""
        content = torch.load(OLD, weights_only=True)
        target = f"monai.networks.nets.{content['network']}"
        with self.assertRaisesRegex(ReleaseError, "Unexpected key"):
            release_run(target, content["options"], (content["input"],), state=content["state_dict"], fill=False)
        net = getattr(nets, content["network"])(**content["options"]).eval()
        CheckpointLoader(str(OLD), {"state_dict": net})(Engine(lambda engine, batch: None))
        with torch.no_grad():
            self.assertLessEqual(max_difference(net(content["input"])[0], content["output"]), 1e-5)

    def test_checkpoint_loader_and_wrappers(self):
        """It does not unwrap them; read_checkpoint does, and writes what the handler takes."""
        torch.save({"state_dict": {f"module.{key}": value for key, value in self.state.items()}}, self.path)
        with self.assertRaisesRegex(RuntimeError, "state_dict"):
            self.handle(self.path)
        with self.assertRaisesRegex(RuntimeError, "module.conv_in"):
            self.handle(self.path, "state_dict")
        plain = self.path.with_name("plain.pt")
        torch.save(read_checkpoint(self.path, self.net).state_dict, plain)
        self.handle(plain)
        self.assertLessEqual(self.difference(), 1e-5)

    def test_copy_model_state(self):
        """It compares names before a hook sees them, and says nothing of those that it does not find."""
        _, changed, unchanged = copy_model_state(self.net, self.state)
        self.assertTrue(changed)
        self.assertTrue(any("qkv" in key for key in unchanged))
        self.assertGreater(self.difference(), 0.01)
        _, _, unchanged = copy_model_state(self.net, adapted_state_dict(self.net, self.state))
        self.assertEqual(unchanged, [])
        self.assertLessEqual(self.difference(), 1e-5)


if __name__ == "__main__":
    unittest.main()
