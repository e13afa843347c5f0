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

"""Our safetensors files against the package of that name, the referee of the format, both ways."""

from __future__ import annotations

import json
import random
import struct
import unittest
from unittest import mock

import safetensors
import safetensors.torch
import torch
from parameterized import parameterized

from monai.networks.checkpoints import read_checkpoint, untrusted
from monai.networks.checkpoints.file_values import fetched
from monai.networks.checkpoints.safetensors import DTYPES, read_safetensors, write_safetensors
from tests.networks.checkpoints.file_case import FileCase

torch.set_num_threads(1)


def samples() -> dict[str, torch.Tensor]:
    """A tensor of each type, of odd lengths, beside scalars, empty ones and views."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, dtype in DTYPES.items():
        raw = torch.randint(0, 256, (3, 5 * dtype.itemsize), dtype=torch.uint8, generator=generator)
        tensors[f"every.{name}"] = (raw % 2 if name == "BOOL" else raw).view(dtype)
    base = torch.randn(6, 4, generator=generator)
    return tensors | {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "transposed": base.t(),
        "a part": base[1:3, ::2],
        "repeated": base[0].expand(3, 4),
        "conjugated": torch.complex(base, base).conj(),
        "with ünicode": base,
        "parameter": torch.nn.Parameter(base),
    }


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def file_bytes(header, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, shape: list | None = None, dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


# name: content of a file, and what the error says
BROKEN = {
    "header_cut_off": (file_bytes({"a": entry(0, 4)}, length=500), "header has 500 bytes, of which"),
    "no_json": (file_bytes(b"{'a': 1}"), "header is no JSON"),
    "no_utf8": (file_bytes(b'{"\xff": 1}'), "header is no JSON"),
    "deep_json": (file_bytes(b'{"a":' + b"[" * 100_000), "header is no JSON"),
    "name_twice": (file_bytes(b'{"a":{},"a":{}}'), "a name occurs twice"),
    "no_dtype": (file_bytes({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"\1"), "'a' lacks dtype"),
    "not_an_object": (file_bytes({"a": [0, 1]}, b"\1"), "'a' lacks dtype"),
    "negative_size": (file_bytes({"a": entry(0, 4, [-1, -4])}, bytes(4)), r"'a' has shape \[-1, -4\]"),
    "a_fraction": (file_bytes({"a": entry(0, 4, [4.0])}, bytes(4)), r"'a' has shape \[4.0\]"),
    "a_flag": (file_bytes({"a": entry(0, 1, [True])}, bytes(1)), r"'a' has shape \[True\]"),
    "huge_size": (file_bytes({"a": entry(0, 4, [1 << 70])}, bytes(4)), "'a' has shape"),
    "sizes_that_overflow": (file_bytes({"a": entry(0, 0, [1 << 32, 1 << 32])}), "takes 18446744073709551616 bytes"),
    "end_before_begin": (file_bytes({"a": entry(0, 4) | {"data_offsets": [4, 0]}}, bytes(4)), r"data_offsets \[4, 0\]"),
    "three_offsets": (file_bytes({"a": entry(0, 4) | {"data_offsets": [0, 2, 4]}}, bytes(4)), "data_offsets"),
    "wrong_size": (file_bytes({"a": entry(0, 4, [4], "F32")}, bytes(4)), r"takes 16 bytes, not \[0, 4\]"),
    "hole": (file_bytes({"a": entry(0, 2), "b": entry(3, 4)}, bytes(4)), "'b' at 3:4 leaves a hole"),
    "hole_at_the_start": (file_bytes({"a": entry(1, 4)}, bytes(4)), "'a' at 1:4 leaves a hole"),
    "overlap": (file_bytes({"a": entry(0, 3), "b": entry(2, 4)}, bytes(4)), "'b' at 2:4 overlaps"),
    "same_place": (file_bytes({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "'b' at 0:4 overlaps"),
    "beyond_the_end": (file_bytes({"a": entry(0, 9)}, bytes(4)), "tensors take 9 bytes, of which 4 are there"),
    "bytes_left_over": (file_bytes({"a": entry(0, 4)}, bytes(9)), "tensors take 4 bytes, of which 9 are there"),
    "numbers_as_metadata": (file_bytes({"__metadata__": {"epoch": 3}}), "something else than text"),
    "metadata_as_text": (file_bytes({"__metadata__": "x"}), "something else than text"),
}


class TestAgainstThePackage(FileCase):
    def test_what_we_write_it_reads(self):
        tensors = samples()
        write_safetensors(self.path, tensors, {"format": "pt", "by": "ünit"})
        with safetensors.safe_open(self.path, "pt") as file:
            self.assertEqual(file.metadata(), {"format": "pt", "by": "ünit"})
            self.assertEqual(set(file.keys()), set(tensors))
            for key, tensor in tensors.items():
                piece = file.get_slice(key)
                self.assertEqual(piece.get_shape(), list(tensor.shape), key)
                self.assertEqual(DTYPES[piece.get_dtype()], tensor.dtype, key)
        for key, value in safetensors.deserialize(self.path.read_bytes()):
            self.assertEqual(bytes(value["data"]), raw_bytes(tensors[key]), key)

    def test_what_it_writes_we_read(self):
        """Each type that the package knows, by the bytes, and torch's types through its own save_file."""
        tensors = samples()
        plain = {key: tensor.detach().resolve_conj().contiguous() for key, tensor in tensors.items()}
        specs = {key: safetensors.TensorSpec(**self.spec(tensor)) for key, tensor in plain.items()}
        content = safetensors.serialize(specs, {"a": "b"})
        self.path.write_bytes(content)
        found, metadata = read_safetensors(self.path)
        self.assertEqual(metadata, {"a": "b"})
        self.assertEqual(set(found), set(tensors))
        for key, tensor in tensors.items():
            self.assertEqual((found[key].dtype, found[key].shape), (tensor.dtype, tensor.shape), key)
            self.assertEqual(raw_bytes(fetched(found[key])), raw_bytes(tensor), key)

    @staticmethod
    def spec(tensor: torch.Tensor) -> dict:
        name = str(tensor.dtype).removeprefix("torch.")
        return {"dtype": name, "shape": list(tensor.shape), "data_ptr": tensor.data_ptr(), "data_len": tensor.nbytes}

    def test_both_agree_on_a_network(self):
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3)).bfloat16()
        safetensors.torch.save_file(net.state_dict(), self.path)
        found = read_checkpoint(self.path)
        self.assertEqual((found.container, found.wrappers), ("safetensors", ()))
        for key, value in safetensors.torch.load_file(self.path).items():
            self.assertTrue(torch.equal(found.state_dict[key], value), key)
        copy = self.path.with_name("copy")
        write_safetensors(copy, found.state_dict)
        for key, value in safetensors.torch.load_file(copy).items():
            self.assertTrue(torch.equal(net.state_dict()[key], value), key)

    def test_nothing_in_a_file(self):
        write_safetensors(self.path, {})
        self.assertEqual(safetensors.torch.load_file(self.path), {})
        self.assertEqual(read_safetensors(self.path), ({}, {}))

    @parameterized.expand([(name,) for name in BROKEN])
    def test_broken_files(self, name):
        content, pattern = BROKEN[name]
        self.path.write_bytes(content)
        with self.assertRaises(safetensors.SafetensorError):
            safetensors.torch.load_file(self.path)
        with self.assertRaisesRegex(ValueError, f"{self.path} is a damaged safetensors file: .*{pattern}"):
            read_safetensors(self.path)

    def test_truncated(self):
        """At every byte both refuse."""
        write_safetensors(self.path, {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.uint8)})
        content = self.path.read_bytes()
        for length in range(len(content)):
            self.path.write_bytes(content[:length])
            with self.assertRaises(safetensors.SafetensorError):
                safetensors.torch.load_file(self.path)
            with self.assertRaises(ValueError):
                read_safetensors(self.path)


class TestFuzz(FileCase):
    """What the package refuses we refuse; what we refuse beyond that is nothing that torch can take."""

    ONLY_OURS = "has dtype|dimensions, more than|which torch does not take"

    @parameterized.expand([(seed,) for seed in range(6)])
    def test_mutations(self, seed):
        draw = random.Random(seed)
        outcomes = {"both read": 0, "both refuse": 0}
        for number in range(500):
            content = self.mutated(draw, by_bytes=seed % 2 == 0)
            self.path.write_bytes(content)
            try:
                theirs = {key: bytes(value["data"]) for key, value in safetensors.deserialize(content)}
            except (safetensors.SafetensorError, UnicodeDecodeError):
                theirs = None
            try:
                ours, _ = read_safetensors(self.path)
            except ValueError as error:
                if theirs is not None:
                    self.assertRegex(str(error), self.ONLY_OURS, content)
                outcomes["both refuse"] += 1
                continue
            self.assertIsNotNone(theirs, f"mutation {number}: {content!r}")
            self.assertEqual({key: raw_bytes(fetched(value)) for key, value in ours.items()}, theirs)
            outcomes["both read"] += 1
        self.assertGreater(min(outcomes.values()), 10, outcomes)

    def mutated(self, draw: random.Random, by_bytes: bool) -> bytes:
        """A small file in which some bytes, or some values of the header, are others."""
        header: dict = {
            "__metadata__": {"a": "b"},
            "x": entry(0, 8, [2, 1], "F32"),
            "y": entry(8, 11),
            "z": entry(11, 11),
        }
        data = bytes(range(11))
        if by_bytes:
            content = bytearray(file_bytes(header, data))
            for _ in range(draw.randrange(1, 3)):
                content[draw.randrange(len(content))] = draw.choice(b'0123456789,:[]{}" \\-.eEtrufalsn\0\xff')
            return bytes(content)
        values = [0, 1, 2, 3, 8, 11, 12, -1, 1.0, True, None, "1", [], {}, 1 << 31, 1 << 62, 1 << 63, 1 << 64]
        for _ in range(draw.randrange(0, 3)):
            fields = header[draw.choice("xyz")]
            name = draw.choice(list(fields) or ["shape"])
            if isinstance(fields.get(name), list) and fields[name] and draw.random() < 0.8:
                fields[name][draw.randrange(len(fields[name]))] = draw.choice(values)
            elif draw.random() < 0.5:
                fields[name] = draw.choice([*values, "F64", "U8", "I16", "BOOL", "F4"])
            else:
                fields.pop(name, None)
        if draw.random() < 0.2:
            header["z"] = draw.choice([None, 3, [], {}, entry(0, 0, [0, 1 << 40])])
        return file_bytes(header, data + b"x" * draw.choice([0, 0, 0, 1]))


class TestReading(FileCase):
    def test_types_that_torch_lacks(self):
        self.path.write_bytes(file_bytes({"a": entry(0, 4, [8], "F4")}, bytes(4)))
        with self.assertRaisesRegex(ValueError, "'a' has dtype 'F4', torch .* has BOOL, U8"):
            read_safetensors(self.path)

    def test_limits(self):
        self.path.write_bytes(file_bytes(b"{}", length=200_000_000))
        with self.assertRaisesRegex(ValueError, "claims a safetensors header of 200,000,000 bytes; at most 16,000,000"):
            read_safetensors(self.path)
        self.path.unlink()
        write_safetensors(self.path, {str(i): torch.ones(1) for i in range(5)})
        with (
            mock.patch.object(untrusted, "MAX_KEYS", 4),
            self.assertRaisesRegex(ValueError, "5 names, more than the 4"),
        ):
            read_safetensors(self.path)

    def test_tensors_are_views_on_the_mapping(self):
        write_safetensors(self.path, {"a": torch.zeros(1000), "b": torch.zeros(7, dtype=torch.uint8)})
        found, _ = read_safetensors(self.path)
        with self.path.open("r+b") as file:  # who looks at the file later, sees what it holds then
            file.seek(-4007, 2)
            file.write(struct.pack("<f", 3.0))
        self.assertEqual(found["a"][0], 3.0)

    def test_writing_to_a_tensor_leaves_the_file(self):
        write_safetensors(self.path, {"a": torch.zeros(1000)})
        before = self.path.read_bytes()
        found, _ = read_safetensors(self.path)
        found["a"].fill_(7)
        self.assertEqual(self.path.read_bytes(), before)

    def test_tensors_at_odd_places_are_copied(self):
        values = torch.arange(6, dtype=torch.float64)
        header = {"odd": entry(0, 1), "wide": entry(1, 49, [2, 3], "F64")}
        self.path.write_bytes(file_bytes(header, b"\1" + raw_bytes(values)))
        for wide in (fetched(read_safetensors(self.path)[0]["wide"]), read_checkpoint(self.path).state_dict["wide"]):
            self.assertTrue(torch.equal(wide, values.view(2, 3)))
            self.assertEqual(wide.data_ptr() % 8, 0)


class TestWriting(FileCase):
    def test_places_suit_the_types(self):
        write_safetensors(self.path, samples())
        start = 8 + int.from_bytes(self.path.read_bytes()[:8], "little")
        header = json.loads(self.path.read_bytes()[8:start])
        for key, value in header.items():
            self.assertEqual((start + value["data_offsets"][0]) % DTYPES[value["dtype"]].itemsize, 0, key)

    def test_progress(self):
        pieces: list[int] = []
        write_safetensors(self.path, {"a": torch.zeros(20 << 20, dtype=torch.uint8)}, progress=pieces.append)
        self.assertEqual(sum(pieces), self.path.stat().st_size)
        self.assertGreater(len(pieces), 2)

    def test_an_existing_file_is_left(self):
        """It may be the one that the tensors are mapped from: cutting it off would end the process."""
        write_safetensors(self.path, {"a": torch.ones(1000)})
        found, _ = read_safetensors(self.path)
        with self.assertRaises(FileExistsError):
            write_safetensors(self.path, found)
        self.assertTrue(torch.equal(found["a"], torch.ones(1000)))

    @parameterized.expand([("0.75", 0.75), ("large", None)])
    def test_scale_factor(self, text, expected):
        """In the metadata, as the converter writes it."""
        write_safetensors(self.path, {"a.weight": torch.ones(2, 2)}, {"scale_factor": text})
        if expected is None:
            with self.assertRaisesRegex(ValueError, "scale_factor must be a number.*'large'"):
                read_checkpoint(self.path)
        else:
            self.assertEqual(read_checkpoint(self.path).scale_factor, expected)

    @parameterized.expand(
        [
            ("number", {"a": 1.5}, None, TypeError, "'a' is a float, not a tensor"),
            ("key", {3: torch.ones(1)}, None, TypeError, "a tensor's name must be text, got 3"),
            ("metadata", {"a": torch.ones(1)}, {"epoch": 3}, TypeError, "metadata must be text, got 'epoch': 3"),
            ("name", {"__metadata__": torch.ones(1)}, None, ValueError, "no tensor may be called"),
            ("sparse", {"a": torch.ones(2, 2).to_sparse()}, None, ValueError, "'a' .*sparse.* has no form"),
            ("meta", {"a": torch.ones(2, device="meta")}, None, ValueError, "'a' .*meta.* has no form"),
            ("wide", {"a": torch.ones(2, dtype=torch.complex128)}, None, ValueError, "'a' .*complex128.* has no form"),
        ]
    )
    def test_refusals(self, _, tensors, metadata, error, pattern):
        with self.assertRaisesRegex(error, pattern):
            write_safetensors(self.path, tensors, metadata)
        self.assertFalse(self.path.exists())


if __name__ == "__main__":
    unittest.main()
