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


from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Callable, Sequence


def run_command(main: Callable[[Sequence[str]], int], *arguments: object) -> tuple[int, str, str]:
    """Exit code of a command, and what stands on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


HELP = """
import runpy
import sys

import monai

sys.argv, program = ["", "--help"], sys.argv[1]
before = set(sys.modules)
try:
    runpy.run_module(program, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
print("imported:", sorted(set(sys.modules) - before))
"""


def help_and_imports(program: str) -> str:
    """What ``python -m program --help`` prints, and a line with the modules that it imports beyond ``import monai``."""
    command = [sys.executable, "-W", "ignore", "-c", HELP, program]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
