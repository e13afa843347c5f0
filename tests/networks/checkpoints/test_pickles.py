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

"""Pickles that are decoded: to the same as pickle and torch.load make of them, and never run."""

from __future__ import annotations

import collections
import io
import pickle
import random
import unittest
import zipfile
from typing import Any
from unittest import mock

import torch
import torch.nn as nn
from parameterized import parameterized

from monai.data import MetaTensor
from monai.networks.checkpoints import read_checkpoint, untrusted
from monai.networks.checkpoints.file_values import Unread, fetched
from monai.networks.checkpoints.pickles import Known, Record, decode
from monai.networks.checkpoints.read import open_checkpoint
from monai.networks.checkpoints.stand_ins import StandIn, known_stand_in
from monai.networks.checkpoints.tensors import Claims, Odd, Tensors
from monai.networks.checkpoints.untrusted import CheckpointRefused
from tests.networks.checkpoints.file_case import FileCase

torch.set_num_threads(1)
PROTOCOLS = (2, 3, 4, 5)
MUTATIONS = 3000


def decoded(data: bytes, find: Any = known_stand_in, load: Any = None) -> Any:
    return decode("a.pt", memoryview(data), find, load)[0]


def random_value(draw: random.Random, depth: int = 3) -> Any:
    """Anything that a pickle holds without a class."""
    plain = [
        None,
        draw.random() < 0.5,
        draw.randrange(-(1 << draw.choice([3, 8, 16, 31, 32, 63, 64, 200])), 1 << 70),
        draw.uniform(-1e9, 1e9),
        "".join(draw.choice("aé\n\0語\ud800") for _ in range(draw.choice([0, 3, 300]))),
        bytes(draw.randrange(256) for _ in range(draw.choice([0, 3, 300]))),
    ]
    if not depth:
        return draw.choice(plain)
    inner = [random_value(draw, depth - 1) for _ in range(draw.randrange(5))]
    keys = ["a", 3, 2.5, None, b"k", ("t", 1)]
    return draw.choice([*plain, inner, tuple(inner), dict(zip(keys, inner)), [inner, inner]])


class TestValues(unittest.TestCase):
    @parameterized.expand([(protocol,) for protocol in PROTOCOLS])
    def test_as_pickle_reads_them(self, protocol):
        draw = random.Random(protocol)
        for _ in range(300):
            value = random_value(draw)
            self.assertEqual(decoded(pickle.dumps(value, protocol)), value)

    @parameterized.expand([(protocol,) for protocol in PROTOCOLS])
    def test_collections(self, protocol):
        content = collections.OrderedDict(a=collections.Counter("aab"), b={1, 2}, c=frozenset([3]), d=bytearray(b"x"))
        found = decoded(pickle.dumps(content, protocol))
        self.assertEqual(list(found), ["a", "b", "c", "d"])
        self.assertEqual((found["a"], sorted(found["b"])), ({"a": 2, "b": 1}, [1, 2]))

    def test_one_object_is_one_object(self):
        shared = ["x"]
        content: list = [shared, shared]
        content.append(content)
        found = decoded(pickle.dumps(content))
        self.assertIs(found[0], found[1])
        self.assertIs(found[2], found)

    def test_several_in_a_row(self):
        data = pickle.dumps(1) + pickle.dumps("two")
        first, end = decode("a.pt", memoryview(data), known_stand_in)
        self.assertEqual((first, decode("a.pt", memoryview(data), known_stand_in, start=end)), (1, ("two", len(data))))

    def test_versions_of_modules(self):
        state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
        found = decoded(pickle.dumps(state.fromkeys(state)).replace(b"x", b"x"))
        self.assertIsInstance(found, Record)
        data = pickle.dumps(collections.OrderedDict(a=1))
        record = Record()
        written = {"": {"version": 2, "code": [1], "used": True}, 3: {}, "0": "x", "1": {"version": "2"}}
        record.take_state({"_metadata": written, "other": 1})
        self.assertEqual(record._metadata, {"": {"version": 2, "used": True}, "1": {}})
        self.assertFalse(hasattr(decoded(data), "_metadata"))


class TestCalls(unittest.TestCase):
    def test_nothing_is_called_but_what_is_known(self):
        class Trap:
            def __reduce__(self):
                return (mock.sentinel.call, ())

        calls: list[Any] = []
        data = pickle.dumps([StandIn]).replace(b"StandIn", b"StandIn")
        self.assertIs(decoded(data, lambda name: calls.append(name))[0], None)
        self.assertEqual(calls, ["monai.networks.checkpoints.stand_ins.StandIn"])

    @parameterized.expand(
        [
            ("value", b"\x80\x02X\x01\0\0\0a)R."),
            ("class", b"\x80\x02cbuiltins\nobject\n)R)R."),
            ("no_arguments", b"\x80\x02ccollections\nOrderedDict\nNR."),
            ("state_of_a_value", b"\x80\x02X\x01\0\0\0aNb."),
            ("state_of_a_dictionary", b"\x80\x02}Nb."),
            ("extension", b"\x80\x02\x82\x01."),
            ("instance", b"\x80\x02(cos\nsystem\no."),
            ("old_instance", b"\x80\x02(ios\nsystem\n."),
            ("text_id", b"\x80\x02Pstorage\n."),
            ("id_without_storages", b"\x80\x02X\x01\0\0\0aQ."),
            ("buffer", b"\x80\x05\x97."),
            ("protocol_0", b"I01\n."),
        ]
    )
    def test_refused(self, _, data):
        with self.assertRaisesRegex(CheckpointRefused, r"^a\.pt is damaged \(.*\): fetch it again\.$"):
            decoded(data)

    def test_tensors_take_no_state(self):
        """Tensor.__setstate__ would take storages, sizes and hooks from the file."""
        tensor = torch.ones(2)
        with self.assertRaisesRegex(CheckpointRefused, "is given a state"):
            decoded(b"\x80\x02cx\ny\n)R}b.", lambda name: Known(name, lambda: tensor))

    def test_names_of_python_2(self):
        names: list[str] = []
        decoded(b"\x80\x02c__builtin__\nset\nc__builtin__\nxrange\ncUserDict\nUserDict\n.", names.append)
        self.assertEqual(names, ["builtins.set", "builtins.range", "collections.UserDict"])


class TestLimits(unittest.TestCase):
    """Each of these takes python's own pickle, or torch's, forever, or all memory."""

    def refused(self, data: bytes, pattern: str = "is damaged") -> None:
        with self.assertRaisesRegex(CheckpointRefused, pattern):
            decoded(data)

    def test_keys_that_take_long_to_hash(self):
        """(((), ()), ((), ())), ... doubles at each step; its hash looks at all of it."""
        self.refused(b"\x80\x02})" + b"q\0h\0\x86" * 60 + b"Ns.", "key that no checkpoint needs")

    def test_keys_that_collide(self):
        prime = (1 << 61) - 1
        entries = b"".join(pickle.dumps(prime * i, 2)[2:-1] + b"N" for i in range(1, 2000))
        self.refused(b"\x80\x02}(" + entries + b"u.", "key that no checkpoint needs")

    @parameterized.expand([(b"r\xff\xff\xff\x7f",), (b"r\xff\xff\xff\xff",)])
    def test_far_places_of_the_memo(self, operation):
        self.assertEqual(decoded(b"\x80\x02N" + operation + b"."), None)

    @parameterized.expand(
        [
            ("text", b"X\xff\xff\xff\xff"),
            ("long_text", b"\x8d" + b"\xff" * 8),
            ("bytes", b"\x8e" + b"\xff" * 8),
            ("bytearray", b"\x96" + b"\xff" * 8),
            ("integer", b"\x8b\xff\xff\xff\x7f"),
            ("frame", b"\x95" + b"\xff" * 7),
            ("name", b"c" + b"a" * 5000),
        ]
    )
    def test_lengths_that_are_lies(self, _, operation):
        self.refused(b"\x80\x05" + operation + b"abc.")

    def test_many_steps(self):
        with mock.patch.object(untrusted, "MAX_STEPS", 1000):
            self.refused(b"\x80\x02" + b"N0" * 1000 + b"N.", "in more than 1,000 steps")

    def test_many_copies(self):
        """A call copies a large list that is in the file once."""
        with mock.patch.object(untrusted, "MAX_KEYS", 1000):
            call = b"ccollections\nOrderedDict\nh\0\x85R0"
            self.refused(b"\x80\x02](" + b"N" * 400 + b"eq\0" + call * 3 + b".", "more than 1,000 names|damaged")

    def test_deep(self):
        depth = 200_000
        found = decoded(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")
        self.assertIsInstance(found[0][0][0], list)

    @parameterized.expand([(seed,) for seed in range(4)])
    def test_mutations(self, seed):
        """Whatever becomes of a pickle, the error is ours, and nothing but stand-ins comes out."""
        draw = random.Random(seed)
        buffer = io.BytesIO()
        torch.save({"a": torch.ones(3, 4), "b": [1, "x", (2.5, None)]}, buffer, _use_new_zipfile_serialization=False)
        data = buffer.getvalue()[:600] if seed % 2 else pickle.dumps([random_value(draw, 4) for _ in range(5)], 4)
        for _ in range(MUTATIONS):
            broken = bytearray(data)
            for _ in range(draw.randrange(1, 4)):
                place = draw.randrange(len(broken))
                if draw.random() < 0.5:
                    broken[place] = draw.randrange(256)
                else:
                    broken[place:place] = broken[draw.randrange(len(broken)) :][: draw.randrange(20)]
            tensors = Tensors("a.pt", Claims("a.pt", 100), lambda key, dtype, size: torch.UntypedStorage(100))
            try:
                decode("a.pt", memoryview(bytes(broken)), tensors.find, tensors.load)
            except CheckpointRefused as error:
                self.assertTrue(str(error).startswith("a.pt "), error)


def contents() -> dict[str, Any]:
    base = torch.arange(24.0).reshape(4, 6)
    types = [
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
    ]
    types += [torch.uint8, torch.complex64, torch.complex128]
    new = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]
    return {
        "types": {str(dtype): base.to(dtype) for dtype in types},
        "new types": {str(dtype): base.to(dtype) for dtype in new},
        "views": [base, base.t(), base[1:3, ::2], base[0, 0], base[0:0], base.expand(2, 4, 6), base[:, :0]],
        "scalars": [torch.tensor(1.5), torch.tensor(3), torch.tensor(True)],
        "parameter": nn.Parameter(base.clone()),
        "buffer": nn.Buffer(base.clone()),
        "gradient": base.clone().requires_grad_(),
        "attribute": MetaTensor(base),
        "channels": torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "network": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict(),
        "size": base.shape,
        "plain": [1, "x", None, 2.5, {"k": (1, 2)}],
    }


class TestTensors(FileCase):
    """The same as torch.load(weights_only=False)."""

    def assert_equal(self, found: Any, expected: Any) -> None:
        if torch.is_tensor(expected):
            found = fetched(found)
            expected = expected.detach().as_subclass(torch.Tensor)
            self.assertEqual(
                (found.shape, found.stride(), found.dtype), (expected.shape, expected.stride(), expected.dtype)
            )
            raw = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (found, expected)]
            self.assertTrue(torch.equal(*raw))
        elif isinstance(expected, dict):
            self.assertEqual(list(found), list(expected))
            for key, value in expected.items():
                self.assert_equal(found[key], value)
        elif isinstance(expected, (list, tuple)):
            self.assertEqual(len(found), len(expected))
            for one, other in zip(found, expected):
                self.assert_equal(one, other)
        else:
            self.assertEqual(found, expected)

    @parameterized.expand([(name, is_zip) for name in contents() for is_zip in (True, name == "new types")])
    def test_as_torch_loads_them(self, name, is_zip):
        torch.save(contents()[name], self.path, _use_new_zipfile_serialization=is_zip)
        expected = torch.load(self.path, weights_only=False)
        found = open_checkpoint(self.path).tree
        self.assert_equal(found, expected)
        if hasattr(expected, "_metadata"):
            self.assertEqual(found._metadata, expected._metadata)

    @parameterized.expand([(True,), (False,)])
    def test_shared_memory_stays_shared(self, is_zip):
        base = torch.zeros(4)
        torch.save({"a": base, "b": base[1:]}, self.path, _use_new_zipfile_serialization=is_zip)
        found = {key: fetched(value) for key, value in open_checkpoint(self.path).tree.items()}
        found["a"][1] = 7
        self.assertEqual(float(found["b"][0]), 7)

    def test_values_at_odd_places(self):
        """A zip program, packing again, puts them anywhere: they are copied when they are looked at, and not before."""
        torch.save({"a": torch.arange(6.0), "b": torch.arange(6, dtype=torch.uint8)}, self.path)
        for offset in range(1, 5):
            moved = self.folder / f"{offset}.pt"
            with zipfile.ZipFile(self.path) as old, zipfile.ZipFile(moved, "w") as new:
                for number, name in enumerate(old.namelist()):
                    new.writestr(name, old.read(name))
                    new.writestr(f"archive/{'x' * offset}{number:02}", b"")
            found = open_checkpoint(moved).tree
            self.assertNotIsInstance(found["b"], Unread)
            self.assertTrue(torch.equal(fetched(found["a"]), torch.arange(6.0)))
            self.assertEqual(fetched(found["a"]).data_ptr() % 4, 0)
            self.assertTrue(torch.equal(read_checkpoint(moved).state_dict["a"], torch.arange(6.0)))

    def test_the_other_byte_order(self):
        """As torch writes it on a machine whose numbers begin with their largest byte."""
        values = torch.tensor([1.0, 256.0, -3.5])
        torch.save({"a": values}, self.path)
        turned = self.folder / "turned.pt"
        with zipfile.ZipFile(self.path) as old, zipfile.ZipFile(turned, "w") as new:
            for name in old.namelist():
                data = old.read(name)
                data = b"big" if name.endswith("byteorder") else data
                new.writestr(name, values.numpy().astype(">f4").tobytes() if name.endswith("data/0") else data)
        self.assertTrue(torch.equal(torch.load(turned)["a"], values))
        self.assertTrue(torch.equal(open_checkpoint(turned).tree["a"], values))

    @parameterized.expand(
        [
            ("sparse", torch.eye(3).to_sparse(), "sparse"),
            ("csr", torch.eye(3).to_sparse_csr(), "sparse"),
            ("quantized", torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "quantized"),
            ("nested", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
            ("meta", torch.ones(2, 2, device="meta"), "meta"),
            ("conjugated", torch.ones(2, 2, dtype=torch.complex64).conj(), "conjugated"),
        ]
    )
    def test_odd_ones(self, _, tensor, kind):
        torch.save([tensor], self.path)
        (found,) = open_checkpoint(self.path).tree
        self.assertIsInstance(found, Odd)
        self.assertIn(kind, found.kind)


if __name__ == "__main__":
    unittest.main()
