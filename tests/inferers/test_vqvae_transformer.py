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

import io
import unittest
from contextlib import redirect_stderr

import torch
import torch.nn as nn

from monai.inferers import Inferer, VQVAETransformerInferer
from monai.utils import optional_import
from tests.inferers.sampler import Sampler

torch.set_num_threads(1)


def sampler(*case) -> tuple[Sampler, dict]:
    """A sampler with random weights, and its arguments."""
    kwargs = dict(zip(("spatial_dims", "with_cross_attention", "max_seq_len"), case))
    net = Sampler(**kwargs).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net, kwargs


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def context(case) -> torch.Tensor | None:
    return normal(2, 3, 24) if case[1] else None


class TestInferer(unittest.TestCase):
    def test_is_an_inferer_and_a_module(self):
        """The release's never calls the constructor of nn.Module: its repr raises."""
        inferer = VQVAETransformerInferer()
        self.assertIsInstance(inferer, Inferer)
        self.assertIsInstance(inferer, nn.Module)
        self.assertEqual((repr(inferer), dict(inferer.state_dict())), ("VQVAETransformerInferer()", {}))

    @unittest.skipUnless(optional_import("tqdm")[1], "the bar needs tqdm, which MONAI does without")
    def test_progress_bar(self):
        net, _ = sampler(2, False, 70)
        shown = io.StringIO()
        with redirect_stderr(shown):
            net.sample(None, top_k=1)
        self.assertIn("16/16", shown.getvalue())
        with redirect_stderr(silent := io.StringIO()):
            net.sample(None, top_k=1, verbose=False)
        self.assertEqual(silent.getvalue(), "")

    def test_a_transformer_without_cache(self):
        net, _ = sampler(2, False, 70)
        expected = net.sample(None, top_k=1, verbose=False)
        transformer, net.transformer = net.transformer, Plain(net.transformer)
        self.assertTrue(torch.equal(net.sample(None, top_k=1, verbose=False), expected))
        self.assertEqual(net.transformer.lengths, list(range(1, 17)))
        self.assertFalse(any(parameter.grad is not None for parameter in transformer.parameters()))

    def test_ill_mode(self):
        net, _ = sampler(2, False, 70)
        with self.assertRaisesRegex(ValueError, "cubic"):
            net.likelihood(
                normal(2, 1, 8, 8), None, resample_latent_likelihoods=True, resample_interpolation_mode="cubic"
            )


class Plain(nn.Module):
    """A transformer of a user's own: it only has what the release asks for."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer, self.max_seq_len = transformer, transformer.max_seq_len
        self.lengths: list[int] = []

    def forward(self, x, context=None):
        self.lengths.append(x.shape[1])
        return self.transformer(x, context=context)


if __name__ == "__main__":
    unittest.main()
