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

"""Networks with huggingface_hub's mixin, at the top of a module. Importing this needs huggingface_hub."""

from __future__ import annotations

from typing import Any

from monai.networks.checkpoints.hub import PretrainedMixin
from monai.networks.nets import UNet

__all__ = ["MyUNet", "OtherNet"]


class MyUNet(PretrainedMixin, UNet):
    """A network of MONAI as a model of the hub."""


class OtherNet(UNet, PretrainedMixin):
    """Another one, with the bases in the other order, and arguments that it hands on."""

    def __init__(self, others: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.others = others
