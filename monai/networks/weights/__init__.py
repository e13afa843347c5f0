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

"""
What becomes of somebody else's weights on their way into a network: names, sizes, and an account of every parameter.

Files are not known here: :mod:`monai.networks.checkpoints` reads them.
"""

from __future__ import annotations

from .early_merging import EarlyPatchMerging
from .journal import Journal
from .report import LoadReport, ParameterLine, TensorLine
