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

"""Safetensors files whose headers lie."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.networks.checkpoints.hostile.case import FINE, Case, header_of, safetensors_file

__all__ = ["safetensors_cases"]

DAMAGED = "is a damaged safetensors file: "
WEIGHT = header_of((1, 1), 0, 4, "F32")


def safetensors_cases() -> Iterator[Case]:
    for name, header, data, pattern in _headers():
        yield Case(f"safetensors, {name}", lambda folder, h=header, d=data: safetensors_file(h, d), pattern)
    yield from _lengths()
    yield from _bombs()
    yield from _names()


def _one(**fields: object) -> dict:
    return {"a.weight": WEIGHT | fields}


def _headers() -> Iterator[tuple[str, object, bytes, str]]:
    four = bytes(4)
    for name, shape in {
        "negative sizes": [-1, -4],
        "a fraction": [1.0],
        "a flag": [True],
        "a text": ["1"],
        "nothing in a shape": [None],
        "a list in a shape": [[1]],
        "a huge size": [1 << 70],
        "a size of 4,300 digits": [10**4299],
        "no shape": None,
        "a number as shape": 1,
        "a dictionary as shape": {"0": 1},
    }.items():
        yield name, _one(shape=shape), four, DAMAGED + "'a.weight' has shape"
    for name, shape in {
        "60,000 dimensions": [2] * 60_000,
        "120,000 dimensions": [(1 << 62) + 1] * 120_000,
        "120,000 dimensions and a zero": [(1 << 62) + 1] * 120_000 + [0],
        "65 dimensions": [1] * 65,
    }.items():
        yield name, _one(shape=shape), four, DAMAGED + "'a.weight' has [0-9,]+ dimensions, more than the 64"
    empty = {"data_offsets": [4, 4]}
    zero = {"a.weight": WEIGHT, "b": WEIGHT | empty | {"shape": [1 << 62, 1 << 62, 0]}}
    yield "a zero that hides a huge size", zero, four, DAMAGED + "'b' has shape .* which torch does not take"
    yield "a product that overflows", _one(shape=[1 << 33, 1 << 33]), four, DAMAGED + "'a.weight' of shape"
    yield "64 huge dimensions", _one(shape=[(1 << 63) - 1] * 64), four, DAMAGED + "'a.weight' of shape of 64 numbers"
    for name, offsets in {
        "places that are reversed": [4, 0],
        "three places": [0, 2, 4],
        "one place": [0],
        "no place": [],
        "negative places": [-4, 0],
        "places of fractions": [0.0, 4.0],
        "a text as places": "0:4",
        "huge places": [0, 1 << 70],
    }.items():
        yield name, _one(data_offsets=offsets), four, DAMAGED + "'a.weight' has shape .* and data_offsets"
    yield "a place behind the end", _one(data_offsets=[8, 12]), four, DAMAGED + ".*leaves a hole before it"
    yield "too few bytes", _one(), b"abc", DAMAGED + "its tensors take 4 bytes, of which 3 are there"
    yield "too many bytes", _one(), bytes(5), DAMAGED + "its tensors take 4 bytes, of which 5 are there"
    yield "a hole", {"a": header_of((2,), 0, 2), "b": header_of((1,), 3, 4)}, four, DAMAGED + "'b' at 3:4 leaves a hole"
    yield "an overlap", {"a": header_of((3,), 0, 3), "b": header_of((2,), 2, 4)}, four, DAMAGED + "'b' at 2:4 overlaps"
    same = {f"a{i}": header_of((4,), 0, 4) for i in range(50)}
    yield "one place for all", same, four, DAMAGED + "'a1' at 0:4 overlaps"
    for name, dtype in {
        "no type": None,
        "a list as type": ["F32"],
        "another type": "F4",
        "a long type": "F" * 100_000,
    }.items():
        yield name, _one(dtype=dtype), four, "'a.weight' has dtype .*: convert it"
    yield "an escape as type", _one(dtype="\x1b[2J"), four, r"has dtype '\\x1b\[2J'"
    for name, value in {"a list": [0, 4], "a number": 3, "nothing": None, "an empty object": {}}.items():
        yield f"{name} as tensor", {"a.weight": value}, four, DAMAGED + "'a.weight' lacks dtype, shape or data_offsets"
    yield "more than a tensor needs", _one(more=[1, {"x": None}]), four, FINE
    for name, metadata in {"numbers": {"epoch": 3}, "a text": "x", "a list": ["x"], "an object": {"a": {}}}.items():
        yield f"{name} as metadata", {"__metadata__": metadata, **_one()}, four, DAMAGED + "__metadata__ maps"
    factor = {"__metadata__": {"scale_factor": "\x1b[2J" * 10_000}, **_one()}
    yield "an escape as scale factor", factor, four, r"scale_factor must be a number.*\\x1b"
    yield "metadata alone", {"__metadata__": {}}, b"", "holds no network, but an empty dictionary"
    for name, raw in {
        "no JSON": b"{'a': 1}",
        "half an object": b'{"a": {"dtype"',
        "a comma too many": b'{"a": {},}',
        "NaN": json.dumps(_one()).encode().replace(b"[1, 1]", b"[NaN, 1]"),
        "infinity": json.dumps(_one()).encode().replace(b"[1, 1]", b"[-Infinity]"),
        "1e400": json.dumps(_one()).encode().replace(b"[1, 1]", b"[1e400]"),
        "a number of 5,000 digits": json.dumps(_one()).encode().replace(b"[1, 1]", b"[" + b"9" * 5000 + b"]"),
        "no UTF-8": b'{"\xff": 1}',
        "two objects": b"{}{}",
        "a name twice": b'{"a": {}, "a": {}}',
        "a field twice": json.dumps(_one()).encode().replace(b'"shape"', b'"dtype": "U8", "shape"'),
        "a deep list": b'{"a": ' + b"[" * 500_000,
        "a deep object": b'{"a":' * 200_000,
        "a control character": b'{"a\x01": 1}',
    }.items():
        yield name, raw, four, DAMAGED


def _lengths() -> Iterator[Case]:
    header = json.dumps(_one()).encode()
    for name, length, pattern in (
        ("0", 0, DAMAGED + "its header is no JSON"),
        ("1", 1, DAMAGED + "its header is no JSON"),
        ("one more", len(header) + 5, DAMAGED + "its header has [0-9,]+ bytes, of which"),
        ("one less", len(header) - 1, DAMAGED + "its header is no JSON"),
        ("15 million", 15_000_000, DAMAGED + "its header has 15,000,000 bytes, of which"),
        ("2^40", 1 << 40, "claims a safetensors header of 1,099,511,627,776 bytes; at most"),
        ("2^47", (1 << 48) - 1, "claims a safetensors header of"),
        ("2^64", (1 << 64) - 1, "is no checkpoint known here"),
    ):
        build = lambda folder, n=length: safetensors_file(header, bytes(4), n)  # noqa: E731
        yield Case(f"safetensors, a header of {name}", build, pattern)
    for cut in (1, 4, 8, 9, 20, len(header) + 8):
        cause = "is a damaged|is no checkpoint|is text|is without content"
        yield Case(f"safetensors, {cut} bytes", lambda folder, n=cut: safetensors_file(header)[:n], cause)


def _bombs() -> Iterator[Case]:
    def keys(count: int) -> bytes:
        return json.dumps({f"blocks.{i}": header_of((0,), 0, 0) for i in range(count)}, separators=(",", ":")).encode()

    for name, make, pattern in (
        ("70,000 keys", lambda: keys(70_000), "70,000 names, more than the 60,000"),
        ("many more keys", lambda: keys(300_000), "claims a safetensors header of"),
        (
            "a million lists",
            lambda: b'{"a":[' + b"[]," * 2_000_000 + b"[]]}",
            "describes more than the 60,000 tensors",
        ),
        ("a million objects", lambda: b'{"a":[' + b"{}," * 2_000_000 + b"{}]}", "describes more than the 60,000"),
        ("a million numbers", lambda: b'{"a":[' + b"1," * 7_000_000 + b"1]}", "describes more than the 60,000"),
        ("a million fields", lambda: b"{" + b'"a":{},' * 2_000_000 + b'"a":{}}', "describes more than the 60,000"),
        ("a million lines", lambda: b"{" + b"\n" * 15_000_000 + b"}", "holds no network"),
        ("long metadata", lambda: json.dumps({"__metadata__": {"a": "x" * 15_000_000}}).encode(), "holds no network"),
        (
            "wide metadata",
            lambda: ('{"__metadata__":{"a":"' + "\U0001f600" * 3_000_000 + '"}}').encode(),
            "holds no network",
        ),
        ("long numbers", lambda: b'{"a":[' + b",".join([b"9" * 4_000] * 3_500) + b"]}", DAMAGED),
    ):
        build = lambda folder, m=make: safetensors_file(m())  # noqa: E731
        yield Case(f"safetensors, {name}", build, pattern, is_heavy=True)


def _names() -> Iterator[Case]:
    for name, key in {
        "an escape": "a.\x1b[2J",
        "a line": "a.\nerror: all is well",
        "a zero": "a.\0",
        "a surrogate": "a.\udcff",
        "a turn": "a.\u202egnp.exe",
        "200,000 letters": "a." + "b" * 200_000,
    }.items():
        header = {key: WEIGHT, "a.weight": header_of((1,), 4, 8, "F32")}
        build = lambda folder, h=header: safetensors_file(h, bytes(8))  # noqa: E731
        yield Case(f"safetensors, a key with {name}", build, "a name of [0-9,]+ characters, which no network gives")
