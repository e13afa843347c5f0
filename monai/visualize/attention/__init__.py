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


"""What attends to what: rows of attention without the matrix, through the layers, in pictures."""

from __future__ import annotations

from .capture import AttentionCapture, capture_attention
from .figure import plot_attention
from .maps import AttentionMap
from .on_image import upsample_attention
from .relevance import attention_relevance, attention_rollout
from .saving import save_attention

__all__ = [
    "AttentionCapture",
    "AttentionMap",
    "attention_relevance",
    "attention_rollout",
    "capture_attention",
    "plot_attention",
    "save_attention",
    "upsample_attention",
]
