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

"""Masks on both paths."""

from __future__ import annotations

from fork.series.edits import above, instead, swap
from fork.series.fixes import Fix

SELF = "monai/networks/blocks/selfattention.py"
CAUSAL = """
    if self.causal and attn_mask is not None:
        raise ValueError("Causal attention does not support attention masks.")
"""
MASK = """
    mask: Optional[torch.Tensor] = None
    if attn_mask is not None:
        mask = (attn_mask != 0).unsqueeze(1).unsqueeze(2)
        mask = mask | ~mask.any(-1, keepdim=True)  # no softmax over nothing
"""
NOTHING = """
    if attn_mask is not None:  # who may attend to nothing gets nothing
        x = x * (attn_mask != 0).any(-1).to(x.dtype)[:, None, None, None]
"""

FIX = Fix(
    name="attention-masks",
    title="Give attention masks one meaning, with and without flash attention",
    purpose="""
        SABlock hands a mask of shape (B, S) to the fused kernel as it is, which takes it for (queries, keys): most
        shapes raise, and where B is S or 1 another result comes out without an error. A mask beside causal=True is
        refused by the kernel alone. Without flash attention, a sample whose mask is zero everywhere gives NaN, and
        NaN in the gradient of every weight, even where the loss leaves that sample out. Now both paths build the
        same mask, and such a sample gets zeros from attention.
    """,
    evidence="""
        Both paths agree to 1e-6 for B, S = 2, 8; 2, 2 and 1, 8; on the release these raise or differ. Gradients are
        finite.
    """,
    edits=(
        above(SELF, "SABlock.forward", "if self.use_combined_linear:", CAUSAL),
        above(SELF, "SABlock.forward", "if self.use_flash_attention:", MASK),
        swap(SELF, "SABlock.forward", "attn_mask=attn_mask,", "attn_mask=mask,"),
        instead(SELF, "SABlock.forward", "if attn_mask is not None:\n                    raise"),
        swap(
            SELF,
            "SABlock.forward",
            "if attn_mask is not None:\n                attn",
            "if mask is not None:\n                attn",
        ),
        instead(SELF, "SABlock.forward", "attn_mask = attn_mask.unsqueeze(1)"),
        instead(SELF, "SABlock.forward", "attn_mask = attn_mask.expand("),
        swap(SELF, "SABlock.forward", "masked_fill(attn_mask == 0", "masked_fill(~mask"),
        above(SELF, "SABlock.forward", "x = self.out_rearrange(x)", NOTHING),
    ),
    tests=("tests/networks/blocks/test_attention_key_masks.py",),
    upstream_tests=("tests/networks/blocks/test_selfattention.py",),
)
