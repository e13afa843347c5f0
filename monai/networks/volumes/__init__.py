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

"""Volumes that do not fit into the memory of a device: computed in parts, or split over many devices, exactly."""

from __future__ import annotations

from monai.networks.blocks.reach import Reach
from monai.networks.volumes.split import split_volume
from monai.networks.volumes.streamed import StreamedAutoencoder
from monai.networks.volumes.volume_split import VolumeSplit

__all__ = ["Reach", "StreamedAutoencoder", "VolumeSplit", "split_volume"]
