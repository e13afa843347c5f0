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

"""Seeing what a network looks at: saliency and class activation, attention, overlays, tensorboard."""

from __future__ import annotations

from .attention import (
    AttentionCapture,
    AttentionMap,
    attention_relevance,
    attention_rollout,
    capture_attention,
    plot_attention,
    save_attention,
    upsample_attention,
)
from .class_activation_maps import CAM, GradCAM, GradCAMpp, ModelWithHooks, default_normalizer
from .gradient_based import GuidedBackpropGrad, GuidedBackpropSmoothGrad, SmoothGrad, VanillaGrad
from .img2tensorboard import add_animated_gif, make_animated_gif_summary, plot_2d_or_3d_image
from .occlusion_sensitivity import OcclusionSensitivity
from .utils import blend_images, matshow3d
from .visualizer import default_upsampler
