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

"""
Arguments of blocks that the release's blocks do not have. They are left out where they say nothing, so that a block
class of the user's own, which takes the release's arguments, may stand in for one of this package.
"""

from __future__ import annotations

from typing import TypedDict

__all__ = ["BlockArguments", "ProjectionArgument", "block_arguments", "projection_argument"]


class ProjectionArgument(TypedDict, total=False):
    """The argument of an attention block that says whether it ends in an output projection."""

    use_proj_attn: bool


class BlockArguments(ProjectionArgument, total=False):
    """What the networks with a :class:`TransformerBlock` that had no such options now hand to it."""

    use_combined_linear: bool
    use_flash_attention: bool


def projection_argument(use_proj_attn: bool | None) -> ProjectionArgument:
    """``use_proj_attn`` as a keyword argument, unless it is None."""
    return {} if use_proj_attn is None else {"use_proj_attn": use_proj_attn}


def block_arguments(use_combined_linear: bool, use_flash_attention: bool, use_proj_attn: bool | None) -> BlockArguments:
    """The options as keyword arguments of a :class:`TransformerBlock`, without those that are its defaults."""
    arguments: BlockArguments = {**projection_argument(use_proj_attn)}
    if not use_combined_linear:
        arguments["use_combined_linear"] = False
    if use_flash_attention:
        arguments["use_flash_attention"] = True
    return arguments
