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

# ruff: noqa: F401

"""What the fork adds to this package: an encoder that the release does not export, and what networks are built from."""

from __future__ import annotations

from monai.networks.construction import record_classes

from .diffusion_model_unet import DiffusionModelEncoder
from .vqvae import VQVAE

RECORDED = record_classes(globals())
