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

"""Folders of torch.distributed.checkpoint whose metadata lie."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, ChunkStorageMetadata

from tests.networks.checkpoints.hostile.case import FINE, Case, call, program, saved, sparse_file, text, torch_zip
from tests.networks.checkpoints.hostile.torch_cases import CALLS

__all__ = ["folder_cases"]

DAMAGED = "is a damaged folder of torch.distributed.checkpoint: "
KEY = "net.weight"
DATA = "__0_0.distcp"


def folder_cases() -> Iterator[Case]:
    yield from _metadata()
    yield from _places()
    yield from _pieces()
    yield from _files()


def _folder(folder: Path) -> Path:
    path = folder / "folder"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"net": {"weight": torch.arange(12.0).reshape(4, 3), "bias": torch.ones(3)}}, checkpoint_id=path)
    return path


def _changed(change: Callable[[Any, Path], Any]) -> Callable[[Path], Path]:
    """A folder whose metadata are changed, or replaced by what the change gives."""

    def build(folder: Path) -> Path:
        path = _folder(folder)
        metadata = pickle.loads((path / ".metadata").read_bytes())
        new = change(metadata, path)
        content = new if isinstance(new, bytes) else pickle.dumps(metadata if new is None else new)
        (path / ".metadata").write_bytes(content)
        return path

    return build


def _metadata() -> Iterator[Case]:
    for name in ("posix.system", "builtins.eval", "subprocess.Popen", "torch.load", "builtins.bytearray", "os.system"):
        body = program(call(name, *CALLS.get(name, (text("a"),))), 4)
        yield Case(
            f"folder that calls {name}", _changed(lambda m, p, b=body: b), f"names '{name}', which no such folder"
        )
    for name, content in {
        "nothing": b"",
        "zeros": bytes(1000),
        "text": b"<html>",
        "half a pickle": pickle.dumps(list(range(100)))[:100],
        "a deep list": b"\x80\x02" + b"]" * 100_000,
        "a far memo": b"\x80\x02Nr\xff\xff\xff\xff",
        "a long integer": b"\x80\x02\x8b\xff\xff\xff\x7f",
        "a hash that doubles": program(b"})" + b"q\0h\0\x86" * 60 + b"Ns"),
    }.items():
        yield Case(
            f"folder with {name}", _changed(lambda m, p, c=content: c), DAMAGED + r"its \.metadata cannot be read"
        )
    yield Case("folder with a list", _changed(lambda m, p: [1]), DAMAGED + r"its \.metadata holds a list")
    yield Case("folder with a size", _changed(lambda m, p: torch.Size([1])), DAMAGED + r"its \.metadata holds a tuple")
    long = b"\x80\x02" + text("a" * 33_000_000) + b"."
    yield Case(
        "folder with long metadata",
        _changed(lambda m, p: long),
        "more than 32,000,000 bytes",
        is_heavy=True,
    )
    steps = program(b"N0" * 1_600_000 + b"N")
    yield Case("folder with many steps", _changed(lambda m, p: steps), "3,000,000 steps", is_heavy=True)
    for field in ("state_dict_metadata", "storage_data"):
        for value in (None, [], 3):
            change = lambda m, p, f=field, v=value: setattr(m, f, v)  # noqa: E731
            yield Case(f"folder with {value} as {field}", _changed(change), DAMAGED + rf"its \.metadata has no {field}")
    for name, keys, pattern in (
        ("a path through a value", ("net", "bias", "x"), "two values at 'bias'"),
        ("no path", (), "a value under"),
        ("a text as path", "net", "a value under"),
        ("a long path", ("a",) * 1000, "a value under"),
    ):
        change = lambda m, p, k=keys: m.planner_data.update({KEY: k, "net.bias": ("net", "bias")})  # noqa: E731
        yield Case(f"folder with {name}", _changed(change), DAMAGED + rf"its \.metadata has {pattern}")
    yield Case("folder with another planner", _changed(lambda m, p: setattr(m, "planner_data", 3)), FINE)
    deep = lambda m, p: m.planner_data.update({KEY: ("a",) * 60 + ("net.weight",)})  # noqa: E731
    yield Case("folder with a deep path", _changed(deep), FINE)
    escape = lambda m, p: m.planner_data.update({KEY: ("net", "\x1b[2J.weight")})  # noqa: E731
    yield Case("folder with an escape in a path", _changed(escape), "a name of [0-9]+ characters")


def _places() -> Iterator[Case]:
    outside = "outside of the folder"
    for name, value, pattern in (
        ("parent", "../file", outside),
        ("absolute", "/etc/passwd", outside),
        ("parent itself", "..", outside),
        ("folder itself", ".", outside),
        ("nothing", "", outside),
        ("zero", "a\0b", outside),
        ("number", 3, outside),
        ("list", ["a"], outside),
        ("folder below", "a/b", outside),
        ("another", "missing.distcp", "missing.distcp is missing"),
        ("escape", "\x1b[2J", r"\\x1b\[2J is missing"),
        ("long", "a" * 5000, "contradicts itself|is missing"),
    ):
        yield Case(f"folder with {name} as file", _place(relative_path=value), DAMAGED + ".*" + pattern)
    for name, fields, pattern in (
        ("negative offset", {"offset": -5}, "lies at -5"),
        ("offset behind the end", {"offset": 10_000}, "has [0-9,]+ bytes, 'net"),
        ("huge offset", {"offset": 1 << 70}, "has [0-9,]+ bytes, 'net"),
        ("text as offset", {"offset": "0"}, "lies at '0'"),
        ("fraction as offset", {"offset": 1.5}, "lies at 1.5"),
        ("flag as offset", {"offset": True}, "lies at True"),
        ("negative length", {"length": -1}, "with -1 bytes"),
        ("huge length", {"length": 1 << 70}, "has [0-9,]+ bytes, 'net"),
        ("no length", {"length": 0}, "damaged"),
        ("short length", {"length": 40}, "damaged"),
        ("place of another tensor", {"offset": 0, "length": 1500}, "damaged"),
    ):
        glanced = 0 if name == "place of another tensor" else None
        pattern = f"is damaged|is a damaged|{pattern}|is a zip archive"
        yield Case(f"folder with {name}", _place(**fields), pattern, glanced=glanced)
    moved = lambda m, p: _renamed(m, "other")  # noqa: E731
    yield Case("folder whose places belong to another", _changed(moved), DAMAGED + "nothing tells where 'net.* lies")
    transformed = _place(transform_descriptors=["\x1b[2J"])
    yield Case("folder with a transform", transformed, r"was transformed when saved, by '\\x1b\[2J'")


def _place(**fields: Any) -> Callable[[Path], Path]:
    def change(metadata: Any, path: Path) -> None:
        for place in metadata.storage_data.values():
            for name, value in fields.items():
                setattr(place, name, value)

    return _changed(change)


def _renamed(metadata: Any, name: str) -> None:
    for index in metadata.storage_data:
        object.__setattr__(index, "fqn", name)


def _chunks(*chunks: tuple[tuple[int, ...], tuple[int, ...]], size: tuple[int, ...] = (4, 3)) -> Callable[[Path], Path]:
    def change(metadata: Any, path: Path) -> None:
        described = metadata.state_dict_metadata[KEY]
        described.size = torch.Size(size)
        described.chunks = [ChunkStorageMetadata(torch.Size(at), torch.Size(shape)) for at, shape in chunks]

    return _changed(change)


def _pieces() -> Iterator[Case]:
    wrong = DAMAGED + "the pieces of 'net.weight' do not make up its size"
    whole = ((0, 0), (4, 3))
    for name, chunks in {
        "overlap": [((0, 0), (3, 3)), ((2, 0), (1, 3))],
        "overlap and gap": [((0, 0), (2, 3)), ((1, 0), (2, 3))],
        "gap": [((0, 0), (1, 3)), ((3, 0), (1, 3))],
        "one twice": [whole, whole],
        "one and a part of it": [whole, ((1, 1), (1, 1))],
        "none": [],
        "a corner missing": [((0, 0), (3, 3)), ((3, 0), (1, 2))],
        "a shift": [((1, 0), (4, 3))],
        "two crossing": [((0, 0), (4, 2)), ((0, 1), (4, 1))],
        "four that turn": [((0, 0), (1, 2)), ((0, 2), (3, 1)), ((1, 0), (3, 1)), ((3, 1), (1, 2)), ((1, 1), (2, 2))],
        "another number of dimensions": [((0,), (12,))],
        "beyond the end": [((0, 0), (8, 3))],
        "a huge one": [((0, 0), (1 << 62, 1 << 62))],
    }.items():
        yield Case(f"pieces with {name}", _chunks(*chunks), wrong)
    yield Case("pieces of 65 dimensions", _chunks(((0,) * 65, (1,) * 65), size=(1,) * 65), DAMAGED + ".*65 dimensions")
    corners = [((0,) * 60, (1,) * 60), ((1,) * 60, (1,) * 60)]
    yield Case("pieces with 2^60 corners", _chunks(*corners, size=(1,) * 60), wrong)
    huge = (1 << 20, 1 << 22)
    yield Case("tensor beyond all memory", _chunks(((0, 0), huge), size=huge), "claims 17,592,186,044,4[0-9,]+ bytes")
    beyond = (1 << 62, 1 << 62)
    yield Case(
        "tensor beyond all machines", _chunks(((0, 0), beyond), size=beyond), DAMAGED + ".*more than any machine"
    )
    hidden = (1 << 62, 1 << 62, 0)
    yield Case("zero that hides a size", _chunks(((0, 0, 0), hidden), size=hidden), DAMAGED + ".*more than any machine")
    yield Case("another shape", _chunks(((0, 0), (3, 4)), size=(3, 4)), DAMAGED + ".*holds another tensor", glanced=0)
    many = [((row, 0), (1, 1)) for row in range(120_000)]
    yield Case(
        "many pieces", _chunks(*many, size=(120_000, 1)), "claims more than|names|is damaged|steps", is_heavy=True
    )
    for name, value in {"a number": 3, "bytes": BytesStorageMetadata(), "nothing": None}.items():
        change = lambda m, p, v=value: m.state_dict_metadata.update({KEY: v})  # noqa: E731
        yield Case(f"{name} as a tensor", _changed(change), FINE)  # the bias alone is left
    dtype = lambda m, p: setattr(m.state_dict_metadata[KEY].properties, "dtype", torch.float16)  # noqa: E731
    yield Case("another type", _changed(dtype), DAMAGED + ".*holds another tensor", glanced=0)
    for name in ("size", "chunks", "properties"):
        change = lambda m, p, n=name: setattr(m.state_dict_metadata[KEY], n, "x")  # noqa: E731
        yield Case(f"a text as {name}", _changed(change), DAMAGED)
    chunks_of_text = lambda m, p: setattr(m.state_dict_metadata[KEY], "chunks", ["x"])  # noqa: E731
    yield Case("a text as piece", _changed(chunks_of_text), DAMAGED)


def _files() -> Iterator[Case]:
    for name, content, pattern in (
        ("another tensor", saved(torch.ones(4, 4)), "holds another tensor"),
        ("a sparse tensor", saved(torch.ones(4, 3).to_sparse()), "holds another tensor"),
        ("a dictionary", saved({"a": torch.ones(4, 3)}), "holds another tensor"),
        ("code", torch_zip(program(call("posix.system", text("true")))), "names 'posix.system'"),
        ("a repeated number", saved(torch.ones(1, 1).expand(1 << 15, 1 << 15)), "claims|holds another"),
        ("zeros", bytes(2000), "is damaged"),
        ("an old file", saved(torch.ones(4, 3), is_zip=False), "is damaged"),
    ):
        yield Case(f"piece with {name}", _data(content), pattern, glanced=0)
    yield Case("folder without data", _after(lambda path: (path / DATA).unlink()), f"{DATA} is missing")
    yield Case("folder with short data", _after(lambda path: os.truncate(path / DATA, 700)), "has 700 bytes")
    yield Case("folder with a pipe as data", _after(_pipe), f"{DATA} is missing")
    yield Case("folder with a folder as data", _after(_inner), f"{DATA} is missing")
    yield Case("folder with a link as data", _after(_linked), FINE)
    yield Case("folder with a link to nothing", _after(_nowhere), f"{DATA} is missing")
    yield Case("folder with a folder as metadata", _after(_odd_metadata), "is a folder without '.metadata'")
    yield Case("folder with a pipe as metadata", _after(_pipe_metadata), "is a folder without '.metadata'")
    yield Case("folder of another kind", lambda folder: _others(folder), r"it holds \\x1b\[2J.pt")
    yield Case("piece in a large file", _sparse, "which is not the size of")


def _data(content: bytes) -> Callable[[Path], Path]:
    def change(metadata: Any, path: Path) -> None:
        (path / DATA).write_bytes(content)
        for place in metadata.storage_data.values():
            place.offset, place.length = 0, len(content)

    return _changed(change)


def _sparse(folder: Path) -> Path:
    """A terabyte of zeros, with the table of contents at its end."""

    def change(metadata: Any, path: Path) -> None:
        sparse_file(path / DATA, 1 << 40)
        with open(path / DATA, "ab") as file:
            file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0, 0, 0, 0, 0))
        for place in metadata.storage_data.values():
            place.offset, place.length = 0, 1 << 40

    return _changed(change)(folder)


def _after(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = _folder(folder)
        change(path)
        return path

    return build


def _pipe(path: Path) -> None:
    (path / DATA).unlink()
    os.mkfifo(path / DATA)


def _inner(path: Path) -> None:
    (path / DATA).unlink()
    (path / DATA).mkdir()


def _linked(path: Path) -> None:
    """As the cache of a hub has them."""
    (path / DATA).rename(path.parent / "blob")
    (path / DATA).symlink_to(path.parent / "blob")


def _nowhere(path: Path) -> None:
    (path / DATA).unlink()
    (path / DATA).symlink_to("nowhere")


def _odd_metadata(path: Path) -> None:
    (path / ".metadata").unlink()
    (path / ".metadata").mkdir()


def _pipe_metadata(path: Path) -> None:
    (path / ".metadata").unlink()
    os.mkfifo(path / ".metadata")


def _others(folder: Path) -> Path:
    path = folder / "folder"
    path.mkdir()
    (path / "\x1b[2J.pt").write_bytes(b"")
    return path
