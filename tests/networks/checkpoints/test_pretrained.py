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
import inspect
import json
import os
import pickle
import subprocess
import sys
import unittest
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn as nn
from parameterized import parameterized

import monai.networks.nets as nets
from monai.apps.checkpoints.cli import main
from monai.bundle import ConfigParser
from monai.networks import from_pretrained, load_checkpoint, read_checkpoint, save_pretrained
from monai.networks.checkpoints.network_def import NetworkBuilder
from monai.networks.checkpoints.untrusted import CheckpointRefused
from monai.networks.checkpoints.write import write_checkpoint
from monai.networks.construction import RECORD, encoded, record_construction
from monai.utils import BlendMode, optional_import
from tests.networks.checkpoints.file_case import FileCase
from tests.networks.checkpoints.small_networks import NETWORKS, outputs
from tests.networks.construction_values import VALUES

torch.set_num_threads(1)
_, has_hub = optional_import("huggingface_hub")
HERE = (__name__,)  # whose classes may be built
QUICK = ("ViT", "DecoderOnlyTransformer", "AutoencoderKL", "DiffusionModelUNetMaisi", "UNet", "VoxelMorphUNet")
UNET = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": (4, 8), "strides": (2,)}
VIT = {"in_channels": 1, "img_size": 16, "patch_size": 8, "hidden_size": 8, "mlp_dim": 8, "num_layers": 1,
       "num_heads": 2, "spatial_dims": 2}  # fmt: skip


def shifting(by: float):
    return lambda x: x + by


@dataclass
class Options:
    """A user's settings."""

    scale: float = 1.0


class WithSettings(nn.Module):
    """A user's network, with settings that are no numbers of Python."""

    factor, _power = 1.0, 2

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.memory = nn.Linear(1, 1), nn.LSTM(1, 1)  # which keeps its weights in a list, too
        self.scale, self.options, self.function = np.float32(1.0), {"scale": 1.0}, torch.tanh
        self.kind, self.levels = BlendMode.CONSTANT, (1, None)
        self.options_of_class, self.space = Options(), SimpleNamespace(scale=1.0)
        self.temperature, self.tensors = torch.tensor(float("nan")), [torch.ones(2)]
        self.part, self.shift = partial(torch.add, alpha=2), shifting(1.0)
        self.own, self.layers, self.unset = self.forward, [self.linear, nn.Dropout(0.1)], float("nan")

    def forward(self, x):
        return self.linear(x) * self.factor

    def other(self, x):
        return x


record_construction(WithSettings)


class WithHead(nets.UNet):
    """A user's network, with arguments of its own."""

    def __init__(self, width: int, act: str = "$RELU"):
        super().__init__(2, 1, 1, (width, 2 * width), (2,), act=act.strip("$"))
        self.head = nn.Conv2d(1, width, 1)


class OwnLayers(nn.Module):
    """A user's network that is no class of MONAI."""

    def __init__(self, body, act=nn.ReLU, rest=()):
        super().__init__()
        self.body, self.act = body, act()

    def forward(self, x):
        return self.act(self.body(x))


Recorded = record_construction(type("Recorded", (OwnLayers,), {"__module__": __name__}))


class Permuted(nets.UNet):
    """A network that draws a setting."""

    def __init__(self):
        super().__init__(**UNET)
        self.order = torch.randperm(64)


class InAList(nets.UNet):
    """A network with weights that no state dict has."""

    def __init__(self):
        super().__init__(**UNET)
        self.others = [nn.Linear(2, 2)]


class WithNew(nets.UNet):
    """A class whose __new__ hides the arguments."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)


class ByPosition(nets.UNet):
    """A class whose arguments have no names."""

    def __init__(self, *channels):
        super().__init__(2, 1, 1, channels, (2,))


def unet(**kwargs) -> nn.Module:
    return nets.UNet(**{**UNET, **kwargs})


def replaced_head() -> nn.Module:
    net = nets.ViT(**VIT, classification=True)
    net.classification_head = nn.Linear(8, 5)
    return net


def changed(path: str, **settings) -> nn.Module:
    net = unet(dropout=0.1)
    part = net.get_submodule(path)
    for name, value in settings.items():
        setattr(part, name, value)
    return net


def reordered(path: str) -> nn.Module:
    net = unet(dropout=0.1)
    part = net.get_submodule(path)
    part.N = part._modules.pop("N")
    return net


def reordered_parameters() -> nn.Module:
    net = unet()
    part = net.get_submodule("model.0.conv")
    part._parameters["weight"] = part._parameters.pop("weight")
    return net


def other_class() -> nn.Module:
    net = unet()
    net.__class__ = WithHead
    return net


def other_buffer() -> nn.Module:
    net = unet()
    net.register_buffer("scale", torch.ones(2), persistent=False)
    net.get_submodule("model").register_buffer("other", torch.ones(2))
    return net


def tied() -> nn.Module:
    net = nets.FullyConnectedNet(4, 4, (4, 4))
    net.output.weight = net.get_submodule("hidden_1").get_submodule("0").weight
    return net


CHANGED = [
    ("a head that was replaced", replaced_head, "classification_head"),
    ("a norm's eps", lambda: changed("model.0.adn.N", eps=1e-3), "eps=0.001"),
    ("dropout", lambda: changed("model.0.adn.D", p=0.5), "p=0.5"),
    ("an activation", lambda: changed("model.0.adn", A=nn.ReLU()), "model.0.adn.A"),
    ("a setting", lambda: changed("", dimensions=3), "dimensions is 3, built is 2"),
    ("a method", lambda: changed("", forward=lambda x: x), "forward was replaced"),
    ("a buffer", other_buffer, "model.other is not built"),
    ("the order of layers", lambda: reordered("model.0.adn"), "model.0.adn has the order D, A, N, built is N, D, A"),
    ("another class", other_class, "built as .*UNet.*is a .*WithHead"),
    ("the order of parameters", reordered_parameters, "model.0.conv has the order bias, weight"),
    ("weights that are one", tied, "one and the same"),
    ("weights in a list", InAList, "others"),
    ("a class that records nothing", lambda: OwnLayers(nn.Identity()), "was not recorded"),
    ("a class with a __new__", lambda: WithNew(**UNET), "was not recorded"),
    ("arguments without names", lambda: ByPosition(4, 8), "by position alone"),
    ("a function without a name", lambda: Recorded(nn.Identity(), act=lambda: nn.ReLU()), "type function"),
    ("a module that records nothing", lambda: Recorded(nn.Conv2d(1, 1, 1)), "body is a module"),
    ("a tensor", lambda: Recorded(None, rest=[torch.ones(1)]), "rest::0 is a value of type Tensor"),
    ("a function of Python's own", lambda: Recorded(None, rest=[len]), "'builtins.len' is not built"),
    ("a function of torch alone", lambda: Recorded(None, rest=[torch.save]), "'torch.serialization.save' is not built"),
    ("a scripted network", lambda: torch.jit.script(unet()), "scripted"),
    ("no values", lambda: unet().to("meta"), "no values"),
]
HOSTILE = [
    ("a class elsewhere", {"_target_": "subprocess.Popen", "args": ["true"]}, "not built"),
    ("a function", {"_target_": "monai.networks.nets.resnet10"}, "not built"),
    ("a path through a module", {"_target_": "monai.networks.utils.torch.hub.load"}, "not built"),
    ("a module's import", {"_target_": "monai.networks.nets.unet.nn.DataParallel"}, "not built"),
    ("no network", {"_target_": "monai.networks.layers.factories.LayerFactory"}, "not built"),
    ("an expression", {**UNET, "_target_": "monai.networks.nets.UNet", "act": "$__import__('os').getcwd()"}, "not run"),
    ("a call in a tuple", {**UNET, "_target_": "monai.networks.nets.UNet", "act": "$(print(1),)"}, "not run"),
    ("a type of torch that is none", {**UNET, "_target_": "monai.networks.nets.UNet", "act": "$torch.hub"}, "not run"),
    ("a reference", {**UNET, "_target_": "monai.networks.nets.UNet", "act": "@network_def"}, "references"),
    ("a nested function", {**UNET, "_target_": "monai.networks.nets.UNet", "act": {"_target_": "os.getcwd"}}, "getcwd"),
    ("a function to hand on", {**UNET, "_target_": "monai.networks.nets.UNet",
                               "act": {"_target_": "os.system", "_mode_": "callable"}}, "os.system"),
    ("a debugger", {**UNET, "_target_": "monai.networks.nets.UNet",
                    "act": {"_target_": "torch.nn.ReLU", "_mode_": "debug"}}, "_mode_"),
    ("other weights", {"_target_": "monai.networks.nets.HoVerNet", "pretrained_url": "http://example.org"}, "weights"),
    ("a disabled network", {"_target_": "monai.networks.nets.UNet", "_disabled_": True}, "_disabled_"),
    ("arguments that do not fit", {"_target_": "monai.networks.nets.UNet", "chanels": 3}, "chanels"),
    ("a long text", {**UNET, "_target_": "monai.networks.nets.UNet", "act": "x" * 10000}, "10,000 characters"),
    ("a long text inside", {**UNET, "_target_": "monai.networks.nets.UNet", "act": f"$({'x' * 2000!r},)"}, "2,000"),
    ("an escape in a text", {**UNET, "_target_": "monai.networks.nets.UNet", "act": "\x1b[31mX"}, r"\\x1b"),
    ("an escape in a name", {"_target_": "monai.networks.nets.UNet", "\x1b" * 900: 1}, r"(\\x1b)+\.\.\.(\\x1b)+"),
    ("an escape in what is fetched", {"_target_": "monai.networks.nets.UNet", "pretrained\x1b": True}, r"\\x1b"),
    ("no class", {"spatial_dims": 2}, "no name of a class"),
    ("a class that is not there", {"_target_": "monai.networks.nets.NoNet"}, "not there"),
]  # fmt: skip


class PretrainedCase(FileCase):
    """A test with a folder that does not exist yet, ``saved``."""

    def setUp(self) -> None:
        super().setUp()
        self.saved = self.folder / "saved"

    def config(self) -> dict:
        return json.loads((self.saved / "config.json").read_text())

    def edit(self, change) -> None:
        content = self.config()
        change(content)
        (self.saved / "config.json").write_text(json.dumps(content))

    def assert_comes_back(self, net: nn.Module, **kwargs) -> nn.Module:
        save_pretrained(net, self.saved, overwrite=True)
        found = from_pretrained(self.saved, **kwargs)
        self.assertIs(type(found), type(net))
        self.assert_same(found.state_dict(), net.state_dict())
        return found


class TestRoundTrip(PretrainedCase):
    @parameterized.expand(QUICK)
    def test_quick(self, name):
        self.check(name)

    @parameterized.expand(sorted(NETWORKS.keys() - set(QUICK)))
    @pytest.mark.grid
    def test_every_network(self, name):
        self.check(name)

    def check(self, name: str) -> None:
        row = NETWORKS[name]
        net = row.build()
        expected = outputs(net, row)
        self.assertTrue(expected)
        random = torch.random.get_rng_state()
        found = self.assert_comes_back(net.train())
        self.assertTrue(torch.equal(torch.random.get_rng_state(), random))
        self.assertTrue(net.training)
        self.assertFalse(found.training)
        for value, wanted in zip(outputs(found, row), expected, strict=True):
            self.assertTrue(torch.equal(value, wanted))
        self.assertEqual(str(found), str(net))
        self.assert_same(dict(found.named_buffers()), dict(net.named_buffers()))

    @pytest.mark.grid  # the process imports monai, which takes longer than all other tests here
    def test_a_machine_with_the_folder_alone(self):
        row = NETWORKS["ViT"]
        net = row.build()
        torch.save(outputs(net, row), self.path)
        save_pretrained(net, self.saved)
        self.saved.rename(self.folder / "moved")
        code = (
            "import sys, torch; from monai.networks import from_pretrained; net = from_pretrained(sys.argv[1]); "
            "torch.manual_seed(0); found = net(torch.rand(1, 1, 32, 32)); expected = torch.load(sys.argv[2]); "
            "assert torch.equal(found[0], expected[0])"
        )
        command = [sys.executable, "-c", code, str(self.folder / "moved"), str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_types(self):
        net = unet().to(torch.bfloat16)
        next(net.parameters()).data = next(net.parameters()).data.double()
        self.assert_comes_back(net)
        self.assertEqual({value.dtype for value in from_pretrained(self.saved, dtype=torch.half).parameters()},
                         {torch.half})  # fmt: skip
        try:
            torch.set_default_dtype(torch.float64)
            self.assert_same(from_pretrained(self.saved).state_dict(), net.state_dict())
        finally:
            torch.set_default_dtype(torch.float32)
        half = nets.ViT(**VIT).half()
        found = self.assert_comes_back(half)
        self.assertEqual([value.dtype for value in found.buffers()], [value.dtype for value in half.buffers()])

    @parameterized.expand([(torch.int8,), (torch.bool,), (torch.complex64,)])
    def test_types_that_are_not_trained(self, dtype):
        net = unet()
        for part in net.modules():
            if isinstance(part, nn.PReLU):
                part.weight = nn.Parameter(torch.ones(1, dtype=dtype), requires_grad=False)
        self.assert_comes_back(net)

    def test_subclass(self):
        found = self.assert_comes_back(WithHead(4), allow=HERE)
        self.assertEqual(found.head.out_channels, 4)
        self.assertEqual(self.config()["network_def"], {"_target_": f"{__name__}.WithHead", "width": 4})
        with self.assertRaisesRegex(CheckpointRefused, "WithHead.*allow="):
            from_pretrained(self.saved)

    def test_values_in_a_network(self):
        self.assert_comes_back(Recorded(unet(), act=partial(nn.GELU, approximate="tanh")), allow=HERE)
        found = from_pretrained(self.saved, allow=HERE)
        self.assertEqual((type(found.body), found.act.approximate), (nets.UNet, "tanh"))
        with self.assertRaisesRegex(TypeError, "sequence of packages"):
            from_pretrained(self.saved, allow=__name__)

    def test_copies_keep_their_record(self):
        net = unet(act=("relu", {"inplace": True}))
        for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.copy(net), nn.DataParallel(net)):
            save_pretrained(copied, self.saved, overwrite=True)
            self.assertEqual(self.config()["network_def"]["act"], "$('relu', {'inplace': True})")

    def test_a_list_that_changes_later(self):
        channels = [4, 8]
        net = unet(channels=channels)
        channels.append(16)
        self.assertEqual(vars(net)[RECORD]["kwargs"]["channels"], [4, 8])

    def test_a_pickle_without_a_record(self):
        net = unet()
        del net.__dict__[RECORD]
        with self.assertRaisesRegex(ValueError, "was not recorded.*config="):
            save_pretrained(pickle.loads(pickle.dumps(net)), self.saved)

    def test_scale_factor(self):
        as_tensors = (torch.tensor([0.7], dtype=torch.double), nn.Parameter(torch.tensor(0.7, dtype=torch.double)))
        for value in (0.7, np.float64(0.7), *as_tensors):
            save_pretrained(unet(), self.saved, scale_factor=value, overwrite=True)
            self.assertEqual(read_checkpoint(self.saved).scale_factor, 0.7)

    @parameterized.expand(
        [
            (True, TypeError),
            ("0.7", TypeError),
            (torch.tensor(True), TypeError),
            (1j, TypeError),
            (torch.ones(2), ValueError),
            (np.ones(0), ValueError),
            (float("nan"), ValueError),
            (torch.tensor(float("inf")), ValueError),
            (10**400, ValueError),
            (0, ValueError),
            (-0.5, ValueError),
        ]
    )
    def test_no_scale_factor(self, value, error):
        with self.assertRaisesRegex(error, "one finite positive number"):
            save_pretrained(unet(), self.saved, scale_factor=value)
        with self.assertRaisesRegex(error, "one finite positive number"):
            write_checkpoint(self.path, {}, value)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_weights_from_elsewhere_are_not_fetched_again(self):
        net = NETWORKS["EfficientNetBN"].build()
        vars(net)[RECORD]["kwargs"]["pretrained"] = True
        save_pretrained(net, self.saved)
        self.assertIs(self.config()["network_def"]["pretrained"], False)

    def test_a_default_that_another_version_has(self):
        save_pretrained(unet(), self.saved)

        def older(content):
            content["saved"]["defaults"]["act"] = "RELU"

        self.edit(older)
        with self.assertRaisesRegex(RuntimeError, "adn.A.weight"):  # of PRELU: it was built with the default of then
            from_pretrained(self.saved)

    def test_attention_that_another_version_builds(self):
        save_pretrained(nets.ViT(**VIT), self.saved)
        self.assertEqual(self.config()["attention_config"][0]["heads"], 2)
        self.edit(lambda content: content["attention_config"][0].update(heads=4))
        self.edit(lambda content: content["saved"].update(versions="\x1b"))
        with self.assertRaisesRegex(CheckpointRefused, r"other attention.*saved by \\x1b"):
            from_pretrained(self.saved)


class TestGivenConfig(PretrainedCase):
    def test_a_network_that_was_changed(self):
        net = replaced_head()
        save_pretrained(
            net, self.saved, config={**VIT, "classification": True, "num_classes": 5, "post_activation": ""}
        )
        net.classification_head = nn.Sequential(net.classification_head)
        with self.assertRaisesRegex(
            ValueError, r"classification_head.0.weight has the shape \(5, 8\), \(2, 8\) is built"
        ):
            save_pretrained(net, self.saved, config={**VIT, "classification": True}, overwrite=True)

    def test_the_order_of_layers_and_of_parameters(self):
        save_pretrained(reordered_parameters(), self.saved, config=UNET)  # no layer computes by their order
        with self.assertRaisesRegex(ValueError, "model.0.adn has the order"):
            save_pretrained(reordered("model.0.adn"), self.saved, config={**UNET, "dropout": 0.1}, overwrite=True)

    def test_a_class_that_records_nothing(self):
        net = OwnLayers(nn.Conv2d(1, 2, (3, 1)))
        conv = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": (3, 1)}
        save_pretrained(net, self.saved, config={"body": conv})
        self.assert_same(from_pretrained(self.saved, allow=HERE).state_dict(), net.state_dict())

    @parameterized.expand(
        [
            ({**UNET, "out_channels": 3}, "shape"),
            ({**UNET, "_target_": "monai.networks.nets.BasicUNet"}, "cannot be built"),
            ({**UNET, "act": lambda: None}, "no form"),
            ({**UNET, "act": "$print()"}, "expressions are not run"),
        ]
    )
    def test_refused(self, config, text):
        with self.assertRaisesRegex(ValueError, text):
            save_pretrained(unet(), self.saved, config=config)
        self.assertFalse(self.saved.exists())


class TestSaving(PretrainedCase):
    @parameterized.expand(
        [
            ("scale", 2.0),
            ("options", {"scale": 2.0}),
            ("function", torch.relu),
            ("kind", BlendMode.GAUSSIAN),
            ("levels", None),
            ("options_of_class", Options(2.0)),
            ("space", SimpleNamespace(scale=2.0)),
            ("space", SimpleNamespace(scale=1.0, shift=1)),
            ("temperature", torch.tensor(2.0)),
            ("tensors", [torch.zeros(2)]),
            ("part", partial(torch.add, alpha=3)),
            ("shift", lambda x: x - 1),
            ("shift", shifting(2.0)),
            ("own", torch.relu),
            ("layers", [nn.Linear(1, 1), nn.Dropout(0.1)]),
            ("layers", [nn.Identity(), nn.Dropout(0.2)]),
            ("factor", 2.0),
            ("_power", 3),
            ("new", (1, "a", [None])),
        ]
    )
    def test_settings_of_any_kind_that_were_changed(self, name, value):
        net = WithSettings()
        setattr(net, name, value)
        with self.assertRaisesRegex(ValueError, f"{name} is|weights inside of {name}"):
            save_pretrained(net, self.saved)

    def test_other_changes_of_settings(self):
        for name, change in (
            ("own", lambda net: setattr(net, "own", net.other)),
            ("layers", lambda net: net.layers.reverse()),
            ("scale", lambda net: vars(net).pop("scale")),
        ):
            net = WithSettings()
            change(net)
            with self.assertRaisesRegex(ValueError, f"{name} is"):
                save_pretrained(net, self.saved)

    def test_a_setting_that_is_drawn(self):
        torch.manual_seed(1)
        net = Permuted()
        torch.manual_seed(1)  # the network that it is compared with does not draw the same by chance
        with self.assertRaisesRegex(ValueError, "order is"):
            save_pretrained(net, self.saved)

    def test_what_is_no_change(self):
        net = WithSettings()
        net.factor, net._cache, net.seen = 1.0, 3, torch.ones(1)
        net.compile(backend="eager")
        copied = copy.deepcopy(net.half())
        for each in (net, copied):
            save_pretrained(each, self.saved, overwrite=True)

    @parameterized.expand(CHANGED)
    def test_refused(self, _name, build, text):
        with self.assertRaisesRegex(ValueError, text):
            save_pretrained(build(), self.saved)
        self.assertFalse(self.saved.exists())

    def test_what_runs_leave_behind_is_no_change(self):
        for name in ("VQVAE", "ViT", "DecoderOnlyTransformer"):
            net = NETWORKS[name].build()
            outputs(net, NETWORKS[name])
            save_pretrained(net.eval(), self.saved, overwrite=True)

    def test_an_existing_folder(self):
        self.saved.mkdir()
        (self.saved / "README.md").write_text("mine")
        save_pretrained(unet(), self.saved)
        with self.assertRaisesRegex(FileExistsError, "overwrite=True"):
            save_pretrained(unet(), self.saved)
        save_pretrained(unet(), self.saved, overwrite=True)
        names = sorted(path.name for path in self.saved.iterdir())
        self.assertEqual(names, ["README.md", "config.json", "model.safetensors"])
        from_pretrained(self.saved)

    def test_whole_or_not_at_all(self):
        for place in ("write_checkpoint", "_digest", "json.dumps"):
            name = f"monai.networks.checkpoints.saved_folder.{place}"
            with mock.patch(name, side_effect=OSError(28, "disk full")), self.assertRaises(OSError):
                save_pretrained(unet(), self.saved)
            self.assertFalse(self.saved.exists(), place)


class TestLoading(PretrainedCase):
    def setUp(self) -> None:
        super().setUp()
        save_pretrained(unet(), self.saved)

    @parameterized.expand(["config.json", "model.safetensors"])
    def test_a_file_is_missing(self, name):
        (self.saved / name).unlink()
        with self.assertRaisesRegex(FileNotFoundError, f"no {name}"):
            from_pretrained(self.saved)

    def test_no_folder(self):
        with self.assertRaisesRegex(FileNotFoundError, "no folder"):
            from_pretrained(self.folder / "absent")
        with self.assertRaisesRegex(NotADirectoryError, "is a file"):
            from_pretrained(self.saved / "config.json")

    def test_truncated_and_damaged_weights(self):
        path = self.saved / "model.safetensors"
        whole = path.read_bytes()
        for content, text in ((whole[:-4], "incomplete"), (whole[:-1] + bytes([whole[-1] ^ 1]), "damaged")):
            path.write_bytes(content)
            with self.assertRaisesRegex(CheckpointRefused, text):
                from_pretrained(self.saved)

    def test_weights_of_another_training(self):
        save_pretrained(unet(), self.folder / "other")
        (self.folder / "other" / "model.safetensors").replace(self.saved / "model.safetensors")
        with self.assertRaisesRegex(CheckpointRefused, "another network"):
            from_pretrained(self.saved)

    @parameterized.expand(
        [
            (
                lambda content: content["saved"].update(layout=2, versions="\x1b" * 900),
                r"by (\\x1b)+\.\.\.(\\x1b)+;.*newer",
            ),
            (lambda content: content["saved"].update(layout=0), "not written by save_pretrained"),
            (lambda content: content.pop("saved"), "not written by save_pretrained"),
            (lambda content: content.update(network_def=[]), "lacks network_def"),
            (lambda content: content["saved"].pop("weights"), "lacks weights"),
            (lambda content: content["network_def"].update(_target_="monai.networks.nets.VNet"), "cannot be built"),
        ]
    )
    def test_another_configuration(self, change, text):
        self.edit(change)
        with self.assertRaisesRegex(CheckpointRefused, text):
            from_pretrained(self.saved)

    @parameterized.expand([(b"{", "no JSON"), (b"\xff", "no JSON"), (b"[" * 100000, "no JSON"), (b"[]", "not written")])
    def test_no_configuration(self, content, text):
        (self.saved / "config.json").write_bytes(content)
        with self.assertRaisesRegex(CheckpointRefused, text):
            from_pretrained(self.saved)

    @parameterized.expand(HOSTILE)
    def test_nothing_runs(self, _name, network_def, text):
        self.edit(lambda content: content.update(network_def=network_def))
        with self.assertRaisesRegex(CheckpointRefused, text) as refusal:
            from_pretrained(self.saved)
        message = str(refusal.exception)
        self.assertTrue(message.isprintable() and len(message) < 3000, message)

    def test_other_readers(self):
        net = unet()
        load_checkpoint(net, self.saved)
        self.assert_same(net.state_dict(), from_pretrained(self.saved).state_dict())
        parser = ConfigParser()
        parser.read_config(str(self.saved / "config.json"))
        built = parser.get_parsed_content("network_def")
        self.assertIsInstance(built, nets.UNet)
        load_checkpoint(built, self.saved)

    def test_command_line(self):
        save_pretrained(nets.ViT(**VIT), self.saved, overwrite=True)
        with mock.patch("sys.stdout"):
            self.assertEqual(main(["inspect", str(self.saved)]), 0)
            self.assertEqual(main(["verify", str(self.saved), "--config", str(self.saved)]), 0)


class TestRecord(unittest.TestCase):
    @parameterized.expand(VALUES)
    def test_value(self, value):
        found = NetworkBuilder()._value(json.loads(json.dumps(encoded(value))), "value", 0)
        self.assertEqual(found, value)
        self.assertIs(type(found), type(value))

    def test_classes_stay_as_they_are(self):
        for cls in nets.RECORDED:
            expected = inspect.signature(cls.__init__).parameters
            self.assertEqual(list(inspect.signature(cls).parameters), list(expected)[1:], cls)


@unittest.skipUnless(has_hub, "huggingface_hub is not installed: pip install huggingface_hub")
class TestHub(PretrainedCase):
    def test_mixin(self):
        from tests.networks.checkpoints.hub_networks import MyUNet, OtherNet

        net = MyUNet(**UNET)
        with mock.patch("huggingface_hub.ModelHubMixin.generate_model_card"):
            net.save_pretrained(self.saved)
        found = MyUNet.from_pretrained(str(self.saved))
        self.assertIs(type(found), MyUNet)
        self.assert_same(found.state_dict(), net.state_dict())
        self.assertEqual(self.config()["saved"]["layout"], 1)
        self.assert_same(from_pretrained(self.saved, allow=(MyUNet.__module__,)).state_dict(), net.state_dict())
        self.assertEqual(MyUNet.from_pretrained(self.saved, dtype=torch.half).model[0].conv.weight.dtype, torch.half)
        with self.assertRaisesRegex(TypeError, "width"):
            MyUNet.from_pretrained(self.saved, width=3)
        with self.assertRaisesRegex(ValueError, "holds a MyUNet, not a OtherNet"):
            OtherNet.from_pretrained(self.saved)

    def test_push(self):
        from tests.networks.checkpoints.hub_networks import OtherNet

        pushed: list[str] = []
        with (
            mock.patch("huggingface_hub.hub_mixin.HfApi") as api,
            mock.patch("huggingface_hub.ModelHubMixin.generate_model_card"),
        ):
            api.return_value.create_repo.return_value.repo_id = "me/net"
            api.return_value.upload_folder.side_effect = lambda folder_path, **_: pushed.extend(
                sorted(path.name for path in Path(folder_path).iterdir())
            )
            OtherNet(**UNET, others=2).push_to_hub("me/net")
        self.assertEqual(pushed, ["config.json", "model.safetensors"])

    def test_download(self):
        save_pretrained(unet(), self.saved)
        with mock.patch("huggingface_hub.snapshot_download", return_value=str(self.saved)) as snapshot:
            from_pretrained("me/net", revision="main")
        self.assertEqual(snapshot.call_args.kwargs["repo_id"], "me/net")
        self.assertEqual(snapshot.call_args.kwargs["revision"], "main")


class TestWithoutHub(unittest.TestCase):
    def test_remedy(self):
        with mock.patch.dict(sys.modules, {"huggingface_hub": None}):
            with self.assertRaisesRegex(FileNotFoundError, "pip install huggingface_hub"):
                from_pretrained("me/net")
            with self.assertRaisesRegex(FileNotFoundError, "no folder 'nowhere'"):
                from_pretrained("nowhere")


if __name__ == "__main__":
    unittest.main()
