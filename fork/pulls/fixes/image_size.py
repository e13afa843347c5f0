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

"""The size of an image."""

from __future__ import annotations

from fork.series.edits import above
from fork.series.fixes import Fix

BLOCK = "monai/networks/blocks/patchembedding.py"
CHECK = """
    if x.shape[1] != self.position_embeddings.shape[1]:
        raise ValueError(
            f"the image has {x.shape[1]} patches, img_size and patch_size make {self.position_embeddings.shape[1]}."
        )
"""

FIX = Fix(
    name="image-size",
    title="Refuse images of another size in PatchEmbeddingBlock",
    purpose="""
        An image of a single patch is broadcast over all positions, so that ViT returns tokens of an image that
        nobody gave it, without an error. Other sizes fail with a message about tensors. All are refused with the
        number of patches now.
    """,
    evidence="""
        ViT built for 8 x 8 with patches of 4 x 4 takes a 4 x 4 image on the release and returns four tokens.
    """,
    edits=(above(BLOCK, "PatchEmbeddingBlock.forward", "embeddings = x + self.position", CHECK),),
    tests=("tests/networks/blocks/test_patchembedding_image_size.py",),
    upstream_tests=(
        "tests/networks/blocks/test_patchembedding.py",
        "tests/networks/nets/test_vit.py",
    ),
)
