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

"""With ``strict_shape=False`` a network copies from its own part of a checkpoint, not from the whole of it."""

from __future__ import annotations

import warnings

import torch

from monai.handlers.checkpoint_loader import Checkpoint, Engine
from monai.networks.utils import copy_model_state


class CheckpointLoader:
    def __call__(self, engine: Engine) -> None:
        """
        Load the objects.

        Args:
            engine: the engine that runs; a larger ``max_epochs`` in the checkpoint does not change its own.

        Raises:
            ValueError: if the checkpoint is further than ``max_epochs`` of the engine, or lacks an object.
        """
        checkpoint = torch.load(self.load_path, map_location=self.map_location, weights_only=True)
        first = next(iter(self.load_dict))
        if len(self.load_dict) == 1 and first not in checkpoint:
            checkpoint = {first: checkpoint}  # the file is the state dict itself
        if not self.strict_shape:
            for name, item in list(self.load_dict.items()):
                if not isinstance(item, torch.nn.Module):
                    message = "`strict_shape` is False, load checkpoint for model, skip others in `load_dict`."
                    warnings.warn(message, stacklevel=2)
                    self.load_dict.pop(name)
                elif name in checkpoint:  # ignite says which object a checkpoint lacks
                    checkpoint[name] = copy_model_state(item, checkpoint[name], inplace=False)[0]
        own_limit = engine.state.max_epochs
        Checkpoint.load_objects(to_load=self.load_dict, checkpoint=checkpoint, strict=self.strict)
        if own_limit is not None and engine.state.epoch > own_limit:
            raise ValueError(
                f"Epoch count ({engine.state.epoch}) in checkpoint is larger than the `engine.state.max_epochs` "
                f"({own_limit}) of engine. To train on, construct the trainer with a larger `max_epochs`; for "
                "inference no state of an engine has to be loaded."
            )
        engine.state.max_epochs = own_limit
        self.logger.info(f"Restored all variables from {self.load_path}")
