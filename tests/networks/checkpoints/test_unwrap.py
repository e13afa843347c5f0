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
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn as nn
from ignite.engine import Engine
from ignite.handlers import Checkpoint as IgniteCheckpoint
from parameterized import parameterized

from monai.networks.checkpoints import load_checkpoint, networks_in, read_checkpoint, read_networks
from monai.networks.checkpoints.untrusted import NetworkNotChosen
from monai.networks.nets import AutoencoderKL, ControlNet, DiffusionModelUNet, UNet
from tests.networks.checkpoints.file_case import FileCase

torch.set_num_threads(1)
DIFFUSION = {"spatial_dims": 2, "in_channels": 1, "num_res_blocks": (1,), "channels": (8,), "attention_levels": (True,)}
DIFFUSION |= {"norm_num_groups": 4, "num_head_channels": 4}
AUTOENCODER = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "num_res_blocks": (1,), "channels": (8,)}
AUTOENCODER |= {"attention_levels": (False,), "latent_channels": 2, "norm_num_groups": 4}


class Small(nn.Module):
    """A network with a norm, whose state dict has versions and a count."""

    def __init__(self, features: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, features, 3), nn.BatchNorm2d(features))
        self.head = nn.Linear(features, 2)


class Named(nn.Module):
    """Networks under names of the caller's choice."""

    def __init__(self, **networks: nn.Module) -> None:
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)


def unet(**kwargs) -> DiffusionModelUNet:
    return DiffusionModelUNet(**DIFFUSION, out_channels=1, **kwargs)


def controlnet() -> ControlNet:
    return ControlNet(**DIFFUSION, conditioning_embedding_in_channels=1, conditioning_embedding_num_channels=(4,))


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net)  # nothing is compiled before the first call


def lightning(module: nn.Module, **more) -> dict:
    """What Lightning 2 saves, as far as it matters here."""
    optimizer = torch.optim.Adam(module.parameters())
    sum((p**2).sum() for p in module.parameters()).backward()
    optimizer.step()
    monitor = {"best_model_score": torch.tensor(0.1), "best_k_models": {"a.ckpt": torch.tensor(0.1)}}
    return {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": module.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": monitor},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [{"last_epoch": 1}],
        "hyper_parameters": {"lr": 0.1, "start": {"weight": torch.eye(3)}},
        **more,
    }


# what is saved for a network, and the wrappers that are then found around it, without knowing the network
WRAPPED = {
    "nothing": (lambda net: net.state_dict(), ()),
    "data_parallel": (lambda net: nn.DataParallel(net).state_dict(), ("module.",)),
    "compile": (lambda net: compiled(net).state_dict(), ("_orig_mod.",)),
    "both": (lambda net: compiled(nn.DataParallel(net)).state_dict(), ("_orig_mod.", "module.")),
    "both_turned": (lambda net: nn.DataParallel(compiled(net)).state_dict(), ("module.", "_orig_mod.")),
    "twice": (lambda net: nn.DataParallel(nn.DataParallel(net)).state_dict(), ("module.", "module.")),
    "user_module": (lambda net: Named(model=nn.DataParallel(net)).state_dict(), ("model.", "module.")),
    "state_dict": (lambda net: {"state_dict": net.state_dict(), "epoch": 3}, ("state_dict",)),
    "model_state_dict": (lambda net: {"model_state_dict": net.state_dict(), "loss": 0.1}, ("model_state_dict",)),
    "nested": (lambda net: {"a": {"b": [net.state_dict(), 1]}}, ("a", "b", "0")),
    "lightning": (lambda net: lightning(Named(model=net)), ("lightning", "state_dict", "model.")),
    "lightning_any_name": (lambda net: lightning(Named(anything=net)), ("lightning", "state_dict", "anything.")),
    "lightning_module": (lambda net: lightning(Named(module=net)), ("lightning", "state_dict", "module.")),
    "lightning_with_loss": (
        lambda net: lightning(Named(net=net, loss=nn.CrossEntropyLoss(torch.ones(2)))),
        ("lightning", "state_dict", "net."),
    ),
    "lightning_all": (
        lambda net: {"checkpoint": lightning(compiled(Named(net=nn.DataParallel(compiled(net)))))},
        ("checkpoint", "lightning", "state_dict", "_orig_mod.", "net.", "module.", "_orig_mod."),
    ),
    "statistics": (
        lambda net: {
            "net": net.state_dict(),
            "metrics": {"loss": torch.ones(9), "weight": torch.ones(3)},
            "args": {"affine": torch.eye(4)},
            "confusion": torch.ones(2, 2),
        },
        ("net",),
    ),
}


class SavedCase(FileCase):
    def save(self, content) -> Path:
        torch.save(content, self.path)
        return self.path


class TestWrappers(SavedCase):
    @parameterized.expand([(name, with_net) for name in WRAPPED for with_net in (False, True)])
    def test_the_network_is_found(self, name, with_net):
        wrap, wrappers = WRAPPED[name]
        net = Small()
        path = self.save(wrap(net))
        checkpoint = read_checkpoint(path, net=Small() if with_net else None)
        self.assert_same(checkpoint.state_dict, net.state_dict())
        self.assertEqual(checkpoint.wrappers, wrappers)
        self.assertIsNone(checkpoint.scale_factor)
        self.assertEqual(len(networks_in(path)), 1)
        other = Small()
        load_checkpoint(compiled(nn.DataParallel(other)), path)
        self.assert_same(other.state_dict(), net.state_dict())

    def test_versions_of_modules_are_kept(self):
        """torch looks for them; without, it would let a batch norm lack its count."""
        path = self.save({"state_dict": nn.DataParallel(Small()).state_dict()})
        versions = read_checkpoint(path).state_dict._metadata
        self.assertEqual(dict(versions), dict(Small().state_dict()._metadata))

    def test_compiled_submodules(self):
        plain, partly = Small(), Small()
        partly.body[0] = compiled(partly.body[0])
        checkpoint = read_checkpoint(self.save({"net": partly.state_dict()}), net=plain)
        self.assertEqual(checkpoint.wrappers, ("net", "*._orig_mod."))
        self.assertEqual(list(checkpoint.state_dict), list(plain.state_dict()))
        self.assertIn("body.0", checkpoint.state_dict._metadata)
        load_checkpoint(partly, self.path)  # a network with the same compiled submodule
        self.assertEqual(list(read_checkpoint(self.path, net=partly).state_dict), list(partly.state_dict()))

    def test_two_keys_never_become_one(self):
        state = {"a._orig_mod.weight": torch.ones(2, 2), "a.weight": torch.zeros(2, 2)}
        self.assertEqual(list(read_checkpoint(self.save(state)).state_dict), list(state))

    @parameterized.expand([(wrap,) for wrap in (nn.DataParallel, lambda net: Named(model=net), lambda net: net)])
    def test_a_network_with_a_child_called_model(self, wrap):
        """MONAI's UNet: its own prefix stays, with the network to tell and without."""
        net = UNet(2, 1, 2, channels=(4, 8), strides=(2,))
        self.assertTrue(all(key.startswith("model.") for key in net.state_dict()))
        path = self.save(wrap(net).state_dict())
        self.assert_same(read_checkpoint(path).state_dict, net.state_dict())
        self.assert_same(read_checkpoint(path, net=net).state_dict, net.state_dict())
        wider = UNet(2, 1, 3, channels=(4, 8), strides=(2,))  # for which another head is to be trained
        self.assertEqual(list(read_checkpoint(path, net=wider).state_dict), list(wider.state_dict()))

    def test_the_network_tells_which_prefix_is_its_own(self):
        net = Named(model=Small())
        path = self.save(net.state_dict())
        self.assertEqual(read_checkpoint(path).wrappers, ("model.",))
        self.assertEqual(read_checkpoint(path, net=net).wrappers, ())
        self.assert_same(read_checkpoint(path, net=net).state_dict, net.state_dict())
        load_checkpoint(Named(module=net).module, path)
        path = self.save(lightning(Named(module=net)))
        self.assertEqual(read_checkpoint(path, net=net).wrappers, ("lightning", "state_dict", "module."))
        path = self.save(lightning(net))
        self.assertEqual(read_checkpoint(path, net=net).wrappers, ("lightning", "state_dict"))

    def test_old_layouts_are_recognized_below_a_prefix(self):
        """Their top-level modules are others, but not all of them."""
        old = {f"module.{key}": torch.ones(2, 2) for key in ("input_blocks.0.0.weight", "time_embed.0.weight")}
        self.assertEqual(read_checkpoint(self.save(old), net=unet()).wrappers, ("module.",))
        old = {f"model.{key}": torch.ones(2, 2) for key in ("input_blocks.0.0.weight", "time_embed.0.weight")}
        self.assertEqual(read_checkpoint(self.save(old), net=unet()).wrappers, ("model.",))

    def test_ignite(self):
        net, trainer = Small(), Engine(lambda engine, batch: None)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        optimizer.zero_grad()
        net.head(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        saver = IgniteCheckpoint({"model": net, "optimizer": optimizer, "trainer": trainer}, str(self.path.parent))
        saver(trainer)
        (path,) = self.path.parent.glob("*.pt")
        checkpoint = read_checkpoint(path)
        self.assertEqual(checkpoint.wrappers, ("model",))
        self.assert_same(checkpoint.state_dict, net.state_dict())


class TestScaleFactor(SavedCase):
    @parameterized.expand([(torch.tensor(0.75),), (torch.tensor([0.75], dtype=torch.float16),), (0.75,)])
    def test_maisi(self, value):
        net = unet()
        path = self.save({"epoch": 7, "loss": 0.1, "scale_factor": value, "unet_state_dict": net.state_dict()})
        checkpoint = load_checkpoint(unet(), path)
        self.assertEqual((checkpoint.scale_factor, checkpoint.wrappers), (0.75, ("unet_state_dict",)))
        self.assertIs(type(checkpoint.scale_factor), float)

    def test_buffer_of_a_lightning_module(self):
        module = Named(unet=Small())
        module.register_buffer("scale_factor", torch.tensor(2.0))
        self.assertEqual(read_checkpoint(self.save(lightning(module))).scale_factor, 2.0)

    @parameterized.expand(
        [("text", "large", "'large'"), ("several", torch.ones(2), r"shape \[2\]"), ("flag", True, "True")]
    )
    def test_anything_else_is_refused(self, _, value, pattern):
        path = self.save({"unet_state_dict": Small().state_dict(), "scale_factor": value})
        with self.assertRaisesRegex(ValueError, f"scale_factor must be a number.*{pattern}"):
            read_checkpoint(path)


class TestSeveralNetworks(SavedCase):
    def test_a_name_chooses(self):
        first, second = Small(), Small()
        path = self.save({"unet_state_dict": first.state_dict(), "autoencoder_state_dict": second.state_dict()})
        self.assertEqual(networks_in(path), ["unet_state_dict", "autoencoder_state_dict"])
        with self.assertRaisesRegex(
            ValueError, "2 networks: choose with name=.*'unet_state_dict', 'autoencoder_state_dict'"
        ):
            read_checkpoint(path)
        self.assert_same(read_checkpoint(path, name="autoencoder_state_dict").state_dict, second.state_dict())
        with self.assertRaisesRegex(ValueError, "called 'vae'.*'unet_state_dict'"):
            read_checkpoint(path, name="vae")
        everything = read_networks(path)
        self.assertEqual(list(everything), networks_in(path))
        self.assert_same(everything["unet_state_dict"].state_dict, first.state_dict())

    @parameterized.expand([(unet,), (controlnet,), (lambda: AutoencoderKL(**AUTOENCODER),)])
    def test_the_network_chooses(self, build):
        nets = {"unet": unet(), "controlnet": controlnet(), "autoencoder": AutoencoderKL(**AUTOENCODER)}
        nets["discriminator"] = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1, 3))
        (expected,) = [net for net in nets.values() if type(net) is type(build())]
        for content in (
            {name: net.state_dict() for name, net in nets.items()},
            lightning(Named(**nets)),
            {name: {"state_dict": nn.DataParallel(net).state_dict()} for name, net in nets.items()},
        ):
            net = build()
            load_checkpoint(net, self.save(content))
            self.assert_same(net.state_dict(), expected.state_dict())
            with self.assertRaisesRegex(ValueError, "4 networks: choose"):
                read_checkpoint(self.path)

    def test_shapes_choose(self):
        small, large = Small(3), Small(5)
        path = self.save({"student": small.state_dict(), "teacher": large.state_dict()})
        self.assert_same(read_checkpoint(path, net=Small(5)).state_dict, large.state_dict())

    @parameterized.expand([("ema",), ("ema_state_dict",), ("state_dict_ema",), ("model_ema",)])
    def test_an_average_is_a_second_network(self, name):
        path = self.save({"state_dict": Small().state_dict(), name: Small().state_dict()})
        with self.assertRaisesRegex(
            ValueError, f"keys do not tell which: choose with name=, from 'state_dict', '{name}'"
        ):
            read_checkpoint(path, net=Small())
        self.assertEqual(read_checkpoint(path, net=Small(), name=name).wrappers, (name,))

    def test_of_lightning(self):
        nets = {"autoencoder": Small(), "discriminator": Small(4)}
        path = self.save(lightning(Named(**nets)))
        self.assertEqual(networks_in(path), ["autoencoder", "discriminator"])
        with self.assertRaisesRegex(ValueError, "'autoencoder', 'discriminator'"):
            read_checkpoint(path)
        for name, net in nets.items():
            checkpoint = read_checkpoint(path, name=name)
            self.assert_same(checkpoint.state_dict, net.state_dict())
            self.assertEqual(checkpoint.wrappers, ("lightning", "state_dict", f"{name}."))

    def test_a_lightning_module_that_is_the_network(self):
        net = Small()
        path = self.save(lightning(net))
        self.assert_same(read_checkpoint(path, net=Small()).state_dict, net.state_dict())

    def test_a_part_of_a_larger_network(self):
        """A module of the user's with two networks is one, unless told otherwise."""
        both = Named(unet=Small(), vae=nn.Linear(2, 2))
        path = self.save(both.state_dict())
        self.assert_same(read_checkpoint(path).state_dict, both.state_dict())
        self.assertEqual(networks_in(path), ["state_dict"])
        with self.assertRaisesRegex(ValueError, "larger network, of which 'unet'.*name='unet'"):
            read_checkpoint(path, net=Small())
        self.assert_same(read_checkpoint(path, net=Small(), name="unet").state_dict, both.unet.state_dict())

    def test_a_list(self):
        path = self.save([Small().state_dict(), nn.Linear(2, 2).state_dict()])
        self.assertEqual(networks_in(path), ["0", "1"])


class Averaging(nn.Module):
    """What ema_pytorch's EMA saves: the network, its moving average and two counters."""

    def __init__(self, net: nn.Module, average: nn.Module) -> None:
        super().__init__()
        self.online_model, self.ema_model = net, average
        self.register_buffer("initted", torch.tensor(True))
        self.register_buffer("step", torch.tensor(100))


class TestAverages(SavedCase):
    """Moving averages of weights, as trainers keep them: told by their names, and read by any name that tells them."""

    def setUp(self) -> None:
        super().setUp()
        self.net, self.average = Small(), Small()

    def assert_chooses(self, content: dict, names: dict[str, nn.Module], average: str) -> None:
        """A load without a name says which one is the average; each of the names reads its network."""
        path = self.save(content)
        for net in (None, Small()):
            with self.assertRaisesRegex(
                NetworkNotChosen, rf"choose with name=.*By name '{average}' is a moving average \(EMA\).*last step"
            ):
                read_checkpoint(path, net=net)
            for name, expected in names.items():
                self.assert_same(read_checkpoint(path, net=net, name=name).state_dict, expected.state_dict())
        other = Small()
        load_checkpoint(other, path, name=average)
        self.assert_same(other.state_dict(), self.average.state_dict())

    def test_beside_the_network(self):
        content = {"model_state_dict": self.net.state_dict(), "ema_state_dict": self.average.state_dict()}
        names = {"model_state_dict": self.net, "ema_state_dict": self.average}
        self.assert_chooses(content, names, "ema_state_dict")

    def test_of_ema_pytorch(self):
        content = Averaging(self.net, self.average).state_dict()
        self.assert_chooses(content, {"online_model": self.net, "ema_model": self.average}, "ema_model")

    def test_of_a_trainer(self):
        """As denoising-diffusion-pytorch saves it."""
        content = {"step": 1, "model": self.net.state_dict(), "ema": Averaging(self.net, self.average).state_dict()}
        names = {"model": self.net, "ema/ema_model": self.average, "ema.ema_model": self.average}
        names |= {"ema_model": self.average, "ema/online_model": self.net}
        with self.assertRaisesRegex(NetworkNotChosen, "'ema/ema_model'"):
            read_checkpoint(self.save(content))
        for name, expected in names.items():
            self.assert_same(read_checkpoint(self.path, name=name).state_dict, expected.state_dict())

    def test_of_lightning(self):
        module = Named(net=self.net, ema=Averaging(self.net, self.average))
        path = self.save(lightning(module))
        self.assertEqual(networks_in(path), ["net", "ema/online_model", "ema/ema_model"])
        for name in ("ema/ema_model", "ema.ema_model", "ema_model"):
            net = nn.DataParallel(Small())
            load_checkpoint(net, path, name=name)
            self.assert_same(net.module.state_dict(), self.average.state_dict())

    def test_of_lightnings_callback(self):
        """WeightAveraging saves the average as the network, and the network beside it."""
        content = lightning(Named(net=self.average))
        content |= {"current_model_state": {f"net.{key}": value for key, value in self.net.state_dict().items()}}
        content |= {"averaging_state": {"n_averaged": torch.tensor(3)}}
        with self.assertRaisesRegex(NetworkNotChosen, "By name 'state_dict' is a moving average"):
            read_checkpoint(self.save(content), net=Small())
        net = Small()
        load_checkpoint(net, self.path, name="current_model_state")
        self.assert_same(net.state_dict(), self.net.state_dict())

    @parameterized.expand([("bare", lambda state: state), ("named", lambda state: {"swa": state, "epoch": 3})])
    def test_averaged_model_of_torch(self, _, wrap):
        """Its counter lies beside the network, and is none of it."""
        averaged = torch.optim.swa_utils.AveragedModel(self.net)
        path = self.save(wrap(averaged.state_dict()))
        for net in (None, Small()):
            self.assert_same(read_checkpoint(path, net=net).state_dict, self.net.state_dict())
        self.assertEqual(read_checkpoint(path, net=averaged).state_dict["n_averaged"], 0)

    def test_nested_anywhere(self):
        """The remedy of the error helps, at any depth, and through wrappers inside."""
        content = Named(trainer=Named(ema_model=nn.DataParallel(self.average), loss=nn.Linear(1, 1))).state_dict()
        with self.assertRaisesRegex(NetworkNotChosen, r"choose it with name='(trainer\.ema_model\.module)'") as caught:
            load_checkpoint(Small(), self.save(content))
        for name in (caught.exception.args[0].split("name='")[1].split("'")[0], "ema_model", "trainer.ema_model"):
            net = Small()
            load_checkpoint(net, self.path, name=name)
            self.assert_same(net.state_dict(), self.average.state_dict())

    def test_several_of_a_name(self):
        content = Named(a=Named(ema_model=self.net, x=Small()), b=Named(ema_model=self.average, x=Small())).state_dict()
        with self.assertRaisesRegex(NetworkNotChosen, "several submodules called 'ema_model': .*'a.ema_model', 'b.ema"):
            read_checkpoint(self.save(content), name="ema_model")
        self.assert_same(read_checkpoint(self.path, name="b.ema_model").state_dict, self.average.state_dict())

    def test_a_network_that_averages_is_loaded_whole(self):
        content = Averaging(self.net, self.average)
        other = Averaging(Small(), Small())
        load_checkpoint(other, self.save(content.state_dict()))
        self.assert_same(other.state_dict(), content.state_dict())
        quantizer = {
            "quantizer.quantizer.ema_cluster_size": torch.ones(3),
            "quantizer.quantizer.ema_w": torch.ones(3, 2),
        }
        self.assertEqual(networks_in(self.save({**quantizer, "encoder.weight": torch.ones(2, 2)})), ["state_dict"])


class TestWhatIsNoTensor(SavedCase):
    def test_entries_beside_the_modules_are_left_out(self):
        net = Small()
        path = self.save({**net.state_dict(), "epoch": 3, "_metadata": {"": {"version": 1}}})
        self.assert_same(load_checkpoint(Small(), path).state_dict, net.state_dict())

    def test_inside_of_a_module_they_are_refused(self):
        path = self.save({**Small().state_dict(), "head.scale": 0.5, "head.name": "x"})
        with self.assertRaisesRegex(ValueError, r"no tensors: 'head.scale' \(float\), 'head.name' \(str\)"):
            read_checkpoint(path)

    def test_counts_become_tensors(self):
        state = {**Small().state_dict(), "body.1.num_batches_tracked": 7}
        net = Small()
        load_checkpoint(net, self.save(state))
        self.assertEqual(int(net.body[1].num_batches_tracked), 7)

    def test_extra_state_is_kept(self):
        class Extra(Small):
            def get_extra_state(self):
                return {"scale": torch.ones(3), "words": ["a"]}

            def set_extra_state(self, state):
                self.loaded = state

        net = Extra()
        load_checkpoint(net, self.save({"net": Extra().state_dict()}))
        self.assertEqual(net.loaded["words"], ["a"])

    def test_parameters_come_without_gradient(self):
        checkpoint = read_checkpoint(self.save(OrderedDict(Small().named_parameters())))
        self.assertEqual({(type(v), v.requires_grad) for v in checkpoint.state_dict.values()}, {(torch.Tensor, False)})

    @parameterized.expand(
        [
            ("numbers", {"epoch": 1, "loss": 0.5}, r"a dictionary with 'epoch' \(int\), 'loss' \(float\)"),
            ("optimizer", {"opt": torch.optim.SGD(Small().parameters(), 1).state_dict()}, r"'opt' \(optimizer state\)"),
            ("empty", {}, "an empty dictionary"),
            ("a_tensor", torch.ones(3, 4), r"one tensor of shape \[3, 4\]"),
            ("text", "weights", "a str"),
            ("indices", {"a": torch.arange(3)}, r"'a' \(Tensor\)"),
            ("many", {str(i): i for i in range(100)}, r"'7' \(int\) and 92 more"),
        ]
    )
    def test_no_network(self, _, content, pattern):
        path = self.save(content)
        with self.assertRaisesRegex(
            ValueError, f"{path} holds no network, but .*{pattern}.*: pass a file with a state dict"
        ):
            read_checkpoint(path)
        self.assertEqual(networks_in(path), [])

    def test_optimizer_of_adam(self):
        """Its moments look like a network."""
        net = Small()
        optimizer = torch.optim.Adam(net.parameters())
        sum((p**2).sum() for p in net.parameters()).backward()
        optimizer.step()
        path = self.save({"optimizer": optimizer.state_dict(), "ema": {"shadow": list(net.parameters())}})
        self.assertEqual(networks_in(path), [])

    def test_dictionaries_that_hold_themselves(self):
        content = {"net": Small().state_dict()}
        content["self"] = content
        deep = content
        for _ in range(40):
            deep = {"deeper": deep, "again": [deep, deep]}
        self.assertEqual(networks_in(self.save(content)), ["net"])
        self.assertEqual(networks_in(self.save(deep)), [])


if __name__ == "__main__":
    unittest.main()
