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

"""What a run of the demo must hold to."""

from __future__ import annotations

from dataclasses import dataclass


class DemoError(Exception):
    """A condition that ends the demo with one line and exit code 1."""


@dataclass(frozen=True)
class Check:
    """A figure and the limit it must stay below."""

    what: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.value <= self.limit

    def __str__(self) -> str:
        return f"{self.what} is {self.value:.3g}, the limit is {self.limit:.3g}"
