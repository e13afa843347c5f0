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

"""The pristine release as the referee of the demo's outputs and times."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

import monai
from demo.checks import DemoError
from demo.measure import difference, seconds, seeded
from fork import ForkError, pristine
from fork.referee import ROOT, Referee, RefereeError

ONLY_IN_THE_FORK = "monai.networks.blocks.attention"
ROUNDS = 4
ROUND_SECONDS = 0.15


class Release:
    """Networks of the release in a process of their own; a context manager.

    Raises:
        DemoError: when the release cannot be had, its process fails, or this process runs the release itself.
    """

    def __init__(self) -> None:
        try:
            self._folder = pristine().resolve()
        except ForkError as error:
            raise DemoError(f"no release to compare with: {error}") from error
        if find_spec(ONLY_IN_THE_FORK) is None or Path(monai.__file__).resolve().is_relative_to(self._folder):
            raise DemoError(f"{monai.__file__} is a release of MONAI, install the fork: pip install -e {ROOT}")
        self._referee = Referee("demo.release_worker:Worker")

    def __enter__(self) -> Release:
        return self

    def __exit__(self, *_: object) -> None:
        self._referee.close()

    def ask(self, request: str, *args: Any) -> Any:
        """Send a request to :class:`demo.release_worker.Worker` and return its answer."""
        try:
            return self._referee.ask(request, *args)
        except RefereeError as error:
            raise DemoError(f"the release: {' '.join(str(error).split())}") from None

    def version(self) -> str:
        """The version of the release; makes sure that the process runs the pristine one."""
        file, version = self.ask("where")
        if not Path(file).resolve().is_relative_to(self._folder):
            raise DemoError(f"the release's process imported {file}, not the release in {self._folder}")
        out: str = version
        return out

    def compare(
        self, network: str, options: dict[str, Any], net: nn.Module, inputs: torch.Tensor
    ) -> tuple[float, float, float]:
        """Run the release's network with the weights of ``net``.

        Returns:
            largest difference of the outputs on ``inputs``, and the shortest time in seconds of one sample in the
            fork and in the release, measured in turn.
        """
        reference = self.ask("load", network, options, net.state_dict(), inputs)
        worst = difference(seeded(net, inputs), reference)
        one = inputs[:1]
        calls = max(1, min(50, round(ROUND_SECONDS / max(seconds(net, one, 1), 1e-6))))
        rounds = [(seconds(net, one, calls), self.ask("seconds", 1, calls)) for _ in range(ROUNDS)]
        ours, theirs = (min(times) for times in zip(*rounds))
        return worst, ours, theirs
