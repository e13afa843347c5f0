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

"""CheckpointLoader with other shapes."""

from __future__ import annotations

from fork.series.edits import swap
from fork.series.fixes import Fix

LOADER = "monai/handlers/checkpoint_loader.py"

FIX = Fix(
    name="checkpoint-loader",
    title="Let CheckpointLoader(strict_shape=False) load something",
    purpose="""
        With strict_shape=False the whole checkpoint is compared with each network, instead of the part that belongs
        to it: no name matches, nothing is copied, and training starts from random weights without a word.
    """,
    evidence="""
        Of a checkpoint {"net": ..., "opt": ...} no tensor is copied on the release, and all of fitting shape after
        it.
    """,
    edits=(
        swap(
            LOADER,
            "CheckpointLoader.__call__",
            "copy_model_state(obj, checkpoint,",
            "copy_model_state(obj, checkpoint[k],",
        ),
    ),
    tests=("tests/handlers/test_handler_checkpoint_loader_shapes.py",),
    upstream_tests=("tests/handlers/test_handler_checkpoint_loader.py",),
)
