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

"""How the autoencoders leave Python: a row a network and its options, a column (test) a way out."""

from __future__ import annotations

import io
import tempfile
import unittest
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from parameterized import parameterized

from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.networks.nets import VQVAE, AutoencoderKL, SPADEAutoencoderKL
from monai.utils import optional_import
from tests.differences import max_difference

onnxruntime, has_onnxruntime = optional_import("onnxruntime")
_, has_onnxscript = optional_import("onnxscript")

torch.set_num_threads(1)
LEVELS = {"num_res_blocks": (1, 1), "attention_levels": (False, True), "latent_channels": 4, "norm_num_groups": 4}
KL = {**LEVELS, "channels": (8, 16)}
NARROW = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
SPADE = {**KL, **NARROW, "label_nc": 3, "spade_intermediate_channels": 8}
MAISI = {**LEVELS, "num_channels": (8, 16), "in_channels": 1, "out_channels": 1, "num_splits": 2}
CODEBOOK = {
    "in_channels": 1,
    "out_channels": 1,
    "channels": (4, 8),
    "num_res_channels": 4,
    "num_res_layers": 1,
    "downsample_parameters": (2, 4, 1, 1),
    "upsample_parameters": (2, 4, 1, 1, 0),
    "num_embeddings": 8,
    "embedding_dim": 4,
}


@dataclass(frozen=True)
class Row:
    """A network, its options, and how many channels its inputs have."""

    name: str
    cls: type[nn.Module]
    kwargs: dict[str, Any]
    channels: tuple[int, ...] = field(default=(1,))

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.cls(**self.kwargs).eval()

    def arguments(self, batch: int, size: int = 8) -> tuple[torch.Tensor, ...]:
        """Inputs of a batch size and a spatial size."""
        draw = torch.Generator().manual_seed(batch)
        sizes = [size] * self.kwargs["spatial_dims"]
        return tuple(torch.rand(batch, channels, *sizes, generator=draw) for channels in self.channels)

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Batch size, and the size of each axis as multiples of the network's smallest, left open."""
        dynamic: dict[int, Any] = {0: torch.export.Dim("batch")}
        for axis in range(self.kwargs["spatial_dims"]):
            dynamic[axis + 2] = 4 * torch.export.Dim(f"size{axis}", min=1, max=64)
        return (dynamic,) * len(self.channels)


ROWS = [
    Row("kl", AutoencoderKL, {**KL, "spatial_dims": 2}),
    Row("kl_bare", AutoencoderKL, {**KL, "spatial_dims": 3, "use_proj_attn": False, "use_combined_linear": True}),
    Row(
        "kl_transposed",
        AutoencoderKL,
        {**KL, **NARROW, "spatial_dims": 2, "use_convtranspose": True, "use_checkpoint": True},
    ),
    Row("spade", SPADEAutoencoderKL, {**SPADE, "spatial_dims": 2}, (1, 3)),
    Row("spade_bare", SPADEAutoencoderKL, {**SPADE, "spatial_dims": 3, "use_proj_attn": False}, (1, 3)),
    Row("vqvae", VQVAE, {**CODEBOOK, "spatial_dims": 2, "use_checkpointing": True}),
    Row("vqvae_3d", VQVAE, {**CODEBOOK, "spatial_dims": 3, "act": "PRELU", "output_act": "tanh"}),
    Row("maisi", AutoencoderKlMaisi, {**MAISI, "spatial_dims": 3}),
    Row("maisi_2d", AutoencoderKlMaisi, {**MAISI, "spatial_dims": 2, "num_splits": 1, "use_convtranspose": True}),
    Row(
        "maisi_half",
        AutoencoderKlMaisi,
        {**MAISI, "spatial_dims": 3, "norm_float16": True, "with_encoder_nonlocal_attn": True, "use_proj_attn": True},
    ),
]
TEST_CASES = [(row.name, row) for row in ROWS]


def cases(*names: str) -> list[tuple[str, Row]]:
    """Those rows: where a way out takes seconds, one of each network is enough here."""
    return [(row.name, row) for row in ROWS if row.name in names]


class Reconstruction(nn.Module):
    """A network without chance: what ONNX runtime draws is not what torch draws."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
        if isinstance(self.net, VQVAE):
            return self.net(*arguments)[0]
        return self.net.reconstruct(*arguments)


def call(run: Callable, arguments: tuple[torch.Tensor, ...]):
    """The result of a call with torch's seed fixed, as latents are drawn."""
    torch.manual_seed(3)
    with torch.no_grad():
        return run(*arguments)


def gradients(run: Callable, net: nn.Module, arguments: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Gradients of the parameters of ``net`` after ``run``, which is made from it."""
    net.zero_grad()
    torch.manual_seed(3)
    sum(out.pow(2).mean() for out in run(*arguments)).backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


class TestExport(unittest.TestCase):
    def setUp(self):
        torch._dynamo.reset()

    def assert_agrees(self, run: Callable, net: nn.Module, *cases: tuple[torch.Tensor, ...]) -> None:
        for arguments in cases:
            self.assertLessEqual(max_difference(call(run, arguments), call(net, arguments)), 1e-5)

    def assert_learns(self, run: Callable, net: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        expected = gradients(net, net, arguments)
        self.assertLessEqual(max_difference(gradients(run, net, arguments), expected), 1e-5)

    @parameterized.expand(TEST_CASES)
    def test_script(self, _, row):
        net, buffer = row.build(), io.BytesIO()
        script = torch.jit.script(net)
        self.assert_learns(script, net, row.arguments(2))
        torch.jit.save(script, buffer)
        buffer.seek(0)
        # more than once: the second call runs the optimized graph
        cases = [row.arguments(2), row.arguments(3), row.arguments(2, 12), row.arguments(3)]
        self.assert_agrees(torch.jit.load(buffer), net, *cases)

    @parameterized.expand(TEST_CASES)
    def test_trace(self, _, row):
        net = row.build()
        trace = torch.jit.trace(net, row.arguments(2), check_trace=False)
        self.assert_agrees(trace, net, row.arguments(2), row.arguments(3))

    @parameterized.expand(cases("kl_transposed", "vqvae_3d"))
    def test_compile_in_one_graph(self, _, row):
        self.assert_compiles(row)

    @parameterized.expand(cases("spade", "maisi_2d"))
    @pytest.mark.grid  # below expand, which makes the tests that are marked
    def test_compile_others_in_one_graph(self, _, row):
        self.assert_compiles(row)

    def assert_compiles(self, row: Row) -> None:
        net = row.build()
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        self.assert_agrees(compiled, net, row.arguments(2), row.arguments(3))
        self.assert_learns(compiled, net, row.arguments(2))

    def assert_exports(self, row: Row, strict: bool) -> None:
        net = row.build()
        program = torch.export.export(net, row.arguments(2), dynamic_shapes=row.dynamic_shapes(), strict=strict)
        self.assert_agrees(program.module(), net, row.arguments(2), row.arguments(5), row.arguments(3, 12))

    @parameterized.expand(cases("kl_bare", "vqvae_3d"))
    def test_export(self, _, row):
        self.assert_exports(row, strict=False)

    @parameterized.expand(cases("spade_bare", "maisi"))
    @pytest.mark.grid  # with other options in tests/networks/exports/test_exports.py
    def test_export_of_others(self, _, row):
        self.assert_exports(row, strict=False)

    @parameterized.expand(cases("kl_transposed", "vqvae"))
    def test_strict_export(self, _, row):
        self.assert_exports(row, strict=True)

    @parameterized.expand(cases("spade", "maisi_2d"))
    @pytest.mark.grid
    def test_strict_export_of_others(self, _, row):
        self.assert_exports(row, strict=True)

    @parameterized.expand(cases("kl_transposed"))
    @unittest.skipUnless(has_onnxruntime and has_onnxscript, "needs onnxscript and onnxruntime")
    def test_onnx(self, _, row):
        self.assert_onnx(row)

    @parameterized.expand(cases("spade", "vqvae", "maisi_2d"))
    @pytest.mark.grid
    @unittest.skipUnless(has_onnxruntime and has_onnxscript, "needs onnxscript and onnxruntime")
    def test_onnx_of_others(self, _, row):
        self.assert_onnx(row)

    def assert_onnx(self, row: Row) -> None:
        net = Reconstruction(row.build())
        names = [f"input{number}" for number in range(len(row.channels))]
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "net.onnx")
            torch.onnx.export(
                net,
                row.arguments(2),
                path,
                dynamo=True,
                input_names=names,
                dynamic_shapes=(row.dynamic_shapes(),),
                verbose=False,
            )
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for arguments in (row.arguments(2), row.arguments(3, 12)):
                result = session.run(None, {name: x.numpy() for name, x in zip(names, arguments)})[0]
                self.assertLessEqual(max_difference(torch.from_numpy(result), call(net, arguments)), 1e-5)


if __name__ == "__main__":
    unittest.main()
