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

"""The width of a head."""

from __future__ import annotations

from fork.series.edits import above, swap
from fork.series.fixes import Fix

SELF = "monai/networks/blocks/selfattention.py"
WIDTH = """
    if not include_fc and self.inner_dim != self.hidden_input_size:
        raise ValueError(f"without output projection the heads' width {self.inner_dim} must be the input's.")

"""

FIX = Fix(
    name="head-width",
    title="Let dim_head of SABlock free the hidden size",
    purpose="""
        With dim_head, hidden_size need not be divisible by num_heads, and in CrossAttentionBlock it need not;
        SABlock demands it nevertheless. Without output projection (include_fc=False), a dim_head that changes the
        width gives a result of that width, which fails later or broadcasts; it is refused now, where the block is
        built.
    """,
    evidence="""
        SABlock(16, 3, dim_head=4) raises on the release. SABlock(16, 2, dim_head=4, include_fc=False) returns 8
        channels instead of 16 there.
    """,
    edits=(
        swap(
            SELF,
            "SABlock.__init__",
            '")\n\n        if hidden_size % num',
            '")\n\n        if not dim_head and hidden_size % num',
        ),
        above(SELF, "SABlock.__init__", "self.qkv: nn", WIDTH),
        swap(
            SELF,
            "SABlock.__init__",
            "divisible by ``num_heads``.",
            "divisible by ``num_heads`` and ``dim_head`` is not set.",
        ),
    ),
    tests=("tests/networks/blocks/test_attention_head_width.py",),
    upstream_tests=("tests/networks/blocks/test_selfattention.py",),
)
