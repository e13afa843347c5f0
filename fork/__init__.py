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
What turns this repository and a release of MONAI into a package.

The release is the wheel that setup.cfg pins; every file of ``monai/`` takes the place of its namesake there, puts some
definitions in the place of its namesake's (see ``amend``), or is new.
Needs Python's standard library, pip and, for patches, git; the package that is built does not hold this folder.
"""

from __future__ import annotations

from fork.overlay import merge
from fork.pin import ForkError
from fork.wheel import pristine

__all__ = ["ForkError", "merge", "pristine"]
