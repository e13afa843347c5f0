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
What the keys of a state dict mean: who wrote them, how older ones become present ones, how a network loads them.

A module imports :mod:`~monai.networks.state_dict.hooks` alone. That imports this package, and here is the one place in
which the hooks are given what they do: every load goes through :func:`~monai.networks.state_dict.load.adapt_load`.
"""

from __future__ import annotations

from .adapting import adapted_for_copying, adapted_state_dict
from .hooks import CheckpointFacts, adapt_loads_by
from .load import adapt_load

__all__ = ["CheckpointFacts", "adapt_load", "adapt_loads_by", "adapted_for_copying", "adapted_state_dict"]

adapt_loads_by(adapt_load)
