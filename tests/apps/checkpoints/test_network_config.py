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

import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.checkpoints.network_config import NetworkConfig, raw_network_config, read_network_config
from monai.networks.nets import AutoencoderKL, UNet, ViT

torch.set_num_threads(1)
VIT = {"_target_": "monai.networks.nets.ViT", "in_channels": 1, "img_size": [16, 16], "patch_size": 8}
VIT |= {"hidden_size": 24, "mlp_dim": 32, "num_layers": 1, "num_heads": 4, "spatial_dims": 2}
LOSS = {"_target_": "DiceLoss"}
CALLED = []


class NeedsItsWeights(nn.Module):
    """Its constructor looks at a value, which a tensor on the meta device does not have."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        if self.weight.sum().item() != width:
            raise ValueError("no weight")


def make_network() -> nn.Module:
    """Not a class: a configuration must not call it."""
    CALLED.append("made")
    return nn.Linear(2, 2)


class ConfigCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "net.json"

    def write(self, content: object) -> str:
        self.path.write_text(json.dumps(content))
        return str(self.path)

    def refused(self, content: object, pattern: str, key: str = "") -> None:
        with self.assertRaisesRegex(ValueError, pattern):
            read_network_config(self.write(content) + key)


class TestReading(ConfigCase):
    def test_the_top(self):
        config = read_network_config(self.write(VIT))
        self.assertEqual((config.cls, config.key), (ViT, ""))
        self.assertEqual(config.arguments, {key: value for key, value in VIT.items() if key != "_target_"})
        shapes = {key: value.shape for key, value in ViT(**config.arguments).state_dict().items()}
        self.assertEqual({key: value.shape for key, value in config.build().state_dict().items()}, shapes)

    def test_the_only_network_of_a_bundle(self):
        """Losses, optimizers and what is disabled are no networks."""
        bundle = {
            "imports": "$import math",
            "width": 24,
            "device": "$torch.device('cpu')",
            "network_def": {
                **VIT,
                "hidden_size": "@width",
                "mlp_dim": "$@width + int(math.sqrt(64))",
                "_desc_": "a ViT",
            },
            "network": "$@network_def.to(@device)",
            "loss": LOSS,
            "other": {**VIT, "_disabled_": True},
            "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()"},
            "act": {"_target_": "torch.nn.ReLU"},
        }
        config = read_network_config(self.write(bundle))
        self.assertEqual(
            (config.key, config.arguments["hidden_size"], config.arguments["mlp_dim"]), ("network_def", 24, 32)
        )
        self.assertEqual(list(config.arguments), [key for key in VIT if key != "_target_"])

    @parameterized.expand([("::",), ("#",)])
    def test_a_key(self, separator):
        bundle = {"nets": {"first": VIT, "second": {**VIT, "num_layers": 2}}}
        config = read_network_config(self.write(bundle) + separator.join(["", "nets", "second"]))
        self.assertEqual((config.key, config.arguments["num_layers"]), ("nets::second", 2))
        self.refused(bundle, "2 networks, name one of them: .*::nets::first, .*::nets::second")
        self.refused(bundle, "has no 'nets::third': choose from .*nets::first", f"{separator}nets{separator}third")
        self.refused({**bundle, "lr": 1}, "::lr has no '_target_'", "::lr")

    def test_a_name_without_its_module(self):
        self.assertIs(read_network_config(self.write({**VIT, "_target_": "ViT"})).cls, ViT)

    def test_generative_models(self):
        """A bundle of GenerativeModels is taken as it is."""
        old = {"_target_": "generative.networks.nets.AutoencoderKL", "spatial_dims": 2, "num_channels": [8, 16]}
        config = read_network_config(self.write({**old, "use_checkpointing": True}))
        self.assertIs(config.cls, AutoencoderKL)
        self.assertEqual(config.arguments, {"spatial_dims": 2, "channels": [8, 16], "use_checkpoint": True})
        with_same_names = {"_target_": "monai.apps.generation.maisi.networks.controlnet_maisi.ControlNetMaisi"}
        config = read_network_config(self.write({**with_same_names, "num_channels": [8]}))
        self.assertEqual(config.arguments, {"num_channels": [8]})

    def test_yaml(self):
        path = self.path.with_suffix(".yaml")
        path.write_text("net:\n  _target_: UNet\n  spatial_dims: 2\n")
        try:
            import yaml  # noqa: F401
        except ImportError:
            with self.assertRaisesRegex(ValueError, "cannot be read .*yaml"):
                read_network_config(str(path))
        else:
            self.assertIs(read_network_config(str(path)).cls, UNet)

    def test_raw(self):
        """The class of another package need not exist here."""
        found = raw_network_config(self.write({"_target_": "no.such.Net", "a": "$1 + 1"}))
        self.assertEqual(found, ("no.such.Net", {"a": 2}))
        self.assertEqual(raw_network_config(self.write({"net": {"_target_": "no.such.Net"}})), ("no.such.Net", {}))


class TestRefusals(ConfigCase):
    @parameterized.expand(
        [
            ("os.system",),
            ("builtins.print",),
            (f"{__name__}.make_network",),
            ("torch.optim.Adam",),
            ("torch.nn",),
            ("DiceMetric",),
        ]
    )
    def test_only_modules_are_built(self, target):
        self.refused({"_target_": target}, "is no network")
        self.assertEqual(CALLED, [])

    @parameterized.expand([("$torch.nn.Linear",), ("@net",), (3,)])
    def test_only_names_of_classes(self, target):
        self.refused({"_target_": target}, "should be the name of a class")

    def test_absent(self):
        self.refused({"_target_": "no.such.Net"}, "'no.such.Net' cannot be imported")
        self.refused({"_target_": "NoSuchNet"}, "'NoSuchNet' cannot be imported")

    def test_no_network(self):
        self.refused({"lr": 1e-3, "loss": LOSS}, "describes no network")
        self.refused([1, 2], "an object with names, this one is a list")
        self.path.write_text("{")
        with self.assertRaisesRegex(ValueError, "cannot be read"):
            read_network_config(str(self.path))

    def test_files(self):
        with self.assertRaisesRegex(FileNotFoundError, "absent.json"):
            read_network_config(str(self.path.with_name("absent.json")))
        with self.assertRaisesRegex(FileNotFoundError, "absent.json"):
            read_network_config(str(self.path.with_name("absent.json")) + "::net")
        with self.assertRaisesRegex(ValueError, "is a folder"):
            read_network_config(str(self.path.parent))
        text = self.path.with_name("net.txt")
        text.touch()
        with self.assertRaisesRegex(ValueError, r"ends in \.json"):
            read_network_config(str(text))

    def test_expressions_that_fail(self):
        self.refused({**VIT, "hidden_size": "$1 / 0"}, "::hidden_size cannot be resolved: division by zero")
        self.refused({**VIT, "hidden_size": "@width"}, "::hidden_size cannot be resolved: .*@width")


class TestBuilding(unittest.TestCase):
    def test_without_memory(self):
        net = NetworkConfig(Path("net.json"), "", nn.Linear, {"in_features": 2, "out_features": 3}).build("meta")
        self.assertTrue(net.weight.is_meta)
        self.assertFalse(net.training)

    def test_a_network_that_needs_its_weights(self):
        net = NetworkConfig(Path("net.json"), "", NeedsItsWeights).build("meta")
        self.assertFalse(net.weight.is_meta)

    @parameterized.expand([("meta",), ("cpu",)])
    def test_arguments_that_do_not_fit(self, device):
        config = NetworkConfig(Path("net.json"), "net", nn.Linear, {"in_features": 2, "width": 3})
        with self.assertRaisesRegex(ValueError, "net.json::net: Linear cannot be built .* 'width'"):
            config.build(device)
        with mock.patch.object(nn.Linear, "reset_parameters", side_effect=RuntimeError("no")):
            config = NetworkConfig(Path("net.json"), "", nn.Linear, {"in_features": 2, "out_features": 3})
            with self.assertRaisesRegex(ValueError, "net.json: Linear cannot be built .*: no"):
                config.build(device)


if __name__ == "__main__":
    unittest.main()
