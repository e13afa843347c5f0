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

"""
What the inferer of VQ-VAE and transformer did wrong up to MONAI 1.6.1, a test a defect.

It uses nothing but the public interface of that release.
"""

from __future__ import annotations

import unittest

import torch

from monai.inferers import VQVAETransformerInferer
from monai.networks.nets import VQVAE, DecoderOnlyTransformer
from monai.utils.ordering import Ordering

torch.set_num_threads(1)
ENTRIES = 6


def networks() -> tuple[VQVAE, DecoderOnlyTransformer]:
    torch.manual_seed(0)
    vqvae = VQVAE(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(4,),
        num_res_layers=1,
        num_res_channels=(4,),
        downsample_parameters=((2, 4, 1, 1),),
        upsample_parameters=((2, 4, 1, 1, 0),),
        num_embeddings=ENTRIES,
        embedding_dim=4,
    )
    return vqvae.eval(), DecoderOnlyTransformer(ENTRIES + 1, 4, 8, 1, 2).eval()


class TestDefects(unittest.TestCase):
    def test_16_repr(self):
        """The constructor of nn.Module was never called."""
        self.assertEqual(repr(VQVAETransformerInferer()), "VQVAETransformerInferer()")

    def test_16_state_dict(self):
        self.assertEqual(dict(VQVAETransformerInferer().state_dict()), {})

    def test_16_the_begin_token_may_be_the_likeliest(self):
        """With top_k=1 nothing was left to draw from: the begin token is no entry of the codebook."""
        vqvae, transformer = networks()
        with torch.no_grad():
            transformer.to_logits.bias[ENTRIES] = 1e3
        start, ordering = torch.full((2, 1), ENTRIES), Ordering("raster_scan", 2, (1, 2, 2))
        image = VQVAETransformerInferer().sample((2, 2), start, vqvae, transformer, ordering, top_k=1, verbose=False)
        self.assertEqual(image.shape, (2, 1, 4, 4))


if __name__ == "__main__":
    unittest.main()
