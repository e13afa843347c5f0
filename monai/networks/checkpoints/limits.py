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

__all__ = [
    "LARGEST_FACTOR",
    "MAX_CALLS",
    "MAX_DESCRIPTION",
    "MAX_DIMS",
    "MAX_HEADER",
    "MAX_INFLATION",
    "MAX_KEYS",
    "MAX_NAME",
    "MAX_REPEATED",
    "MAX_STEPS",
    "SIZE_OF_FOLDER",
]

# Bytes of the pickle that describes the tensors of a torch file or of a distributed folder. 300 a tensor are usual.
MAX_DESCRIPTION = 32_000_000

# Operations of such a pickle, and those of them that make an object. 40 and 3 a tensor are usual; so many take a
# second or two.
MAX_STEPS = 3_000_000
MAX_CALLS = 300_000

# Bytes of the header of a safetensors file, or of the table of contents of a zip file. 100 bytes a tensor are usual.
MAX_HEADER = 16_000_000

# Names, tensors, or pieces of tensors in a file. The largest networks have some ten thousand tensors, their optimizers
# three times as many.
MAX_KEYS = 60_000

# Characters of a tensor's name.
MAX_NAME = 100_000

# Dimensions of a tensor; torch has the same limit in most of its functions.
MAX_DIMS = 64

# Bytes that a compressed torch file may unpack to, as a multiple of its own size. torch compresses nothing, and trained
# weights hardly shrink; deflate reaches a thousandfold on zeros. Tensors that share memory may together claim as much.
MAX_INFLATION = 20

# Bytes of a distributed folder, really there, for which its metadata may be as large as the above, and up to ten times
# as large for ten times as much: many processes make many pieces, and each has a thousand bytes beside its values.
SIZE_OF_FOLDER = 1 << 26
LARGEST_FACTOR = 10

# Bytes that tensors of a file may claim beyond that, as those do that repeat their values by a stride of zero.
MAX_REPEATED = 256_000_000
