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

"""The packages that wrote older checkpoints: pinned, fetched by pip, unpacked side by side, never installed."""

from __future__ import annotations

import os
from pathlib import Path

from fork.files import put_in_place, scratch_folder
from fork.pin import ForkError, read_pin
from fork.wheel import download, is_intact, pristine, unpack

__all__ = ["PACKAGES", "environment", "unpacked"]

# What is imported from each, and the hash of its wheel. The release under the fork is pinned in setup.cfg.
PACKAGES = {
    "monai-generative==0.2.1": ("generative", "0823cc26a0eb0c620e8c0d58c4af42564bcfbf8b775403101f37ea3e388534be"),
    "monai-generative==0.2.3": ("generative", "44dee6264e72f2e7577ad41104db48fae2ca701a3c35e2c74c7d14133b5a16a1"),
    "stable-diffusion-sdkit==2.1.5": ("ldm", "552075efc72e81182b34a0c7b6579202a24d1d6cd6712a11979bf81d106625a4"),
    "monai==1.2.0": ("monai", "941e3d1cd0ad9af46d6acc77a95c3ea6dd93b0046b71bb15125e6501db3d70f1"),
    "monai==1.3.2": ("monai", "899e2bda5e1fa00675cddbb82197dcfab4496801087d6199d474db2fa17b2452"),
    "monai==1.4.0": ("monai", "a715ca9ff8a068e36efdd147420f0ff02ead744909e7ea0998f31129c4997c9b"),
    "monai==1.5.2": ("monai", "6c4f75d47a88c1e37521bce4b7cb1540c6f4e5ca1d43910c60f61fc2ef4ddab2"),
}


def unpacked(requirement: str, root: Path | str | None = None) -> Path:
    """
    The folder that holds a package, unpacked and unmodified; made on the first call.

    Several processes may call at once.

    Args:
        requirement: such as ``monai==1.3.2``: one of ``PACKAGES``, or the release that setup.cfg pins.
        root: the repository; by default the one that holds this file.

    Raises:
        ForkError: if the package is not pinned, cannot be had, or is not the pinned one.
    """
    pin = read_pin(root)
    if requirement == f"monai=={pin.version}":
        return pristine(pin.root)
    if requirement not in PACKAGES:
        known = ", ".join([*PACKAGES, f"monai=={pin.version}"])
        raise ForkError(f"no wheel is pinned for '{requirement}', only for {known}: add its hash to fork/packages.py")
    package, sha256 = PACKAGES[requirement]
    name, _, version = requirement.partition("==")
    home = pin.build / "packages" / f"{name}-{version}-{sha256[:12]}"
    if is_intact(home, package):
        return home
    with scratch_folder(home) as scratch:
        new = scratch / "new"
        unpack(download(version, scratch, sha256, name), new, package)
        put_in_place(new, home, lambda: is_intact(home, package))
    return home


def environment(*requirements: str) -> dict[str, str]:
    """
    Environment of a process that imports these packages, the first ones first, on one thread.

    Raises:
        ForkError: as :func:`unpacked`.
    """
    folders = [str(unpacked(requirement)) for requirement in requirements]
    path = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"}
