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

"""MaskedAutoEncoderViT under autocast."""

from __future__ import annotations

from fork.series.edits import swap
from fork.series.fixes import Fix

NET = "monai/networks/nets/masked_autoencoder_vit.py"

FIX = Fix(
    name="masked-autoencoder-autocast",
    title="Let MaskedAutoEncoderViT run under autocast",
    purpose="""
        The visible tokens, which autocast has made half, are written into mask tokens of float32: "Index put
        requires the source and destination dtypes match". They are cast on the way.
    """,
    evidence="""
        forward under torch.autocast raises RuntimeError on the release; after the fix it trains in bfloat16.
    """,
    edits=(swap(NET, "MaskedAutoEncoderViT.forward", "= x[:, 1:, :]  #", "= x[:, 1:, :].to(x_.dtype)  #"),),
    tests=("tests/networks/nets/test_masked_autoencoder_autocast.py",),
    upstream_tests=("tests/test_masked_autoencoder_vit.py",),
)
