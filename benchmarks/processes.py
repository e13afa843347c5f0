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

"""The processes that do the work: the fork and the pristine release, for times and for memory."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import FIXED_ALLOCATION
from fork import ForkError, pristine
from fork.referee import ROOT, Referee, release_environment

__all__ = ["BenchmarkError", "Processes", "fork_folder"]

WORKER = "benchmarks.worker:Worker"
WHICH = ("fork", "release")
ONLY_IN_THE_FORK = "networks/blocks/attention"


class BenchmarkError(RuntimeError):
    """A benchmark cannot be run; the text says why."""


class Processes:
    """
    Processes of the fork and of the release, on one thread each, started when they are first asked; a context manager.

    Raises:
        BenchmarkError: if this Python has no fork, or the release cannot be had.
    """

    def __init__(self) -> None:
        fork = fork_folder()
        path = os.pathsep.join([str(fork), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        try:
            self._release_folder = pristine().resolve()
            self.variables = {
                "fork": {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                "release": release_environment(),
            }
        except ForkError as error:
            raise BenchmarkError(f"no release to compare with: {error}") from error
        self._referees: dict[tuple[str, bool], Referee] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        for referee in self._referees.values():
            referee.close()
        self._referees.clear()

    def ask(self, which: str, request: str, *args: Any, memory: bool = False) -> Any:
        """
        Send a request to :class:`benchmarks.worker.Worker`.

        Args:
            which: "fork" or "release".
            request: one of the worker's methods.
            args: its arguments.
            memory: whether to ask the process that measures memory.

        Raises:
            RefereeError: if the method raises.
            BenchmarkError: if the process runs another MONAI than it should.
        """
        if (which, memory) not in self._referees:
            self._start(memory)
        return self._referees[which, memory].ask(request, *args)

    def version(self, which: str) -> str:
        """The version of MONAI that a process runs."""
        out: str = self.ask(which, "where")[1]
        return out

    def _start(self, memory: bool) -> None:
        """Start the fork's process and the release's at once: imports take seconds."""
        more = FIXED_ALLOCATION if memory else {}
        for which in WHICH:
            self._referees[which, memory] = Referee(WORKER, {**self.variables[which], **more})
        for which in WHICH:
            self.check_origin(which, self._referees[which, memory].ask("where")[0])

    def check_origin(self, which: str, file: str) -> None:
        """
        Make sure of the MONAI that a process runs.

        Raises:
            BenchmarkError: if ``file`` is not of the fork, or the release.
        """
        if Path(file).resolve().is_relative_to(self._release_folder) != (which == "release"):
            self.close()
            raise BenchmarkError(f"the process of the {which} imported {file}")


def fork_folder() -> Path:
    """
    The folder in which this Python finds the fork.

    Raises:
        BenchmarkError: if it finds none.
    """
    found = find_spec("monai")
    if found is None or found.origin is None:  # the repository's own monai/ is no package
        raise BenchmarkError(f"the fork is not installed, run: pip install -e {ROOT}")
    package = Path(found.origin).parent
    if not (package / ONLY_IN_THE_FORK).is_dir():
        raise BenchmarkError(f"{found.origin} is a release of MONAI, install the fork: pip install -e {ROOT}")
    return package.parent
