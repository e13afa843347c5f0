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

"""Between tokens of one width and heads, as modules that a user may watch or replace."""

from __future__ import annotations

import torch
import torch.nn as nn

__all__ = ["JoinHeads", "SplitHeads", "SplitQueriesKeysValues"]


class SplitHeads(nn.Module):
    """
    (B, N, heads x D) to (B, heads, N, D).

    Args:
        num_heads: number of attention heads.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        return x.reshape(batch, tokens, self.num_heads, width // self.num_heads).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


class SplitQueriesKeysValues(SplitHeads):
    """(B, N, 3 x heads x D) to (3, B, heads, N, D): queries, keys and values of one linear."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        return x.reshape(batch, tokens, 3, self.num_heads, width // (3 * self.num_heads)).permute(2, 0, 3, 1, 4)


class JoinHeads(nn.Module):
    """(B, heads, N, D) to (B, N, heads x D)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, heads, tokens, width = x.shape
        return x.transpose(1, 2).reshape(batch, tokens, heads * width)
