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

"""The pages for readers: their Python runs as it stands, their links lead somewhere, their programs exist."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from parameterized import parameterized

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
WITH_PYTHON = [(page.name, page) for page in PAGES if PYTHON.search(page.read_text())]
SHIPPED = [(path.stem, path) for path in sorted((ROOT / "docs" / "configs").glob("*.json"))]
NEEDS_ONNX = "exports.md"


class TestDocuments(unittest.TestCase):
    @parameterized.expand(WITH_PYTHON)
    def test_python_runs(self, name, page):
        if name == NEEDS_ONNX and importlib.util.find_spec("onnxscript") is None:
            self.skipTest("onnxscript is missing, which is not made for Python 3.10")
        code = "\n".join(PYTHON.findall(page.read_text()))
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "tests").symlink_to(ROOT / "tests")
            command = [sys.executable, "-W", "ignore", "-c", code]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])

    @parameterized.expand([(page.name, page) for page in PAGES])
    def test_links_and_programs(self, _, page):
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            self.assertTrue("://" in target or (page.parent / target).exists(), target)
        for name in set(re.findall(r"python -m ([\w.]+)", text)) - {"build"}:
            self.assertIsNotNone(importlib.util.find_spec(name), name)
        flags = set(re.findall(r"runtests\.sh(?: [-\w.]+)*? (--?[a-z]+)", text))
        usage = (ROOT / "runtests.sh").read_text()
        for flag in flags:
            self.assertIn(f"{flag} ", usage.replace(",", " "))

    def test_readme_is_short(self):
        self.assertLessEqual(len((ROOT / "README.md").read_text().splitlines()), 150)

    @parameterized.expand(SHIPPED)
    def test_configuration_of_a_shipped_file(self, name, path):
        """It is the network that the file was written by."""
        from monai.bundle import ConfigParser
        from monai.networks import load_checkpoint

        parser = ConfigParser(json.loads(path.read_text()))
        load_checkpoint(parser.get_parsed_content("network_def"), ROOT / "tests" / "testing_data" / f"{name}.pt")


if __name__ == "__main__":
    unittest.main()
