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

"""Spatial attention over an empty batch."""

from __future__ import annotations

from fork.series.edits import swap
from fork.series.fixes import Fix

BLOCK = "monai/networks/blocks/spatialattention.py"

FIX = Fix(
    name="empty-batch",
    title="Let SpatialAttentionBlock take an empty batch, and script",
    purpose="""
        reshape cannot tell -1 where there are no elements: an empty batch raises in SpatialAttentionBlock and in
        all diffusion networks and autoencoders that hold it. flatten can, and unlike a shape that is spread into
        arguments it scripts.
    """,
    evidence="""
        A batch of 0 raises on the release and comes out empty after the fix; torch.jit.script fails on the release.
    """,
    edits=(swap(BLOCK, "SpatialAttentionBlock.forward", "x.reshape(*shape[:2], -1)", "x.flatten(2)"),),
    tests=("tests/networks/blocks/test_spatialattention_empty_batch.py",),
    upstream_tests=("tests/networks/blocks/test_spatialattention.py",),
)
