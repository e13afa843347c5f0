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

"""Upstream's style, checked by those of its tools that are installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

__all__ = ["installed", "offenders"]

# As in upstream's setup.cfg, pyproject.toml and runtests.sh.
TOOLS = {
    "black": ["--check", "--quiet", "--line-length=120", "--target-version=py310", "--config=/dev/null"],
    "isort": [
        *("--check-only", "--quiet", "--profile=black", "--line-length=120", "--project=monai", "--append-only"),
        *("--add-import", "from __future__ import annotations"),
    ],
    "flake8": [
        *("--isolated", "--max-line-length=120", "--select=B,C,E,F,N,P,T4,W,B9"),
        "--ignore=E203,E501,E741,W503,W504,C408,N812,B023,B905,B028,B907,B908,B036,E704",
        *("--per-file-ignores=__init__.py:F401 __main__.py:F401",),
    ],
    "ruff": [
        *("check", "--isolated", "--quiet", "--line-length=133", "--select=E,F,W,NPY"),
        "--ignore=E741,F401,NPY002",
    ],
}


def installed() -> list[str]:
    """Those of the tools that this Python has."""
    return [tool for tool in TOOLS if find_spec(tool)]


def offenders(tool: str, folder: Path, paths: Sequence[str]) -> set[str]:
    """Those of the files that a tool finds fault with."""
    if not paths or _is_clean(tool, folder, paths):
        return set()
    return {path for path in paths if not _is_clean(tool, folder, [path])}


def _is_clean(tool: str, folder: Path, paths: Sequence[str]) -> bool:
    command = [sys.executable, "-m", tool, *TOOLS[tool], *paths]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
