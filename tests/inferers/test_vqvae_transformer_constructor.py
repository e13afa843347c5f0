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

import unittest

import torch

from monai.inferers import VQVAETransformerInferer
from monai.networks.nets import VQVAE, DecoderOnlyTransformer
from monai.utils import OrderingType
from monai.utils.ordering import Ordering


class TestVQVAETransformerInferer(unittest.TestCase):
    def test_is_a_module(self):
        inferer = VQVAETransformerInferer()
        self.assertEqual(repr(inferer), "VQVAETransformerInferer()")
        self.assertEqual(len(inferer.state_dict()), 0)

    def test_begin_token_is_the_likeliest(self):
        stage = VQVAE(
            2,
            1,
            1,
            channels=(4,),
            num_res_channels=(4,),
            num_res_layers=1,
            num_embeddings=4,
            embedding_dim=4,
            downsample_parameters=((2, 4, 1, 1),),
            upsample_parameters=((2, 4, 1, 1, 0),),
        ).eval()
        net = DecoderOnlyTransformer(5, 4, 8, 1, 2).eval()
        with torch.no_grad():
            net.to_logits.bias[4] = 100.0
        image = VQVAETransformerInferer().sample(
            (2, 2),
            torch.full((1, 1), 4),
            stage,
            net,
            Ordering(OrderingType.RASTER_SCAN.value, 2, (1, 2, 2)),
            top_k=1,
            verbose=False,
        )
        self.assertEqual(image.shape, (1, 1, 4, 4))


if __name__ == "__main__":
    unittest.main()
