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

"""VQVAETransformerInferer beside the release."""

from __future__ import annotations

import io
import unittest
from contextlib import redirect_stderr
from itertools import product

import torch
from parameterized import parameterized

from tests.differences import max_difference
from tests.inferers.sampler import ENTRIES
from tests.inferers.test_vqvae_transformer import context, normal, sampler
from tests.parity.release import ReleaseError, release_run

torch.set_num_threads(1)

TARGET = "tests.inferers.sampler.Sampler"

# dimensions, context, longest sequence: longer than the latent's, and shorter, so that the window slides
CASES = list(product((2, 3), (False, True), (70, 7)))


class TestEqualsTheRelease(unittest.TestCase):
    @parameterized.expand([(case, options) for case in CASES for options in ({}, {"top_k": 3, "temperature": 0.7})])
    def test_same_samples(self, case, options):
        net, kwargs = sampler(*case)
        call = {"context": context(case), "verbose": False, **options}
        expected = release_run(TARGET, kwargs, state=net.state_dict(), call="sample", call_kwargs=call, seed=5)
        torch.manual_seed(5)
        self.assertLessEqual(max_difference(net.sample(**call), expected), 1e-5)

    @parameterized.expand([(case,) for case in CASES])
    def test_same_greedy_samples(self, case):
        """The release draws from the likeliest token alone; a bias keeps the begin token from being that."""
        net, kwargs = sampler(*case)
        with torch.no_grad():
            net.transformer.to_logits.bias[ENTRIES] = -1e3
        call = {"context": context(case), "verbose": False, "top_k": 1}
        expected = release_run(TARGET, kwargs, state=net.state_dict(), call="sample", call_kwargs=call)
        self.assertLessEqual(max_difference(net.sample(**call), expected), 1e-5)

    @parameterized.expand([(case,) for case in CASES])
    def test_same_likelihoods(self, case):
        net, kwargs = sampler(*case)
        images = normal(2, 1, *[8] * case[0])
        for options in ({}, {"resample_latent_likelihoods": True, "verbose": True}):
            call = {"images": images, "context": context(case), **options}
            expected = release_run(TARGET, kwargs, state=net.state_dict(), call="likelihood", call_kwargs=call)
            with redirect_stderr(io.StringIO()):
                self.assertLessEqual(max_difference(net.likelihood(**call), expected), 1e-4)

    @parameterized.expand([(case,) for case in CASES])
    def test_same_predictions(self, case):
        net, kwargs = sampler(*case)
        call = {"images": normal(2, 1, *[8] * case[0]), "context": context(case)}
        logits, targets, size = release_run(
            TARGET, kwargs, state=net.state_dict(), call="predict", call_kwargs=call, seed=3
        )
        torch.manual_seed(3)
        ours = net.predict(**call)
        self.assertLessEqual(max_difference(ours[0], logits), 1e-4)
        self.assertTrue(torch.equal(ours[1], targets))
        self.assertEqual(tuple(ours[2]), tuple(size))


class TestInferer(unittest.TestCase):
    def test_the_begin_token_may_be_the_likeliest(self):
        """With top_k=1 the release has nothing left to draw from."""
        net, kwargs = sampler(2, False, 70)
        with torch.no_grad():
            net.transformer.to_logits.bias[ENTRIES] = 1e3
        call = {"context": None, "verbose": False, "top_k": 1}
        with self.assertRaisesRegex(ReleaseError, "multinomial|probability"):
            release_run(TARGET, kwargs, state=net.state_dict(), call="sample", call_kwargs=call)
        best = net.sample(**call)
        with torch.no_grad():
            net.transformer.to_logits.bias[ENTRIES] = -1e3
        self.assertTrue(torch.equal(best, net.sample(**call)))

    @parameterized.expand([(True, None), (False, normal(2, 3, 24))])
    def test_a_context_that_is_missing_or_not_used(self, cross, given):
        """As in the release: a network that attends to a context takes its own tokens, another one ignores it."""
        net, kwargs = sampler(2, cross, 70)
        call = {"context": given, "verbose": False}
        expected = release_run(TARGET, kwargs, state=net.state_dict(), call="sample", call_kwargs=call, seed=5)
        torch.manual_seed(5)
        self.assertLessEqual(max_difference(net.sample(**call), expected), 1e-5)

    def test_in_training_mode(self):
        net, kwargs = sampler(2, False, 70)
        call = {"context": None, "verbose": False}
        expected = release_run(TARGET, kwargs, state=net.state_dict(), call="sample", call_kwargs=call, seed=5)
        torch.manual_seed(5)
        net.transformer.train()
        self.assertLessEqual(max_difference(net.sample(**call), expected), 1e-5)


if __name__ == "__main__":
    unittest.main()
