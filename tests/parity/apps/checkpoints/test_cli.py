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

"""``verify`` against the release itself."""

from __future__ import annotations

import json
import unittest

import torch

from fork.wheel import pristine
from monai.networks.nets import DecoderOnlyTransformer
from monai.networks.state_dict.release import release_state_dict
from tests.apps.checkpoints.test_cli import CommandCase, randomized, run

torch.set_num_threads(1)


DECODER = {"num_tokens": 7, "max_seq_len": 9, "attn_layers_dim": 24, "attn_layers_depth": 1, "attn_layers_heads": 4}


class TestVerify(CommandCase):
    def test_other_outputs_than_the_package_gives(self):
        """Exit code 1, against the real release with other heads."""
        net = randomized(DecoderOnlyTransformer(**DECODER))
        torch.save(release_state_dict(net, net.state_dict()), self.path)
        self.write_config("DecoderOnlyTransformer", {**DECODER, "attn_layers_heads": 2})
        there = self.folder / "there.json"
        there.write_text(json.dumps({"_target_": "monai.networks.nets.DecoderOnlyTransformer", **DECODER}))
        arguments = ("verify", self.path, "--config", self.config, "--against", pristine(), "--against-config", there)
        code, out, _ = run(*arguments)
        self.assertEqual(code, 1)
        self.assertRegex(out, "monai 1.6.1 with torch")
        self.assertIn("DIFFERENT outputs", out)


if __name__ == "__main__":
    unittest.main()
