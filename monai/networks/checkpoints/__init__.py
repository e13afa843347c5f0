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


"""Checkpoints of any age: read their files, recognize who wrote them, and load them to the same outputs."""

from __future__ import annotations

from monai.networks.state_dict.hooks import CheckpointFacts

from .load import load_checkpoint
from .pretrained import from_pretrained, save_pretrained
from .read import Checkpoint, networks_in, read_checkpoint, read_networks

__all__ = [
    "Checkpoint",
    "CheckpointFacts",
    "from_pretrained",
    "load_checkpoint",
    "networks_in",
    "read_checkpoint",
    "read_networks",
    "save_pretrained",
]
