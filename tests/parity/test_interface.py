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

"""What the release's modules offer to other code, the fork's offer, too, but for what CHANGELOG.md names."""

from __future__ import annotations

import re
import unittest

from tests.dropin.interface import differences

ON_PURPOSE = [
    r"monai\.networks\.(blocks|nets)\.\w+\.(optional_import|_): missing",  # einops is gone
    r"built [\w ]+\.parameters: (\[\['[\w.]*norm_cross_attn\.\w+', \[\d+\], True\].*\]) in the release, "
    r"\[\['[\w.]*norm_cross_attn\.\w+', \[\d+\], False\].*\] here",  # frozen where nothing depends on it
    r"built DecoderOnlyTransformer\.state dict: \[('blocks\.\d\.attn\.causal_mask'(, )?)+\] in the release, \[\] here",
]


class TestInterface(unittest.TestCase):
    def test_nothing_is_lost(self):
        found = differences()
        self.assertEqual([line for line in found if not any(re.fullmatch(known, line) for known in ON_PURPOSE)], [])
        for known in ON_PURPOSE:
            self.assertTrue(any(re.fullmatch(known, line) for line in found), f"no longer different: {known}")


if __name__ == "__main__":
    unittest.main()
