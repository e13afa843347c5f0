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

"""VQVAE in every floating type."""

from __future__ import annotations

from fork.series.edits import swap
from fork.series.fixes import Fix

LAYER = "monai/networks/layers/vector_quantizer.py"
WEIGHT = "self.embedding.weight.float().t()"

FIX = Fix(
    name="vqvae-types",
    title="Let VQVAE run in half, bfloat16 and double",
    purpose="""
        EMAQuantizer computes distances in float32, but multiplies by a codebook in the type of the network: in
        half, bfloat16 and double the types do not match, and every VQVAE raises.
    """,
    evidence="""
        Three types of four raise on the release; all run after the fix, and float32 gives the same bits.
    """,
    edits=(
        swap(LAYER, "EMAQuantizer.quantize", "(self.embedding.weight.t() **", f"({WEIGHT} **"),
        swap(LAYER, "EMAQuantizer.quantize", "flat_input, self.embedding.weight.t())", f"flat_input, {WEIGHT})"),
    ),
    tests=("tests/networks/layers/test_vector_quantizer_types.py",),
    upstream_tests=(
        "tests/networks/layers/test_vector_quantizer.py",
        "tests/networks/nets/test_vqvae.py",
    ),
)
