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

"""The type that attention computes in."""

from __future__ import annotations

from fork.series.edits import Edit, above, below, swap
from fork.series.fixes import Fix

SELF = "monai/networks/blocks/selfattention.py"
CROSS = "monai/networks/blocks/crossattention.py"


def _casts(path: str, where: str) -> tuple[Edit, ...]:
    return (
        above(path, where, "if self.attention_dtype is not None", "dtype = q.dtype"),
        below(path, where, "k = k.to(", "v = v.to(self.attention_dtype)"),
        swap(path, where, "self.out_rearrange(x)", "self.out_rearrange(x).to(dtype)"),
    )


FIX = Fix(
    name="attention-dtype",
    title="Cast v to attention_dtype, and the result back",
    purpose="""
        attention_dtype casts q and k, but neither v nor the result. A block whose weights have another type raises,
        and so does every diffusion network with upcast_attention=True in half precision, for which the option is
        there.
    """,
    evidence="""
        SABlock and CrossAttentionBlock in float16 and bfloat16 with attention_dtype=float32, with and without flash
        attention: eight cases, of which the release raises in every one.
    """,
    edits=(
        *_casts(SELF, "SABlock.forward"),
        *_casts(CROSS, "CrossAttentionBlock.forward"),
    ),
    tests=("tests/networks/blocks/test_attention_upcast.py",),
    upstream_tests=("tests/networks/blocks/test_selfattention.py",),
)
