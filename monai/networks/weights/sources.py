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

"""Every layout of another package that is known."""

from __future__ import annotations

from .source import Source
from .sources_diffusion import SOURCES as DIFFUSION_SOURCES
from .sources_swin import SOURCES as SWIN_SOURCES
from .sources_vit import VIT_SOURCES

__all__ = ["SOURCES", "source_called"]

SOURCES: tuple[Source, ...] = (*VIT_SOURCES, *DIFFUSION_SOURCES, *SWIN_SOURCES)


def source_called(name: str) -> Source:
    """
    The layout of that name.

    Raises:
        ValueError: if there is none.
    """
    for source in SOURCES:
        if source.name == name:
            return source
    raise ValueError(f"source={name!r} should be one of {', '.join(source.name for source in SOURCES)}.")
