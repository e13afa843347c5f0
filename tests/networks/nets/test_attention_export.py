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

"""How the networks leave Python: a row a network and its options, a column (test) a way out."""

from __future__ import annotations

import io
import unittest
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn as nn
from parameterized import parameterized

from monai.networks.nets import UNETR, DecoderOnlyTransformer, MaskedAutoEncoderViT, ViT, ViTAutoEnc
from tests.differences import max_difference

torch.set_num_threads(1)
VIT = {"in_channels": 1, "hidden_size": 24, "mlp_dim": 32, "num_layers": 2, "num_heads": 4}
SLICE = {**VIT, "img_size": (16, 8), "patch_size": 4, "spatial_dims": 2}
VOLUME = {**VIT, "img_size": (8, 8, 4), "patch_size": 4}
SEGMENTER = {"in_channels": 1, "out_channels": 2, "feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 4}
DECODER = {"decoder_hidden_size": 12, "decoder_mlp_dim": 16, "decoder_num_layers": 1, "decoder_num_heads": 2}
TOKENS = {
    "num_tokens": 7,
    "max_seq_len": 9,
    "attn_layers_dim": 24,
    "attn_layers_depth": 2,
    "attn_layers_heads": 4,
}


def images(*size: int) -> Callable[[int], tuple]:
    """Maker of the arguments for a batch size."""
    return lambda batch: (torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(batch)),)


def tokens(batch: int, length: int = 6) -> tuple:
    return (torch.randint(0, 7, (batch, length), generator=torch.Generator().manual_seed(batch)),)


def tokens_and_context(batch: int, length: int = 6, keys: int = 5) -> tuple:
    mask = torch.ones(batch, keys)
    mask[:, 3:] = 0
    return (*tokens(batch, length), torch.randn(batch, keys, 24), mask)


@dataclass(frozen=True)
class Row:
    """A network, its options, and a maker of its arguments for a batch size."""

    name: str
    cls: type[nn.Module]
    kwargs: dict[str, Any]
    arguments: Callable[[int], tuple]
    sequence: bool = False

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return self.cls(**self.kwargs).eval()

    def dynamic_shapes(self) -> tuple:
        """Batch sizes, and for sequences their lengths, that an exported program leaves open."""
        batch = torch.export.Dim("batch")
        if not self.sequence:
            return ({0: batch},)
        keys = torch.export.Dim("keys")
        shapes = {0: batch, 1: torch.export.Dim("length")}, {0: batch, 1: keys}, {0: batch, 1: keys}
        return shapes[: len(self.arguments(1))]


ROWS = [
    Row("vit", ViT, SLICE, images(16, 8)),
    Row("vit_3d", ViT, {**VOLUME, "proj_type": "perceptron", "pos_embed_type": "sincos"}, images(8, 8, 4)),
    Row("vit_head", ViT, {**VOLUME, "classification": True, "use_combined_linear": False}, images(8, 8, 4)),
    Row(
        "vit_bare_head",
        ViT,
        {**SLICE, "classification": True, "post_activation": "", "use_proj_attn": False, "pos_embed_type": "fourier"},
        images(16, 8),
    ),
    Row("vit_flash", ViT, {**SLICE, "use_flash_attention": True, "qkv_bias": True}, images(16, 8)),
    Row("vit_matrix", ViT, {**SLICE, "save_attn": True}, images(16, 8)),
    Row("vitautoenc", ViTAutoEnc, {**SLICE, "proj_type": "perceptron"}, images(16, 8)),
    Row("vitautoenc_3d", ViTAutoEnc, {**VOLUME, "use_proj_attn": False}, images(8, 8, 4)),
    Row("unetr", UNETR, {**SEGMENTER, "img_size": (32, 16), "spatial_dims": 2}, images(32, 16)),
    Row(
        "unetr_3d",
        UNETR,
        {**SEGMENTER, "img_size": (16, 16, 32), "proj_type": "perceptron", "use_proj_attn": False},
        images(16, 16, 32),
    ),
    Row("mae", MaskedAutoEncoderViT, {**SLICE, **DECODER}, images(16, 8)),
    Row(
        "mae_3d",
        MaskedAutoEncoderViT,
        {**VOLUME, **DECODER, "proj_type": "perceptron", "use_proj_attn": False, "masking_ratio": 0.4},
        images(8, 8, 4),
    ),
    Row("decoder", DecoderOnlyTransformer, TOKENS, tokens, sequence=True),
    Row("decoder_bare", DecoderOnlyTransformer, {**TOKENS, "use_proj_attn": False}, tokens, sequence=True),
    Row(
        "decoder_context",
        DecoderOnlyTransformer,
        {**TOKENS, "with_cross_attention": True, "use_combined_linear": True},
        tokens_and_context,
        sequence=True,
    ),
]
TEST_CASES = [(row.name, row) for row in ROWS]
# strict export traces Python itself, slowly: a row a network
STRICT = ("vit", "vitautoenc", "mae", "decoder", "decoder_context")


def call(run: Callable, arguments: tuple):
    """The result of a call with torch's seed fixed, as masked autoencoders draw their masks."""
    torch.manual_seed(3)
    with torch.no_grad():
        return run(*arguments)


def gradients(run: Callable, net: nn.Module, arguments: tuple) -> list[torch.Tensor]:
    """Gradients of the parameters of ``net`` after ``run``, which is made from it."""
    net.zero_grad()
    torch.manual_seed(3)
    out = run(*arguments)
    out = out[0] if isinstance(out, tuple) else out
    out.pow(2).mean().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


class TestExport(unittest.TestCase):
    def setUp(self):
        torch._dynamo.reset()

    def assert_agrees(self, run: Callable, net: nn.Module, *cases: tuple) -> None:
        for arguments in cases:
            self.assertLessEqual(max_difference(call(run, arguments), call(net, arguments)), 1e-5)

    def assert_learns(self, run: Callable, net: nn.Module, arguments: tuple) -> None:
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
        self.assert_agrees(torch.jit.load(buffer), net, *[row.arguments(batch) for batch in (2, 3, 2, 3)])

    @parameterized.expand([case for case in TEST_CASES if case[0] != "unetr"])
    def test_compile_in_one_graph(self, _, row):
        self.assert_compiles(row)

    @parameterized.expand([case for case in TEST_CASES if case[0] == "unetr"])
    @pytest.mark.grid  # in 3-D, it is compiled above
    def test_compile_flat_unetr_in_one_graph(self, _, row):
        self.assert_compiles(row)

    def assert_compiles(self, row: Row) -> None:
        net = row.build()
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        self.assert_agrees(compiled, net, row.arguments(2), row.arguments(3))

    @parameterized.expand([case for case in TEST_CASES if case[0] in STRICT])
    def test_compiled_gradients(self, _, row):
        net = row.build()
        self.assert_learns(torch.compile(net, fullgraph=True, backend="aot_eager"), net, row.arguments(2))

    @pytest.mark.slow
    def test_compile_to_machine_code(self):
        row = Row("small", ViT, {**SLICE, "num_layers": 1, "classification": True}, images(16, 8))
        net = row.build()
        self.assert_agrees(torch.compile(net, fullgraph=True), net, row.arguments(2))

    @parameterized.expand(
        [(row.name, row, False) for row in ROWS] + [(row.name, row, True) for row in ROWS if row.name in STRICT]
    )
    def test_export(self, _, row, strict):
        net = row.build()
        program = torch.export.export(net, row.arguments(2), dynamic_shapes=row.dynamic_shapes(), strict=strict)
        cases = [row.arguments(2), row.arguments(5)]
        if row.sequence:
            cases += [row.arguments(3, length) for length in (1, 2, 9)]
        self.assert_agrees(program.module(), net, *cases)

    def test_exported_program_of_a_longer_context(self):
        row = ROWS[-1]
        net = row.build()
        program = torch.export.export(net, row.arguments(2), dynamic_shapes=row.dynamic_shapes(), strict=False)
        self.assert_agrees(program.module(), net, tokens_and_context(3, 8, 11))


if __name__ == "__main__":
    unittest.main()
