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

"""A git tree in a temporary folder, to apply mail patches to: the release, or a checkout of upstream."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from fork.git import Git
from fork.pin import ForkError
from fork.series.mail import Author
from fork.series.pull import Reader

__all__ = ["Tree", "git_reader", "tree_of_checkout", "tree_of_release"]

IGNORED = "__pycache__/\n*.so\n"


class Tree:
    """
    A work tree at its base, to which patches are applied.

    Args:
        git: runs in the work tree.
        base: its commit.
    """

    def __init__(self, git: Git, base: str) -> None:
        self.git = git
        self.folder = git.work
        self.base = base

    def apply(self, mails: Iterable[bytes]) -> list[str]:
        """
        Go back to the base and apply these patches.

        Returns:
            what git says of those that do not apply; empty if all do.
        """
        self.git.run("am", "--abort")
        self.git("checkout", "--quiet", "--force", "--detach", self.base)
        self.git("clean", "-ffdq")
        mailbox = b"".join(mails)
        done = self.git.run("-c", "core.hooksPath=/dev/null", "am", "--quiet", stdin=mailbox) if mailbox else None
        if not done or not done.returncode:
            return []
        self.git.run("am", "--abort")
        words = done.stderr.decode(errors="replace").splitlines()
        return [line for line in words if line.startswith("error:")] or words or ["git am fails silently"]

    def read(self, path: str) -> bytes | None:
        """A file of the work tree."""
        place = self.folder / path
        return place.read_bytes() if place.is_file() else None


def tree_of_release(
    scratch: Path, release: Path, extra: Mapping[str, bytes], author: Author, upstream_tests: Reader | None = None
) -> Tree:
    """
    The release as the first commit of a new repository.

    Args:
        scratch: an empty folder.
        release: the folder that holds the unpacked wheel.
        extra: what upstream has and the wheel lacks: titles of the documentation, packages of tests.
        author: of the commits.
        upstream_tests: reads upstream's tests, where there is a copy.
    """
    git = _repository(scratch, author)
    shutil.copytree(release / "monai", git.work / "monai", ignore=shutil.ignore_patterns("__pycache__"))
    for path, data in extra.items():
        known = upstream_tests(path) if upstream_tests and path.startswith("tests/") else None
        place = git.work / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data if known is None else known)
    (git.work / ".gitignore").write_text(IGNORED)
    git("add", "--all", "--force")
    git("commit", "--quiet", "-m", "The release")
    return Tree(git, git("rev-parse", "HEAD").decode().strip())


def tree_of_checkout(scratch: Path, checkout: Path, author: Author) -> Tree:
    """
    A checkout of upstream, or a bare repository, at its HEAD; it is only read.

    Raises:
        ForkError: if there is no repository.
    """
    git = _repository(scratch, author)
    place = str(checkout.resolve())
    git("fetch", "--quiet", "--no-tags", "--depth=1", f"file://{place}", "HEAD")
    git("checkout", "--quiet", "--detach", "FETCH_HEAD")
    (git.work / ".git" / "info").mkdir(exist_ok=True)
    (git.work / ".git" / "info" / "exclude").write_text(IGNORED)
    return Tree(git, git("rev-parse", "HEAD").decode().strip())


def git_reader(checkout: Path) -> Reader:
    """Reads files of a git repository, bare or not, at its HEAD."""
    git = Git(checkout.resolve(), checkout.resolve())
    git.variables |= _trusting()
    if git.run("rev-parse", "HEAD").returncode:
        raise ForkError(f"'{checkout}' is no git repository with a commit")

    def read(path: str) -> bytes | None:
        done = git.run("cat-file", "blob", f"HEAD:{path}")
        return None if done.returncode else done.stdout

    return read


def _repository(scratch: Path, author: Author) -> Git:
    git = Git(scratch / "tree", scratch)
    git.work.mkdir(parents=True)
    git.variables |= {"GIT_COMMITTER_NAME": author.name, "GIT_COMMITTER_EMAIL": author.address, **_trusting()}
    git.variables |= {"GIT_AUTHOR_NAME": author.name, "GIT_AUTHOR_EMAIL": author.address}
    git("init", "--quiet", "--template=")
    return git


def _trusting() -> dict[str, str]:
    """Settings with which git reads a repository of another user."""
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
