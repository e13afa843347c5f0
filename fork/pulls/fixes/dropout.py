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

"""Dropout in evaluation."""

from __future__ import annotations

from fork.series.edits import instead, swap
from fork.series.fixes import Fix

SELF = "monai/networks/blocks/selfattention.py"
CROSS = "monai/networks/blocks/crossattention.py"
RATE = "dropout_p=self.dropout_rate"
FIXED = "dropout_p=self.dropout_rate if self.training else 0.0"
CALL = f"""
    x = torch.nn.functional.scaled_dot_product_attention(
        query=q,
        key=k,
        value=v,
        scale=self.scale,
        {FIXED},
        is_causal=self.causal,
    )
"""

FIX = Fix(
    name="dropout-in-evaluation",
    title="Switch dropout of flash attention off in evaluation",
    purpose="""
        SABlock and CrossAttentionBlock hand their rate to the fused kernel whether they train or not. With
        use_flash_attention=True a network in evaluation is random, without an error.
    """,
    evidence="""
        With a rate of 0.5, two calls of the same block in evaluation differ on the release and are equal after the
        fix.
    """,
    edits=(
        swap(SELF, "SABlock.forward", RATE, FIXED),
        instead(CROSS, "CrossAttentionBlock.forward", "scaled_dot", CALL),
    ),
    tests=("tests/networks/blocks/test_attention_dropout.py",),
    upstream_tests=("tests/networks/blocks/test_selfattention.py",),
)
