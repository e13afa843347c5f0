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


from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CheckpointFacts"]


@dataclass(frozen=True)
class CheckpointFacts:
    """
    What only the user can know about a checkpoint, because its keys are the same either way.

    None leaves a question open: where the answer changes the outputs, the load is refused and names the question.

    Args:
        cross_attention_scaled: whether the transformers of a GenerativeModels 0.1 network (keys ``ff.net.*``) divided
            their logits by sqrt(num_head_channels). Release 0.1.0 did not, the revisions after it did.
        transposed_upsampling: whether the decoder of a GenerativeModels or MAISI autoencoder doubled the size by
            transposed convolutions (``use_convtranspose=True``), or by a convolution of the enlarged image.
        projection_used: whether a MONAI 1.4 network used the output projections that it saved; it saved them with
            ``include_fc=False`` too.

    Raises:
        TypeError: if a value is neither a bool nor None.
    """

    cross_attention_scaled: bool | None = None
    transposed_upsampling: bool | None = None
    projection_used: bool | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not isinstance(value, bool):
                raise TypeError(f"{name} must be True, False or None (not known), got {value!r}.")
