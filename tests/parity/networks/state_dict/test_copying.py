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

"""MONAI's helpers that copy by names, given what older packages wrote."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.bundle import scripts
from monai.handlers import CheckpointLoader
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.utils import copy_model_state
from tests.differences import max_difference
from tests.networks.state_dict.test_copying import engine
from tests.parity.references.subset import kept

torch.set_num_threads(1)

CASES = ["monai-generative==0.2.3, AutoencoderKL, 2-D", "monai-generative==0.2.3, DiffusionModelUNet, 2-D"]


def by_copy(net, state, folder):
    copy_model_state(net, state)


def by_copy_apart(net, state, folder):
    net.load_state_dict(copy_model_state(net, state, inplace=False)[0])


def by_copy_into_a_holder(net, state, folder):
    copy_model_state(nn.ModuleDict({"net": net}), state, dst_prefix="net.")


def by_bundle(net, state, folder):
    (folder / "b/models").mkdir(parents=True)
    torch.save(state, folder / "b/models/model.pt")
    scripts.load("b", model=net, bundle_dir=folder, device="cpu", source="github")


def by_loader(net, state, folder):
    torch.save(state, folder / "c.pt")
    CheckpointLoader(str(folder / "c.pt"), {"net": net}, strict=False, strict_shape=False)(engine())


def by_loader_of_several(net, state, folder):
    torch.save({"net": state, "other": {}}, folder / "c.pt")
    CheckpointLoader(str(folder / "c.pt"), {"net": net}, strict=False, strict_shape=False)(engine())


def by_export_without_ignite(net, state, folder):
    class StoppedError(Exception):
        pass

    def stop(model, **_):
        raise StoppedError

    torch.save(state, folder / "m.pt")
    (folder / "c.json").write_text("{}")
    parser = SimpleNamespace(get_parsed_content=lambda name: net, config={}, get=lambda *a, **k: None)
    files = {"filepath": "x", "ckpt_file": str(folder / "m.pt"), "config_file": str(folder / "c.json")}
    before, scripts.has_ignite = scripts.has_ignite, False
    try:
        scripts._export(stop, None, parser, net_id="n", key_in_ckpt="", **files)
    except StoppedError:
        pass
    finally:
        scripts.has_ignite = before


WAYS = [
    by_copy,
    by_copy_apart,
    by_copy_into_a_holder,
    by_bundle,
    by_loader,
    by_loader_of_several,
    by_export_without_ignite,
]


class TestOlderCheckpoints(unittest.TestCase):
    @parameterized.expand([(f"{case[18:]} {way.__name__}", case, way) for case in CASES for way in WAYS])
    def test_same_weights_as_a_load(self, _, name, way):
        case, reference = kept(name)
        state = reference["state_dict"]
        cls = {"AutoencoderKL": AutoencoderKL, "DiffusionModelUNet": DiffusionModelUNet}[case.network]
        loaded, copied = cls(**case.kwargs), cls(**case.kwargs)
        loaded.load_state_dict(state)
        keys = list(state)
        with tempfile.TemporaryDirectory() as folder:
            way(copied, state, Path(folder))
        self.assertEqual(max_difference(list(copied.state_dict().values()), list(loaded.state_dict().values())), 0.0)
        self.assertEqual(list(state), keys)

    def test_what_was_copied_is_named_as_the_network_names_it(self):
        case, reference = kept(CASES[0])
        net = AutoencoderKL(**case.kwargs)
        state, updated, unchanged = copy_model_state(net, reference["state_dict"], inplace=False)
        self.assertEqual((list(state), updated, unchanged), (list(net.state_dict()), sorted(net.state_dict()), []))

    def test_a_part_with_a_projection_that_was_never_used(self):
        case, reference = kept(CASES[0])
        part = {key: value for key, value in reference["state_dict"].items() if key.startswith("encoder.")}
        net = AutoencoderKL(**case.kwargs)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with self.assertRaisesRegex(RuntimeError, "only a part of the checkpoint.*use_proj_attn=False"):
            copy_model_state(net, part)
        self.assertEqual(max_difference(list(net.state_dict().values()), list(before.values())), 0.0)
        without = AutoencoderKL(**case.kwargs, use_proj_attn=False)
        _, updated, _ = copy_model_state(without, part)
        self.assertEqual(updated, sorted(key for key in without.state_dict() if key.startswith("encoder.")))

    def test_into_a_dictionary(self):
        case, reference = kept(CASES[0])
        net = AutoencoderKL(**case.kwargs)
        with self.assertRaisesRegex(RuntimeError, "pass the network instead of its state dict"):
            copy_model_state(net.state_dict(), reference["state_dict"])
        copy_model_state(dict(net.state_dict()), net)
        copy_model_state(nn.Linear(2, 2).state_dict(), reference["state_dict"])

    def test_mapping_and_filter_say_which_names_are_meant(self):
        case, reference = kept(CASES[0])
        state = reference["state_dict"]
        net = AutoencoderKL(**case.kwargs)
        key = next(key for key in state if key.endswith(".to_q.weight"))
        own = key.replace("to_q", "attn.to_q")
        _, updated, _ = copy_model_state(net, state, mapping={key: own})
        self.assertIn(own, updated)
        self.assertFalse(any("attn.to_k" in name for name in updated))
        _, updated, _ = copy_model_state(net, state, filter_func=lambda name, value: None)
        self.assertFalse(any("attn.to_" in name for name in updated))


if __name__ == "__main__":
    unittest.main()
