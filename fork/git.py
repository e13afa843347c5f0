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

"""git in a folder of its own, whatever the user's settings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from fork.pin import ForkError

__all__ = ["Git"]


class Git:
    """
    Runs git in a folder.

    Args:
        work: the folder.
        home: an empty folder, in which git finds no settings.
    """

    def __init__(self, work: Path, home: Path) -> None:
        self.work = work
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        self.variables |= {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}

    def __call__(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """
        What git writes.

        Raises:
            ForkError: if there is no git, or it fails.
        """
        done = self.run(*arguments, stdin=stdin)
        if done.returncode:
            raise ForkError(f"git {arguments[0]} failed: {' '.join(done.stderr.decode(errors='replace').split())}")
        return done.stdout

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """One call of git, whether it fails or not."""
        try:
            return subprocess.run(
                ["git", *arguments], cwd=self.work, env=self.variables, input=stdin, capture_output=True
            )
        except FileNotFoundError:
            raise ForkError("git is needed to compare files, and there is none: install it") from None
