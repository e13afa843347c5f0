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

"""The pin: which release the fork is laid over, and why each file of the fork is not upstream yet."""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VERSION_FILE", "ForkError", "Pin", "read_pin"]

VERSION_FILE = "monai/_version.py"  # written anew for every merge
PACKAGE_FILE = "monai/__init__.py"  # here it would make monai/ a package that hides the merged one
VERSION = re.compile(r"[0-9]+(\.[0-9]+)*((a|b|rc)[0-9]+)?(\.post[0-9]+)?")
LABEL = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*")  # a local version as PEP 440 normalizes it
SHA256 = re.compile(r"[0-9a-f]{64}")


class ForkError(RuntimeError):
    """What went wrong and what to do about it, in one line."""


@dataclass(frozen=True)
class Pin:
    """
    The release and the fork's files, as setup.cfg of ``root`` tells.

    Args:
        root: the repository.
        version: version of the release.
        wheel: file name of the release's wheel.
        sha256: its hash.
        label: local version of the merged package.
        purpose: what the fork is for, in one sentence.
        replaces: files of the release that the fork replaces, each with the reason.
        adds: files that the fork adds, each with the reason.
        amends: files that hold some definitions of a file of the release, each with the reason, see fork/amend.py.
        new_names: for each of these files the names that the release's file does not have.
    """

    root: Path
    version: str
    wheel: str
    sha256: str
    label: str
    purpose: str
    replaces: dict[str, str]
    adds: dict[str, str]
    amends: dict[str, str]
    new_names: dict[str, tuple[str, ...]]

    @property
    def full_version(self) -> str:
        return f"{self.version}+{self.label}"

    @property
    def files(self) -> dict[str, str]:
        """Every file of the fork with its reason."""
        return {**self.replaces, **self.amends, **self.adds}

    @property
    def build(self) -> Path:
        """The folder for everything that is made."""
        return self.root / "build"


def read_pin(root: Path | str | None = None) -> Pin:
    """
    Read setup.cfg.

    Args:
        root: the repository; by default the one that holds this file.

    Raises:
        ForkError: if setup.cfg lacks a value, or holds one that cannot be right.
    """
    root = Path(root or Path(__file__).parent.parent).resolve()
    config = configparser.ConfigParser(delimiters="=")  # setuptools interpolates % as well
    config.optionxform = str  # type: ignore[assignment,method-assign]  # paths keep their capitals
    try:
        config.read_string((root / "setup.cfg").read_text(encoding="utf-8"), "setup.cfg")
        values = {key: " ".join(config["upstream"][key].split()) for key in _UPSTREAM}
        replaces, adds = (
            {path: " ".join(reason.split()) for path, reason in config[section].items()}
            for section in ("upstream:replaces", "upstream:adds")
        )
        amended = dict(config["upstream:amends"]) if "upstream:amends" in config else {}
    except OSError as error:
        raise ForkError(f"{root / 'setup.cfg'} cannot be read: {error.strerror}") from None
    except KeyError as error:
        raise ForkError(f"{root / 'setup.cfg'} lacks {error}, which tells the release to build on") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ForkError(f"{root / 'setup.cfg'} cannot be read: {' '.join(str(error).split())}") from None
    amends, new_names = {}, {}
    for path, text in amended.items():
        amends[path], new_names[path] = _reason_and_names(text)
    pin = Pin(root=root, replaces=replaces, adds=adds, amends=amends, new_names=new_names, **values)
    _check_release(pin)
    _check_lists(pin)
    return pin


_UPSTREAM = ("version", "wheel", "sha256", "label", "purpose")


def _reason_and_names(text: str) -> tuple[str, tuple[str, ...]]:
    """The reason, and the names after a line that begins with ``adds:``."""
    reason, _, names = ("\n" + text).partition("\nadds:")
    return " ".join(reason.split()), tuple(name.strip() for name in names.split(",") if name.strip())


def _check_release(pin: Pin) -> None:
    where = "[upstream] of setup.cfg"
    if not VERSION.fullmatch(pin.version):
        raise ForkError(f"{where}: version '{pin.version}' is not a release such as 1.6.1")
    if not LABEL.fullmatch(pin.label):
        raise ForkError(
            f"{where}: label '{pin.label}' should be lowercase letters, digits and dots, such as attention.1"
        )
    if not SHA256.fullmatch(pin.sha256):
        raise ForkError(f"{where}: sha256 '{pin.sha256}' should be 64 lowercase hexadecimal digits")
    if not (pin.wheel.startswith(f"monai-{pin.version}-") and pin.wheel.endswith(".whl")) or "/" in pin.wheel:
        raise ForkError(f"{where}: wheel '{pin.wheel}' is not the name of a wheel of monai {pin.version}")


def _check_lists(pin: Pin) -> None:
    lists = {"replaces": pin.replaces, "amends": pin.amends, "adds": pin.adds}
    for path, reason in (item for files in lists.values() for item in files.items()):
        if not path.startswith("monai/") or ".." in path.split("/"):
            raise ForkError(f"setup.cfg lists '{path}', which is not a file of monai/")
        if not reason:
            raise ForkError(f"setup.cfg lists '{path}' without the reason why it is not upstream yet")
        among = [f"[upstream:{name}]" for name, files in lists.items() if path in files]
        if len(among) > 1:
            raise ForkError(f"setup.cfg lists '{path}' both in {' and in '.join(among)}")
        if path in pin.amends and not path.endswith(".py"):
            raise ForkError(f"setup.cfg lists '{path}' in [upstream:amends], but it is no Python file")
    for path in (PACKAGE_FILE, VERSION_FILE):
        if path in pin.files:
            raise ForkError(f"setup.cfg lists '{path}', which the fork cannot bring: it comes from the merge itself")
