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

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from parameterized import parameterized

ROOT = Path(__file__).resolve().parents[2]

# An interpreter that notes its calls and, in place of pip, ruff and pytest, does what FAKE_PIP and the like say.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "${QUICKTEST:+QUICKTEST=$QUICKTEST }$*" >>"$CALLS"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*) eval "${FAKE_PIP:-:}" ;;
  "-m black "* | "-m isort "* | "-m flake8 "* | "-m ruff "*) eval "${FAKE_STYLE:-:}" ;;
  "-m pytest "*) eval "${FAKE_PYTEST:-:}" ;;
  "-m fork build --link") [ -n "${FAKE_BUILD:-}" ] || { mkdir -p build/fork && cp -r monai build/fork/; } ;;
  "-m fork compare "*) eval "${FAKE_COMPARE:-:}" ;;
  "-c "*find_spec*) [ ! -d build/fork/monai ] || echo "$PWD/build/fork/monai/__init__.py" ;;
  "-c "*version*) exec "$REAL_PYTHON" "$@" ;;
esac
"""

INSTALL = ["pip", "pip"]  # the requirements, then the fork

STYLE = [["black", "--check", "."], ["isort", "--check", "."], ["flake8", "."], ["ruff", "check", "."]]

# flags, what each printed command must hold, in their order
TEST_CASES_DRYRUN = [
    [["-u"], [["fork", "build", "--link"], ["pytest", "tests", "-n", "2", "--dist", "loadfile", "not grid"]]],
    [["--unittests", "--quick"], [["fork"], ["pytest", "not grid and not slow"]]],
    [["-u", "--coverage"], [["fork"], ["pytest", "--cov=monai", "--cov=fork"]]],
    [["--disttests"], [["fork"], ["pytest", "-m", "distributed"]]],
    [["--net"], [["fork"], ["pytest", "-m", "grid"]]],
    [["--list_tests", "-u"], [["fork"], ["pytest", "--collect-only"]]],
    [["-f"], [*STYLE, ["check_headers"]]],
    [["--autofix"], [["ruff", "check", "--fix"], ["isort", "."], ["black", "."], ["check_headers"]]],
    *([[f"--{command[0]}"], [command]] for command in STYLE),
    [["--copyright"], [["check_headers"]]],
    [["--mypy"], [["fork"], ["mypy"]]],
    [["--build"], [["build"]]],
    [["--clean"], [["rm", "build", "dist"]]],
    [["--demo"], [["fork"], ["demo"]]],
    [["--docs"], [["fork"], ["sphinx", "-W", "docs", "build/docs"]]],
    [
        ["--torch", "2.8.0"],
        [["cp"], ["sed"], ["fork", "build", "--link"], ["pytest", "tests", "not grid and not slow"]],
    ],
    [["--torch", "2.9.0+cpu", "--net"], [["cp"], ["sed"], ["fork"], ["pytest", "-m", "grid"]]],
    [["-u", "-f"], [*STYLE, ["check_headers"], ["fork"], ["pytest", "tests"]]],
    [["--demo", "-u", "-b", "-c"], [["rm"], ["build"], ["fork"], ["pytest"], ["demo"]]],
    [
        ["--net", "--disttests", "-u", "--mypy"],
        [["fork"], ["mypy"], ["pytest", "not grid"], ["pytest", "distributed"], ["pytest", "grid"]],
    ],
]

TEST_CASES_REFUSED = [
    ["unknown_flag", ["--bogus"], ["usage: ./runtests.sh", "'--bogus'"]],
    ["unknown_after_known", ["-u", "tests/networks"], ["usage: ./runtests.sh", "'tests/networks'"]],
    ["quick_alone", ["-q"], ["-u"]],
    ["coverage_without_unit_tests", ["-f", "--coverage"], ["-u"]],
    ["no_version_of_torch", ["-u", "--torch"], ["--torch needs a version", "2.8.0"]],
    ["flag_for_a_version_of_torch", ["--torch", "-u"], ["--torch needs a version", "'-u'"]],
    ["path_for_a_version_of_torch", ["--torch", "2/../.."], ["--torch needs a version", "'2/../..'"]],
]


class Sandbox(unittest.TestCase):
    """A copy of the commands with next to nothing around them, and a fake ``python3`` first on the path."""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.outside = Path(temporary.name).resolve()
        self.root = self.outside / "a folder with spaces"
        for name in ("runtests.sh", "requirements-dev.txt", ".ci/run"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self.root / name)
        self.header = "".join((ROOT / "runtests.sh").read_text().splitlines(keepends=True)[1:12])
        self.write("monai/module.py", self.header + "value = 1\n")
        self.write("fork/__init__.py", self.header.rstrip() + "\n")
        self.log = self.outside / "calls"
        self.fake = self.executable("bin/python3", FAKE_PYTHON)
        self.variables = {
            "PATH": f"{self.fake.parent}:{os.environ['PATH']}",
            "HOME": str(self.outside),
            "CALLS": str(self.log),
            "REAL_PYTHON": sys.executable,
        }

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def executable(self, name: str, text: str) -> Path:
        path = self.outside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, *flags: str, script: str = "./runtests.sh", cwd: Path | None = None, **variables: str):
        return subprocess.Popen(
            ["bash", script, *flags],
            cwd=cwd or self.root,
            env={**self.variables, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def passes(self, *flags: str, **options) -> str:
        """Run the script, which must end with 0; returns what it printed."""
        process = self.start(*flags, **options)
        stdout, stderr = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, stdout + stderr)
        return stdout

    def fails(self, *flags: str, code: int = 1, **options) -> str:
        """Run the script, which must end with that code; returns its explanation, which must be short."""
        process = self.start(*flags, **options)
        stdout, stderr = process.communicate(timeout=60)
        self.assertEqual(process.returncode, code, stdout + stderr)
        self.assertIn("runtests.sh: ", stderr)
        self.assertLessEqual(len(stderr.splitlines()), 2, stderr)
        return stderr

    def calls(self, word: str = "-m ") -> list[str]:
        """The calls of the fake interpreter with that word in them, since the last time this was asked."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line for line in lines if word in line]

    def modules(self) -> list[str]:
        """The modules that ran, since the last time that calls were asked for."""
        return [line.split("-m ")[1].split()[0] for line in self.calls()]


class TestFlags(Sandbox):
    @parameterized.expand(TEST_CASES_DRYRUN)
    def test_dry_run_prints_the_commands_in_order(self, flags, expected):
        lines = self.passes("--dryrun", *flags).splitlines()
        commands = [shlex.split(line) for line in lines if not line.startswith("#")]
        commands = [words for words in commands if not {"mkdir", "venv", "pip"} & set(words)]
        self.assertEqual(len(commands), len(expected), commands)
        for words, needed in zip(commands, expected):
            self.assertLessEqual(set(needed), set(words))

    def test_dry_run_runs_nothing_and_changes_nothing(self):
        before = sorted(self.root.rglob("*"))
        output = self.passes("--dryrun", "-c", "-b", "-f", "-u", "--demo")
        self.assertRegex(output, r"python3 -m venv .venv\n")
        self.assertRegex(output, r"pip .*install .*-r requirements-dev.txt\n")
        self.assertEqual(sorted(self.root.rglob("*")), before)
        self.assertEqual(self.calls(), [])

    @parameterized.expand(TEST_CASES_REFUSED)
    def test_refused(self, _name, flags, needed):
        message = self.fails(*flags)
        for text in needed:
            self.assertIn(text, message)
        self.assertEqual(self.calls(""), [])

    def test_help(self):
        output = self.passes("--help")
        for flag in ("--unittests", "--codeformat", "--disttests", "--list_tests", "--torch VERSION", "MONAI_PY_EXE"):
            self.assertIn(flag, output)
        process = self.start()
        self.assertEqual((process.communicate()[0], process.returncode), (output, 1))

    def test_versions_need_no_environment(self):
        output = self.passes("-v", MONAI_PY_EXE=sys.executable)
        self.assertIn(f"python {sys.version.split()[0]}", output)
        self.assertRegex(output, r"torch \d+\.\d+")
        self.assertIn("monai ", output)
        self.assertFalse((self.root / ".venv").exists())

    def test_clean_removes_outputs_alone(self):
        outputs = ["build/fork/monai/a.py", "dist/a.whl", "monai.egg-info/PKG-INFO", "monai/__pycache__/a.pyc"]
        kept = ["monai/module.py", ".venv/lib/__pycache__/a.pyc", ".git/config", "myenv/lib/__pycache__/a.pyc"]
        kept.append(".venv-torch-2.8.0/lib/__pycache__/a.pyc")
        for name in outputs + kept[1:] + ["myenv/pyvenv.cfg", ".venv-torch-2.8.0/pyvenv.cfg"]:
            self.write(name, "")
        self.passes("-c")
        self.assertEqual([name for name in outputs if (self.root / name).exists()], [])
        self.assertEqual([name for name in kept if not (self.root / name).exists()], [])
        self.assertFalse((self.root / "build").exists())


class TestSteps(Sandbox):
    def test_from_any_folder(self):
        script = os.path.join(self.root.name, "runtests.sh")
        decoy = self.outside / "decoy"
        (decoy / self.root.name).mkdir(parents=True)
        self.passes("-u", script=script, cwd=self.outside, CDPATH=str(decoy))
        self.assertEqual(self.modules()[-1], "pytest")
        self.assertTrue((self.root / "build/fork/monai/module.py").exists())

    def test_first_failure_ends_the_run_with_its_code(self):
        message = self.fails("-f", "-u", code=7, FAKE_STYLE="exit 7")
        self.assertIn("black: failed", message)
        self.assertNotIn("pytest", self.modules())
        self.assertIn("unit tests", self.fails("-u", "--demo", code=3, FAKE_PYTEST="exit 3"))
        self.assertNotIn("demo", self.modules())

    def test_quick_reaches_the_tests(self):
        self.passes("-u", "-q")
        self.assertIn("QUICKTEST=true", self.calls("pytest")[-1])
        self.passes("-u")
        self.assertNotIn("QUICKTEST", self.calls("pytest")[-1])

    def test_jobs(self):
        self.passes("-u", MONAI_TEST_JOBS="5")
        self.assertIn("-n 5 ", self.calls("pytest")[-1])

    def test_no_network_grid_is_no_failure_but_no_unit_test_is(self):
        output = self.passes("--net", FAKE_PYTEST="exit 5")
        self.assertIn("no test is marked 'grid'", output)
        self.fails("--net", code=1, FAKE_PYTEST="exit 1")
        self.fails("-u", code=5, FAKE_PYTEST="exit 5")
        self.fails("--disttests", code=5, FAKE_PYTEST="exit 5")

    def test_headers(self):
        self.write("tools/good.sh", "#!/bin/sh\n" + self.header + "echo\n")
        for ignored in (".venv/a.py", "build/a.py", ".mypy_cache/a.py", ".git/hooks/a.sh"):
            self.write(ignored, "value = 1\n")
        self.passes("--copyright")
        late = self.write("tests/late.py", "value = 1\n" + self.header)
        other = self.write("tools/other.sh", "#!/bin/sh\n" + self.header.replace("MONAI Consortium", "Somebody"))
        process = self.start("--copyright")
        stdout, stderr = process.communicate()
        self.assertEqual(process.returncode, 1)
        self.assertIn("license headers", stderr)
        for path in (late, other):
            self.assertIn(str(path.relative_to(self.root)), stdout)
        self.assertEqual(len(stdout.splitlines()), 3, stdout)
        self.assertTrue(self.header.startswith("# Copyright (c) MONAI Consortium\n"))

    def test_style_with_the_real_tools(self):
        messy = self.write("monai/messy.py", self.header + "import os\nvalue = [1,2]\n")
        for name in ("black", "isort", "flake8", "ruff"):
            self.assertIn(name, self.fails(f"--{name}", MONAI_PY_EXE=sys.executable))
        self.passes("--autofix", MONAI_PY_EXE=sys.executable)
        self.assertIn("value = [1, 2]", messy.read_text())

    def test_ci_checks_the_style_before_the_tests(self):
        script = str(self.root / ".ci/run")
        self.passes(script=script, cwd=self.outside)
        modules = self.modules()
        self.assertLess(modules.index("ruff"), modules.index("pytest"))
        self.fails(script=script, cwd=self.outside, code=1, FAKE_STYLE="exit 1")
        self.assertNotIn("pytest", self.modules())


class TestEnvironment(Sandbox):
    def test_made_once(self):
        self.passes("-u")
        self.assertEqual(self.modules(), ["venv", *INSTALL, "fork", "pytest"])
        self.passes("-u")
        self.assertEqual(self.modules(), ["fork", "pytest"])

    @parameterized.expand([["requirements-dev.txt"], ["setup.cfg"], ["fork/merge.py"]])
    def test_installs_again_after_a_change(self, name):
        self.passes("--ruff")
        path = self.root / name
        path.write_text(path.read_text() + "# more\n" if path.exists() else "# new\n")
        self.calls()
        self.passes("--ruff")
        self.assertEqual(self.modules()[:2], INSTALL)

    @parameterized.expand([["fails", "exit 1"], ["is_killed", "kill -9 $PPID"]])
    def test_unfinished_installation_is_repaired(self, _name, pip):
        process = self.start("--ruff", FAKE_PIP=pip)
        _, stderr = process.communicate(timeout=60)
        self.assertNotEqual(process.returncode, 0)
        if process.returncode > 0:
            self.assertIn("requirements-dev.txt", stderr)
        rest = self.write(".venv/lib/half a package", "")
        self.calls()
        self.passes("--ruff")
        self.assertEqual(self.modules()[:3], ["venv", *INSTALL])
        self.assertFalse(rest.exists())

    def test_failed_update_is_repaired_after_the_change_is_undone(self):
        self.passes("--ruff")
        requirements = self.root / "requirements-dev.txt"
        before = requirements.read_text()
        requirements.write_text(before + "absent==1\n")
        self.fails("--ruff", FAKE_PIP="exit 1")
        requirements.write_text(before)
        self.calls()
        self.passes("--ruff")
        self.assertEqual(self.modules()[:3], ["venv", *INSTALL])

    @parameterized.expand([["moved"], ["broken"]])
    def test_environment_that_is_no_longer_right_is_made_anew(self, change):
        self.passes("--ruff")
        self.calls()
        if change == "moved":
            self.root = self.root.rename(self.outside / "moved")
        else:
            (self.root / ".venv/bin/python").unlink()
        self.passes("--ruff")
        self.assertEqual(self.modules()[0], "venv")

    def test_of_another_torch(self):
        self.passes("--ruff")
        self.calls()
        self.passes("--torch", "2.8.0")
        self.assertEqual(self.calls("pytest")[-1].split()[0], "QUICKTEST=true")
        home = self.root / ".venv-torch-2.8.0"
        pinned = (self.root / "requirements-dev.txt").read_text().splitlines()
        replaced = (home / "requirements.txt").read_text().splitlines()
        others = [(old, new) for old, new in zip(pinned, replaced) if old != new]
        self.assertEqual([new for _, new in others], ["torch==2.8.0"])
        self.assertEqual(len(pinned), len(replaced))
        self.passes("--ruff")
        self.assertEqual(self.modules(), ["ruff"])

    def test_of_another_torch_is_made_once(self):
        self.passes("--torch", "2.8.0")
        calls = self.calls()
        self.assertEqual([line.split("-m ")[1].split()[0] for line in calls], ["venv", *INSTALL, "fork", "pytest"])
        self.assertIn("-r .venv-torch-2.8.0/requirements.txt", " ".join(calls))
        self.passes("--torch", "2.8.0", "--net")
        self.assertEqual(self.modules(), ["fork", "pytest"])
        self.passes("--torch", "2.9.0", "--mypy")
        self.assertEqual(self.modules(), ["venv", *INSTALL, "fork", "mypy"])
        self.assertFalse((self.root / ".venv").exists())

    def test_of_another_torch_needs_a_torch_to_replace(self):
        (self.root / "requirements-dev.txt").write_text("numpy\n")
        self.assertIn("pins no torch", self.fails("--torch", "2.8.0"))

    def test_of_another_torch_and_of_the_user(self):
        message = self.fails("--torch", "2.8.0", MONAI_PY_EXE=sys.executable)
        self.assertIn("--torch", message)
        self.assertIn("MONAI_PY_EXE", message)

    def test_environment_of_another_maker_is_left_alone(self):
        theirs = self.write(".venv/pyvenv.cfg", "home = /usr/bin\n")
        message = self.fails("-u")
        self.assertIn(str(self.root / ".venv"), message)
        self.assertIn("MONAI_PY_EXE", message)
        self.assertTrue(theirs.exists())

    def test_old_python_is_passed_over(self):
        tools = self.outside / "tools"
        tools.mkdir()
        for name in ("bash", "cat", "cksum", "cmp", "cp", "dirname", "env", "find", "ls", "mkdir", "rm", "sed", "tr"):
            (tools / name).symlink_to(shutil.which(name))
        older = 'exec "$REAL_PYTHON" -c "import sys; sys.version_info = (3, 9, 18); $2"'
        old = self.executable("old/python3", f"#!/usr/bin/env bash\n{older}\n")
        path = f"{old.parent}:{tools}"
        self.assertIn("Python 3.10", self.fails("--ruff", PATH=path))
        newer = self.executable("new/python3.12", FAKE_PYTHON)
        self.passes("--ruff", PATH=f"{path}:{newer.parent}")
        self.assertEqual(self.modules()[0], "venv")

    @unittest.skipUnless(shutil.which("flock"), "without flock the script cannot lock")
    def test_two_at_once_make_one_environment(self):
        runs = [self.start("--ruff", FAKE_PIP="sleep 0.3") for _ in range(2)]
        for process in runs:
            stdout, stderr = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, stdout + stderr)
        modules = self.modules()
        self.assertEqual(modules.count("venv"), 1)
        self.assertEqual(modules.count("pip"), 2)


class TestChosenInterpreter(Sandbox):
    @parameterized.expand([["/nowhere/python"], ["no-such-python"], ["/bin/false"], ["./missing/python"]])
    def test_that_does_not_run(self, name):
        message = self.fails("-f", MONAI_PY_EXE=name)
        self.assertIn(f"MONAI_PY_EXE='{name}'", message)
        self.assertIn("unset it", message)

    def test_nothing_is_installed(self):
        self.write("build/fork/monai/module.py", (self.root / "monai/module.py").read_text())
        self.passes("-u", MONAI_PY_EXE="../bin/python3")
        self.assertEqual(self.modules(), ["fork", "pytest"])
        self.assertFalse((self.root / ".venv").exists())

    def test_without_monai(self):
        bare = self.executable("bin/bare", f'#!/usr/bin/env bash\nexec "{sys.executable}" -I -S "$@"\n')
        message = self.fails("-u", MONAI_PY_EXE=str(bare))
        self.assertIn("has no monai", message)
        self.assertIn("pip install -e .", message)

    def test_without_a_tool(self):
        bare = self.executable("bin/bare", f'#!/usr/bin/env bash\nexec "{sys.executable}" -I -S "$@"\n')
        message = self.fails("-f", MONAI_PY_EXE=str(bare))
        self.assertIn("'black'", message)
        self.assertIn("requirements-dev.txt", message)

    def test_with_a_package_of_another_amended_file(self):
        self.write("setup.cfg", "[upstream:amends]\nmonai/half.py = why\n    adds: a\n\n[upstream:adds]\n")
        self.write("monai/half.py", self.header + "half = 1\n")
        self.write("build/fork/monai/module.py", (self.root / "monai/module.py").read_text())
        self.write("build/fork/monai/half.py", "half = 1\nrest = 2\n")
        options = {"MONAI_PY_EXE": str(self.fake), "FAKE_BUILD": ":"}
        self.passes("-u", **options)
        self.assertIn(f"-m fork compare {self.root}/build/fork", self.calls())
        message = self.fails("-u", FAKE_COMPARE="echo 'fork: another half.py' >&2; exit 1", **options)
        self.assertIn("another half.py", message)
        self.assertIn("pip install -e .", message)

    def test_with_another_monai(self):
        self.write("other/monai/__init__.py", "")
        same = self.write("other/monai/module.py", "value = 0\n")
        options = {"MONAI_PY_EXE": sys.executable, "PYTHONPATH": str(self.root / "other")}
        message = self.fails("-u", **options)
        self.assertIn("module.py", message)
        self.assertIn(str(same.parent), message)
        self.assertIn("pip install -e .", message)


if __name__ == "__main__":
    unittest.main()
