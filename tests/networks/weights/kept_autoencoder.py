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

"""An autoencoder that GenerativeModels 0.2.3 wrote."""

from __future__ import annotations

import io
import lzma
from pathlib import Path
from typing import Any

import torch

__all__ = ["kept_autoencoder"]

FILE = Path(__file__).parents[2] / "testing_data" / "checkpoints" / "monai_generative_0.2.3_AutoencoderKL_2_D.pt.xz"


def kept_autoencoder() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The arguments of MONAI's AutoencoderKL, and the state dict that GenerativeModels has for them."""
    content = torch.load(io.BytesIO(lzma.decompress(FILE.read_bytes())), weights_only=True)
    return content["case"]["kwargs"], content["state_dict"]
