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

"""Builds MONAI with the fork laid over the release that setup.cfg pins; fork/ does the work."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from fork.metadata import setup_arguments  # noqa: E402
from fork.overlay import is_linked, merge  # noqa: E402
from fork.pin import ForkError, read_pin  # noqa: E402
from fork.wheel import pristine  # noqa: E402


def main() -> None:
    tree = ROOT / "build" / "fork"
    # What was installed editable stays so: a wheel built from links holds the files that they lead to.
    link = "editable_wheel" in sys.argv or is_linked(tree)
    try:
        merge(tree, link=link, root=ROOT)
        arguments = setup_arguments(read_pin(ROOT), pristine(ROOT), tree)
    except (ForkError, OSError) as error:
        sys.exit(f"monai cannot be built: {error}")
    if "sdist" in sys.argv:
        arguments["license_files"] = ["LICENSE"]  # an sdist holds nothing of the release
    # setuptools never removes a file from there, and would put one that is gone from monai/ into the wheel.
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
    setup(**arguments)


main()
