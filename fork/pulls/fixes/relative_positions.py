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

"""Decomposed relative positions in 3-D."""

from __future__ import annotations

from fork.series.edits import instead, swap
from fork.series.fixes import Fix

TERMS = "monai/networks/blocks/attention_utils.py"
MODULE = "monai/networks/blocks/rel_pos_embedding.py"
SUM = "add_decomposed_rel_pos"

FIX = Fix(
    name="relative-positions-3d",
    title="Fix decomposed relative positions in 3-D",
    purpose="""
        The depth term is contracted along the width, and all three terms are broadcast one axis short, so that they
        meet other axes of the keys. A cube of tokens gets wrong logits without an error; any other grid raises. A
        depth of 1 and an empty batch raise, too. 2-D was right and is unchanged.
    """,
    evidence="""
        On a 2 x 2 x 2 grid the attention differs from the sum over pairs of tokens; after the fix by less than
        1e-6. Grids of 2 x 1 x 4, of depth 1 and empty batches raise on the release.
    """,
    edits=(
        swap(TERMS, SUM, 'rel_d = torch.einsum("bhwdc,wkc', 'rel_d = torch.einsum("bhwdc,dkc'),
        swap(TERMS, SUM, "rel_h[:, :, :, :, None, None]", "rel_h[:, :, :, :, :, None, None]"),
        swap(TERMS, SUM, "rel_w[:, :, :, None, :, None]", "rel_w[:, :, :, :, None, :, None]"),
        swap(TERMS, SUM, "rel_d[:, :, :, None, None, :]", "rel_d[:, :, :, :, None, None, :]"),
        instead(
            MODULE,
            "DecomposedRelativePosEmbedding.forward",
            "att_mat = add_decomposed",
            """
            sizes = tuple(self.s_input_dims)
            att_mat = add_decomposed_rel_pos(
                att_mat.reshape(batch * self.num_heads, h * w * d, h * w * d),
                q.reshape(batch * self.num_heads, h * w * d, self.c_dim),
                self.rel_pos_arr,
                sizes,
                sizes,
            )
            """,
        ),
    ),
    tests=("tests/networks/blocks/test_relative_positions_3d.py",),
    upstream_tests=("tests/networks/blocks/test_selfattention.py",),
)
