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

"""The upward path of SPADEDiffusionModelUNet."""

from __future__ import annotations

from fork.series.edits import below
from fork.series.fixes import Fix

NET = "monai/networks/nets/spade_diffusion_model_unet.py"
OPTIONS = "include_fc=include_fc,\nuse_combined_linear=use_combined_linear,"

# The fork keeps the upward path of the release, for the sake of these state dicts; use_proj_attn reaches all of it.
FIX = Fix(
    name="spade-up-blocks",
    title="Hand include_fc and use_combined_linear to SPADE up blocks",
    purpose="""
        SPADEDiffusionModelUNet takes include_fc and use_combined_linear, but its upward path never receives them:
        half of the network is built otherwise than asked for. State dicts of networks that were trained with
        include_fc=False hold projections in the upward path, which such a network no longer has.
    """,
    evidence="""
        With include_fc=False, use_combined_linear=True, two of four attention blocks of a small network obey on the
        release, all four after the fix.
    """,
    edits=(
        below(NET, "get_spade_up_block", "upcast_attention=upcast_attention,", OPTIONS),
        below(NET, "SPADEDiffusionModelUNet.__init__", "label_nc=label_nc,", OPTIONS),
    ),
    tests=("tests/networks/nets/test_spade_up_blocks.py",),
    upstream_tests=("tests/networks/nets/test_spade_diffusion_model_unet.py",),
)
