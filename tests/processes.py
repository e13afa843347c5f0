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

"""Several processes of torch.distributed in a test."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable

import torch.multiprocessing as mp

__all__ = ["run_ranks"]

# what every process would import anew, in seconds
PRELOADED = ["torch.distributed.tensor", "monai.networks.nets"]
START = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"


def run_ranks(work: Callable[..., None], ranks: int, *arguments: object, limit: float = 120.0) -> None:
    """
    Run a function in several processes, and wait for their end.

    Args:
        work: called with the number of its process, and the arguments.
        ranks: how many processes.
        arguments: of the function.
        limit: seconds, after which the processes are killed.

    Raises:
        TimeoutError: if they do not end in time.
    """
    multiprocessing.set_forkserver_preload(PRELOADED)
    processes = mp.start_processes(work, args=arguments, nprocs=ranks, join=False, start_method=START)
    deadline = time.monotonic() + limit
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            raise TimeoutError(f"the {ranks} processes did not end within {limit} seconds")
