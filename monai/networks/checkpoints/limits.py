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

"""How much a checkpoint file may claim before it is refused unread."""

from __future__ import annotations

__all__ = ["MAX_DESCRIPTION", "MAX_INFLATION", "MAX_KEYS", "MAX_REPEATED"]

# Bytes of what describes the tensors: the pickle of a torch file, the header of a safetensors file. 300 bytes a tensor
# are usual; the reference implementation of safetensors draws the same line.
MAX_DESCRIPTION = 100_000_000

# Names in a description. The largest networks have some ten thousand tensors, their optimizers thrice as many.
MAX_KEYS = 1_000_000

# Bytes that a compressed torch file may unpack to, as a multiple of its own size. torch compresses nothing, and trained
# weights hardly shrink; deflate reaches a thousandfold on zeros.
MAX_INFLATION = 20

# Bytes of a tensor that repeats its values by a stride of zero, and so takes less space in the file than in use.
MAX_REPEATED = 1_000_000_000
