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

"""Residuals of a ControlNet in MAISI."""

from __future__ import annotations

from fork.series.edits import below, instead, swap
from fork.series.fixes import Fix

NET = "monai/apps/generation/maisi/networks/diffusion_model_unet_maisi.py"
CLASS = "DiffusionModelUNetMaisi"
MIDDLE = "h = down_block_res_samples[-1]  # as ControlNets of MAISI learned it"

FIX = Fix(
    name="maisi-residuals",
    title="Add ControlNet residuals in MAISI out of place, allow flash on the CPU",
    purpose="""
        DiffusionModelUNetMaisi adds the residuals of a ControlNet in place, to features that the backward pass
        needs: it cannot be trained beside a ControlNet, and compiles wrong. The sums stay what they are. Flash
        attention is refused without CUDA, though torch runs it on every device.
    """,
    evidence="""
        backward raises on the release ("modified by an inplace operation"); outputs are bit for bit the release's.
    """,
    edits=(
        instead(NET, f"{CLASS}._apply_down_blocks", "down_block_res_sample += down"),
        swap(
            NET,
            f"{CLASS}._apply_down_blocks",
            "append(down_block_res_sample)",
            "append(down_block_res_sample + down_block_additional_residual)",
        ),
        below(NET, f"{CLASS}._apply_down_blocks", "down_block_res_samples = new_down", MIDDLE),
        instead(NET, f"{CLASS}.__init__", "use_flash_attention is True and not torch"),
    ),
    tests=("tests/apps/maisi/networks/test_maisi_control_residuals.py",),
    upstream_tests=("tests/apps/maisi/networks/test_diffusion_model_unet_maisi.py",),
)
