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
"""Arguments of constructors that are kept in the language of bundles, and come back from it as they were."""

from __future__ import annotations

import torch
import torch.nn as nn

from monai.networks.layers import Flatten
from monai.utils import InterpolateMode

VALUES = [
    (None,), (True,), (3,), (0.1,), (float("inf"),), ("RELU",), ("$1 + 1",), ("@net",), ("a%b#c",), ((),), ((3,),),
    ((3, 3),), ([1, (2, 3)],), (("relu", {"inplace": True}),), ({"a": [1, None]},), ({2: "x"},), ({"_target_": "x"},),
    (("$@%#'\"\n", b"\x00"),), (1 + 0 * 2**70,), (torch.float16,), (nn.GELU,), (nn.functional.relu,),
    (nn.functional.gelu,), (InterpolateMode.AREA,), ([Flatten, torch.bfloat16],),
]  # fmt: skip
