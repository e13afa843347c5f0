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

"""The tests of this folder, run on the release: what fails there is nothing that users do around its networks."""

from __future__ import annotations

import re
import subprocess
import sys
import unittest
from pathlib import Path

from parameterized import parameterized

from fork.referee import release_environment

HERE = Path(__file__).resolve().parent
FILES = [(path.stem,) for path in sorted(HERE.glob("test_*.py")) if path != Path(__file__).resolve()]


class TestOnTheRelease(unittest.TestCase):
    @parameterized.expand(FILES)
    def test_passes_there(self, name):
        command = [sys.executable, "-W", "ignore", "-m", "unittest", "-v", name]
        result = subprocess.run(command, cwd=HERE, env=release_environment(), capture_output=True, text=True)
        verdicts = re.findall(r"^(test_\w+) \(.*?(ok|FAIL|ERROR|skipped .*)$", result.stderr, re.MULTILINE | re.DOTALL)
        self.assertTrue(verdicts, result.stderr[-2000:])
        self.assertEqual([verdict for verdict in verdicts if verdict[1] != "ok"], [], result.stderr[-2000:])


if __name__ == "__main__":
    unittest.main()
