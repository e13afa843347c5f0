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

"""MONAI's own exporters on the generative networks: TorchScript, ONNX, and bundles."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import torch
from parameterized import parameterized

from monai.networks import convert_to_onnx, convert_to_torchscript
from tests.differences import max_difference
from tests.networks.exports.columns import difference, flat, onnx_runner
from tests.networks.exports.row import FIRST, OTHER
from tests.networks.exports.rows import ROWS

torch.set_num_threads(1)
TOLERANCE = 1e-5
BY_NAME = {row.name: row for row in ROWS}
SCRIPTED = [
    "DiffusionModelUNet/conditioned",
    "ControlNet/2-D",
    "SPADEDiffusionModelUNet/2-D",
    "AutoencoderKL/2-D",
    "VQVAE/2-D",
    "DiffusionModelUNetMaisi/spacing and body region",
    "AutoencoderKlMaisi/as published",
]
# drawn numbers cannot be compared: these draw none; `./runtests.sh --net` exports the others
IN_ONNX = ["DiffusionModelUNet/conditioned", "VQVAE/2-D"]


def missing(*packages: str) -> str:
    """Why a test cannot run; empty if it can."""
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    return f"needs {' and '.join(absent)}, which are not installed" if absent else ""


class TestConverters(unittest.TestCase):
    @parameterized.expand(SCRIPTED)
    def test_torchscript(self, name):
        row = BY_NAME[name]
        net = row.build()
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "net.ts")
            convert_to_torchscript(net, file)
            self.assertLessEqual(difference(row, net, torch.jit.load(file)), TOLERANCE)

    def test_torchscript_verified_by_monai(self):
        row = BY_NAME["DiffusionModelUNet/conditioned"]
        arguments = row.arguments(FIRST)
        convert_to_torchscript(
            row.build(),
            verify=True,
            inputs=[arguments["x"], arguments["timesteps"], arguments["context"]],
            device=torch.device("cpu"),
            atol=TOLERANCE,
        )

    def test_torchscript_by_trace(self):
        row = BY_NAME["AutoencoderKL/2-D"]
        net = row.build()
        traced = convert_to_torchscript(net, use_trace=True, inputs=(row.arguments(FIRST)["x"],), check_trace=False)
        self.assertLessEqual(difference(row, net, traced), TOLERANCE)

    @parameterized.expand(IN_ONNX)
    @unittest.skipIf(missing("onnx", "onnxscript", "onnxruntime"), missing("onnx", "onnxscript", "onnxruntime"))
    def test_onnx(self, name):
        row = BY_NAME[name]
        net, arguments = row.build(), row.arguments(FIRST)
        names = list(arguments)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "net.onnx"
            shapes = tuple(row.dynamic_shapes().values())
            convert_to_onnx(
                net,
                [*arguments.values()],
                input_names=names,
                filename=str(file),
                dynamo=True,
                dynamic_shapes=shapes,
            )
            self.assertLessEqual(difference(row, net, onnx_runner(file)), TOLERANCE)


@unittest.skipIf(missing("fire"), missing("fire"))
class TestBundle(unittest.TestCase):
    """``python -m monai.bundle ckpt_export`` in a process of its own, as a user runs it."""

    def export(self, folder: Path, row, net: torch.nn.Module) -> torch.jit.ScriptModule:
        (folder / "configs").mkdir()
        (folder / "models").mkdir()
        network = {"_target_": f"{row.module}.{row.network}", **row.kwargs}
        (folder / "configs" / "inference.json").write_text(json.dumps({"network_def": network}))
        (folder / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0", "name": row.network}))
        torch.save(net.state_dict(), folder / "models" / "model.pt")
        command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "ckpt_export", "network_def"]
        command += ["--filepath", "models/model.ts", "--ckpt_file", "models/model.pt"]
        command += ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stderr[-2000:])
        files = {"inference.json": "", "metadata.json": ""}
        script = torch.jit.load(str(folder / "models" / "model.ts"), _extra_files=files)
        self.assertEqual(json.loads(files["inference.json"])["network_def"]["_target_"], network["_target_"])
        self.assertEqual(json.loads(files["metadata.json"])["name"], row.network)
        return script

    def exported(self, row) -> tuple[torch.nn.Module, torch.jit.ScriptModule]:
        """A network, and its script, which gives the same outputs."""
        net = row.build()
        with tempfile.TemporaryDirectory() as folder:
            script = self.export(Path(folder), row, net)
        self.assertLessEqual(difference(row, net, script), TOLERANCE)
        return net, script

    def test_ckpt_export(self):
        self.exported(BY_NAME["DiffusionModelUNet/conditioned"])

    def test_ckpt_export_of_an_autoencoder(self):
        """Its methods leave Python, too."""
        row = BY_NAME["AutoencoderKlMaisi/as published"]
        net, script = self.exported(row)
        image = row.arguments(OTHER)["x"]
        with torch.no_grad():
            mean, sigma = net.encode(image)
            self.assertLessEqual(max_difference(flat(script.encode(image)), [mean, sigma]), TOLERANCE)
            self.assertLessEqual(max_difference(script.decode(mean), net.decode(mean)), TOLERANCE)


if __name__ == "__main__":
    unittest.main()
