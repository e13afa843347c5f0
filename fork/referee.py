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


"""The pristine release in a process of its own, as the referee of outputs and times."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fork.packages import environment
from fork.pin import read_pin

__all__ = ["Referee", "RefereeError", "release_environment"]

ROOT = Path(__file__).resolve().parent.parent


class RefereeError(RuntimeError):
    """The release raised, or its process is gone; the text tells the release's error."""


def release_environment() -> dict[str, str]:
    """
    Environment of a process in which ``import monai`` finds the pristine release.

    Raises:
        ForkError: if the release cannot be had.
    """
    return environment(f"monai=={read_pin().version}")


class Referee:
    """
    A process whose ``monai`` is the release; it ends with this object, or with this process.

    Args:
        worker: ``module:class``, found from the root of the repository. An object of the class answers the requests:
            each names one of its methods.
        variables: environment of the process, see :func:`fork.packages.environment`; by default the release's.

    Raises:
        ForkError: if the release cannot be had.
    """

    def __init__(self, worker: str, variables: Mapping[str, str] | None = None) -> None:
        self._words = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "fork.referee", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=release_environment() if variables is None else variables,
            cwd=ROOT,
        )

    def ask(self, request: str, *args: Any, **kwargs: Any) -> Any:
        """
        Let the worker's method ``request`` answer. Arguments and answer travel as pickles.

        Raises:
            RefereeError: if the method raises, or the process has ended.
        """
        try:
            pickle.dump((request, args, kwargs), self._process.stdin)  # type: ignore[arg-type]
            self._process.stdin.flush()  # type: ignore[union-attr]
            done, value = pickle.load(self._process.stdout)  # type: ignore[arg-type]
        except (EOFError, BrokenPipeError):
            raise RefereeError(f"the referee's process ended: {self._last_words()}") from None
        if not done:
            raise RefereeError(value)
        return value

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._words.close()

    def __enter__(self) -> Referee:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.wait()}, nothing on stderr"


def _serve(worker: Any) -> None:
    """Answer requests on the standard streams until they end."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what anybody prints must not get between the answers
    while True:
        try:
            request, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (True, getattr(worker, request)(*args, **kwargs))
        except Exception as error:
            answer = (False, f"{type(error).__name__}: {error}")
        pickle.dump(answer, answers)
        answers.flush()


def _main(name: str) -> None:
    module, _, worker = name.partition(":")
    _serve(getattr(importlib.import_module(module), worker)())


if __name__ == "__main__":
    _main(sys.argv[1])
