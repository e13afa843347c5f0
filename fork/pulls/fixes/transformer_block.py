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

"""Cross attention of TransformerBlock."""

from __future__ import annotations

from fork.series.edits import above, swap
from fork.series.fixes import Fix

BLOCK = "monai/networks/blocks/transformerblock.py"
INIT = "TransformerBlock.__init__"

FIX = Fix(
    name="transformer-block",
    title="Keep TransformerBlock trainable under DDP, and its cross attention matrix",
    purpose="""
        norm_cross_attn is built whether there is cross attention or not; without, it never gets a gradient, and
        DistributedDataParallel stops at the second step. Where there is none, it no longer asks for a gradient;
        state dicts stay as they are. save_attn reaches the cross attention, too.
    """,
    evidence="""
        Every parameter that asks for a gradient gets one; on the release two per block do not. cross_attn.att_mat
        is filled, which is empty on the release.
    """,
    edits=(
        swap(
            BLOCK,
            INIT,
            "_cross_attn = nn.LayerNorm(hidden_size)",
            "_cross_attn = nn.LayerNorm(hidden_size).requires_grad_(with_cross_attention)",
        ),
        above(BLOCK, INIT, "causal=False,", "save_attn=save_attn,"),
    ),
    tests=("tests/networks/blocks/test_transformerblock_training.py",),
    upstream_tests=("tests/networks/blocks/test_transformerblock.py",),
)
