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

import inspect
import json
import pickle
import unittest
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn as nn
from parameterized import parameterized

from monai.bundle import ConfigParser
from monai.networks.construction import RECORD, bound_arguments, encoded, record_construction, target_of, without_form
from tests.networks.construction_values import VALUES


@record_construction
class Net(nn.Module):
    def __init__(self, channels, act="RELU", norm=nn.LayerNorm, scale=float("nan")):
        super().__init__()
        self.linear = nn.Linear(channels[0], channels[1])

    def forward(self, x):
        return self.linear(x)


class Narrow(Net):
    def __init__(self, width, **kwargs):
        super().__init__([width, 2 * width], **kwargs)


class TestEncoded(unittest.TestCase):
    @parameterized.expand(VALUES)
    def test_parser_gives_it_back(self, value):
        found = ConfigParser({"value": json.loads(json.dumps(encoded(value)))}).get_parsed_content("value")
        self.assertEqual(found, value)
        self.assertIs(type(found), type(value))

    def test_scalars_of_numpy(self):
        self.assertEqual(encoded([np.float32(0.5), np.int64(3), (np.int32(1),)]), [0.5, 3, "$(1,)"])

    @parameterized.expand([(object(),), (float("nan"),), ({1},), (torch.ones(1),), (np.ones(1),), (lambda: 0,)])
    def test_no_form(self, value):
        self.assertEqual([place for place, _ in without_form(encoded({"a": [value]}))], ["a::0"])


class TestRecord(unittest.TestCase):
    def test_by_position_by_name_and_defaults(self):
        defaults = {"norm": {"_target_": "torch.nn.modules.normalization.LayerNorm", "_mode_": "callable"}}
        for net in (Net([1, 2], "GELU"), Net(act="GELU", channels=[1, 2])):
            self.assertEqual(bound_arguments(net), ({"channels": [1, 2], "act": "GELU"}, defaults))

    def test_outermost_class_counts(self):
        self.assertEqual(bound_arguments(Narrow(3, act="GELU"))[0], {"width": 3, "act": "GELU"})
        self.assertEqual(target_of(Narrow), f"{__name__}.Narrow")

    def test_later_changes_of_what_was_passed(self):
        channels = [1, 2]
        net = Net(channels)
        channels.append(3)
        self.assertEqual(bound_arguments(net)[0], {"channels": [1, 2]})

    def test_pickles(self):
        net = Net([1, 2])
        self.assertEqual(bound_arguments(pickle.loads(pickle.dumps(net)))[0], {"channels": [1, 2]})
        self.assertNotIn(b"monai.networks.construction", pickle.dumps(net))
        self.assertNotIn(b"SimpleNamespace", pickle.dumps(net))  # torch.load would have to be told of it
        record = vars(net)[RECORD]
        vars(net)[RECORD] = SimpleNamespace(args=record["args"], kwargs=record["kwargs"])  # of an earlier version
        self.assertEqual(bound_arguments(pickle.loads(pickle.dumps(net)))[0], {"channels": [1, 2]})
        del vars(net)[RECORD]
        with self.assertRaisesRegex(ValueError, "was not recorded.*channels"):
            bound_arguments(pickle.loads(pickle.dumps(net)))

    def test_a_class_inside_of_a_function(self):
        with self.assertRaisesRegex(ValueError, "top of a module"):
            target_of(type("Local", (Net,), {"__qualname__": "f.<locals>.Local"}))

    def test_class_stays_as_it_is(self):
        self.assertIs(record_construction(Narrow), Narrow)
        self.assertEqual(list(inspect.signature(Net).parameters), ["channels", "act", "norm", "scale"])
        self.assertEqual(list(inspect.signature(Narrow).parameters), ["width", "kwargs"])
        self.assertEqual(list(torch.jit.script(Net([1, 2])).state_dict()), ["linear.weight", "linear.bias"])

    def test_signature_of_an_init_that_was_replaced(self):
        with mock.patch.object(Net, "__init__", lambda self, width: None):
            self.assertEqual(list(inspect.signature(Net).parameters), ["width"])
        self.assertEqual(inspect.signature(Net).parameters["act"].default, "RELU")

    @pytest.mark.grid  # the first compilation of a process takes seconds
    def test_built_in_a_compiled_function(self):
        def run(x):
            return Net(channels=[1, 2])(x)

        self.addCleanup(torch.compiler.reset)
        self.assertEqual(torch.compile(run, backend="eager")(torch.ones(3, 1)).shape, (3, 2))

    def test_another_base_gets_the_arguments(self):
        class Base:
            def __new__(cls, *args, **kwargs):
                made = super().__new__(cls)
                made.__dict__["seen"] = (args, kwargs)
                return made

        both = type("Both", (Net, Base), {})
        self.assertEqual(both([1, 2], act="GELU").seen, (([1, 2],), {"act": "GELU"}))


if __name__ == "__main__":
    unittest.main()
