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
What the pull requests are: ``fixes`` holds a module a fix, ``features`` the table of the fork's parts.

``data`` says which data the tests read. ``upstream_tests.txt`` lists the files that upstream has under tests/, as of
MONAI 1.6, so that none is overwritten.
"""

from __future__ import annotations

from pathlib import Path

from fork.pulls.data import TEST_DATA
from fork.pulls.features import FEATURES
from fork.pulls.fixes import FIXES

__all__ = ["FEATURES", "FIXES", "TEST_DATA", "UPSTREAM_TESTS"]

UPSTREAM_TESTS = frozenset(Path(__file__).with_name("upstream_tests.txt").read_text(encoding="utf-8").split())
