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

"""
Which test data goes with which tests, and which stays here.

A test, or a helper that it imports, has an entry with patterns of the files that it reads. The entry of a helper holds
for every test that imports it.
"""

from __future__ import annotations

__all__ = ["STAYS", "TEST_DATA"]

DATA = "tests/testing_data"
AUTOENCODER = f"{DATA}/checkpoints/monai_generative_0.2.3_AutoencoderKL_2_D.pt.xz"
DIFFUSERS = f"{DATA}/weights/diffusers_*.pt.xz"
SWIN = f"{DATA}/weights/monai_1.3.2_SwinTransformer_*.pt.xz"
VISION_TRANSFORMERS = (
    f"{DATA}/weights/timm*.pt.xz",
    f"{DATA}/weights/dinov2 in chunks.pt.xz",
    f"{DATA}/weights/hf*.pt.xz",
)

TEST_DATA: dict[str, tuple[str, ...]] = {
    "tests/networks/weights/kept_autoencoder.py": (AUTOENCODER,),
    "tests/networks/weights/test_other_packages.py": (*VISION_TRANSFORMERS, DIFFUSERS, SWIN),
    "tests/networks/weights/test_sizes.py": (f"{DATA}/timm_sizes.pt",),
    "tests/networks/weights/test_sources_diffusion.py": (DIFFUSERS,),
    "tests/networks/weights/test_sources_swin.py": (SWIN,),
    "tests/networks/weights/test_sources_vit.py": VISION_TRANSFORMERS,
}

STAYS: dict[str, str] = {
    f"{DATA}/checkpoints/*": "older packages wrote them; tests/parity reads them",
    f"{DATA}/autoencoderkl_generative_0.2.3.pt": "GenerativeModels trained it; the demo and the pages read it",
    f"{DATA}/vit_monai_1.5.2.pt": "MONAI 1.5.2 wrote it; tests/parity and the pages read it",
}
"""Data that stays here, with the reason, unless a contract test reads it."""
