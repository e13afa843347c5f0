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

"""DiffusionModelEncoder among the networks."""

from __future__ import annotations

from fork.series.edits import swap
from fork.series.fixes import Fix
from fork.series.pull import Section

NETS = "monai/networks/nets/__init__.py"

FIX = Fix(
    name="encoder-export",
    title="Export DiffusionModelEncoder from monai.networks.nets",
    purpose="""
        DiffusionModelEncoder is the one network of its module that monai.networks.nets does not export, so that
        configurations of bundles cannot name it as the others.
    """,
    evidence="""
        from monai.networks.nets import DiffusionModelEncoder raises ImportError on the release.
    """,
    edits=(swap(NETS, "", "import DiffusionModelUNet\n", "import DiffusionModelEncoder, DiffusionModelUNet\n"),),
    tests=("tests/networks/nets/test_diffusion_model_encoder_export.py",),
    upstream_tests=("tests/networks/nets/test_diffusion_model_unet.py",),
    sections=(
        Section(
            "docs/source/networks.rst",
            "`SwinUNETR`",
            "`DiffusionModelEncoder`\n~~~~~~~~~~~~~~~~~~~~~~~\n.. autoclass:: DiffusionModelEncoder\n    :members:",
        ),
    ),
)
