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

"""VQVAETransformerInferer."""

from __future__ import annotations

from fork.series.edits import above, swap
from fork.series.fixes import Fix

INFERER = "monai/inferers/inferer.py"
BOS = """
    # never sample the BOS token, which may be the only one that top_k leaves
    logits[:, vqvae_model.num_embeddings] = -float("Inf")
"""

FIX = Fix(
    name="vqvae-transformer-inferer",
    title="Fix VQVAETransformerInferer: constructor and sample(top_k=1)",
    purpose="""
        VQVAETransformerInferer is a module, but calls the constructor of Inferer, which is none of its bases: repr
        and state_dict raise. sample removes the begin token after top_k has picked the likeliest ones, so that
        nothing is left to draw from where top_k is 1 and the begin token is the likeliest. It is removed before
        now; without top_k the distribution is the same.
    """,
    evidence="""
        repr and state_dict raise AttributeError on the release; sample(top_k=1) raises "invalid multinomial
        distribution".
    """,
    edits=(
        swap(INFERER, "VQVAETransformerInferer.__init__", "Inferer.__init__(self)", "super().__init__()"),
        above(INFERER, "VQVAETransformerInferer.sample", "# optionally crop", BOS),
    ),
    tests=("tests/inferers/test_vqvae_transformer_constructor.py",),
    upstream_tests=("tests/networks/nets/test_vqvaetransformer_inferer.py",),
)
