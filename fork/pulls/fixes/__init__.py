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

"""Defects of the release, each with the edits that put it right; the card's words come first."""

from __future__ import annotations

from fork.pulls.fixes import (
    attention_dtype,
    causal_mask,
    checkpoint_loader,
    dropout,
    empty_batch,
    encoder_export,
    half_types,
    head_width,
    image_size,
    inferer,
    maisi_residuals,
    masked_autoencoder,
    masks,
    relative_positions,
    spade,
    transformer_block,
)

__all__ = ["FIXES"]

FIXES = tuple(
    module.FIX
    for module in (
        causal_mask,
        relative_positions,
        dropout,
        masks,
        attention_dtype,
        head_width,
        transformer_block,
        spade,
        encoder_export,
        inferer,
        masked_autoencoder,
        image_size,
        empty_batch,
        half_types,
        checkpoint_loader,
        maisi_residuals,
    )
)
