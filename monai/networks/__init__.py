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

from __future__ import annotations

from .checkpoints import Checkpoint, CheckpointFacts, load_checkpoint, read_checkpoint
from .trt_compiler import trt_compile
from .utils import (
    add_casts_around_norms,
    convert_to_onnx,
    convert_to_torchscript,
    convert_to_trt,
    copy_model_state,
    eval_mode,
    get_state_dict,
    icnr_init,
    look_up_named_module,
    normal_init,
    normalize_transform,
    one_hot,
    pixelshuffle,
    predict_segmentation,
    replace_modules,
    replace_modules_temp,
    save_state,
    set_named_module,
    to_norm_affine,
    train_mode,
)
