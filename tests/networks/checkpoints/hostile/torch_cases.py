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

"""Files of torch.save that lie, bomb, or would run code."""

from __future__ import annotations

import io
import pickle
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.networks.checkpoints.hostile.case import (
    FINE,
    Case,
    call,
    dictionary,
    glob,
    number,
    ordered,
    program,
    saved,
    sizes,
    state,
    storage,
    tensor,
    text,
    torch_zip,
    tuple_of,
)

__all__ = ["CALLS", "torch_cases"]

LARGE = 1 << 40
ENTRY = struct.Struct("<4s4B4HL2L5H2L")  # of a zip's table of contents
# What would run, by the name that the message has to tell.
CALLS = {
    "posix.system": (text("touch MARKER"),),
    "builtins.eval": (text("open('MARKER', 'w')"),),
    "builtins.exec": (text("open('MARKER', 'w')"),),
    "builtins.open": (text("MARKER"), text("w")),
    "builtins.__import__": (text("os"),),
    "builtins.getattr": (text("a"), text("upper")),
    "builtins.print": (text("\x1b[2J"),),
    "subprocess.Popen": (text("touch MARKER"),),
    "subprocess.check_output": (text("touch MARKER"),),
    "os.system": (text("touch MARKER"),),
    "os.execv": (text("/bin/touch"), tuple_of(text("MARKER"))),
    "pty.spawn": (text("touch MARKER"),),
    "runpy.run_path": (text("MARKER"),),
    "importlib.import_module": (text("antigravity"),),
    "webbrowser.open": (text("http://localhost"),),
    "pickle.loads": (b"C\x01.",),
    "functools.partial": (glob("os.system"), text("touch MARKER")),
    "operator.attrgetter": (text("system"),),
    "ctypes.CDLL": (text("libc.so.6"),),
    "shutil.rmtree": (text("/nowhere"),),
    "torch.load": (text("MARKER"),),
    "torch.hub.load": (text("a/b"), text("c")),
    "torch.ops.load_library": (text("MARKER"),),
    "torch._utils._import_dotted_name": (text("os.system"),),
    "torch.serialization.storage_to_tensor_type": (storage(),),
    "numpy.load": (text("MARKER"),),
    "numpy.fromfile": (text("MARKER"),),
    "copyreg._reconstructor": (glob("builtins.object"), glob("builtins.object"), b"N"),
    "monai.networks.nets.ViT": (),
    "tests.networks.checkpoints.test_bad_files.Code": (),
}


def torch_cases() -> Iterator[Case]:
    yield from _code()
    yield from _damaged()
    yield from _lies()
    yield from _bombs()
    yield from _odd()
    yield from _archives()
    yield from _legacy()
    yield from _names()


def _zip_case(name: str, body: bytes, pattern: str, **more: Any) -> Case:
    return Case(name, lambda folder: torch_zip(program(body)), pattern, **more)


def _code() -> Iterator[Case]:
    for name, arguments in CALLS.items():
        shown = f"names '{name.removeprefix('builtins.')}', which is more than weights and may run code"
        for how, body in {
            "call": call(name, *arguments),
            "new": glob(name) + tuple_of(*arguments) + b"\x81",
            "name": glob(name),
        }.items():
            if how == "call" or name in ("posix.system", "builtins.eval"):
                yield Case(f"{how} {name}", _with_marker(dictionary({"net.weight": tensor(), "x": body})), shown)
    stacked = text("os") + text("system") + b"\x93" + tuple_of(text("touch MARKER")) + b"R"
    yield Case("call by a name on the stack", _with_marker(stacked, 4), "names 'os.system'")
    dotted = text("torch") + text("os.system") + b"\x93" + tuple_of(text("touch MARKER")) + b"R"
    yield Case("call by a dotted name", _with_marker(dotted, 4), r"names 'torch.os.system'")
    yield _zip_case("instance", b"(X\x01\0\0\0aios\nsystem\n", "is damaged.*operation 0x69 is none")
    yield _zip_case("object", b"(cos\nsystem\nX\x01\0\0\0ao", "names 'os.system'")
    yield _zip_case("extension", b"\x82\x01", "is damaged.*operation 0x82 is none")
    yield _zip_case("code as a storage", tuple_of(text("module"), glob("torch.nn.Linear"), *[b"N"] * 3) + b"Q", "names")
    yield _zip_case("another persistent id", text("storage") + b"Q", "is damaged.*no storage")
    hooks = dictionary({"a": glob("os.system")})
    parts = (storage(), number(0), sizes((2, 2)), sizes((2, 1)), b"\x89", hooks)
    yield _zip_case("code as a hook", dictionary({"w": call("torch._utils._rebuild_tensor_v2", *parts)}), "names")
    yield _zip_case("state of a tensor", dictionary({"a": tensor() + b"Nb"}), "is damaged.*is given a state")
    yield _zip_case("call of a result", ordered() + b")R", "is damaged.*is called")
    yield Case("whole network", lambda folder: saved(torch.nn.Linear(2, 2)), "names 'torch.nn.modules.linear.Linear'")
    yield Case("torchscript", _torchscript, "is a TorchScript archive")


def _with_marker(body: bytes, protocol: int = 2) -> Any:
    """The file, whose code would make a file "ran" beside it."""

    def build(folder: Path) -> bytes:
        marker = str(folder / "ran")
        patched, place = b"", 0
        while (found := body.find(b"MARKER", place)) >= 0:  # within a text, whose length lies before it
            start = body.rfind(b"X", place, found)
            length = struct.unpack("<I", body[start + 1 : start + 5])[0]
            word = body[start + 5 : start + 5 + length].replace(b"MARKER", marker.encode())
            patched += body[place:start] + text(word.decode())
            place = start + 5 + length
        return torch_zip(program(patched + body[place:], protocol))

    return build


def _torchscript(folder: Path) -> Path:
    path = folder / "file.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    return path


def _damaged() -> Iterator[Case]:
    sound = saved({"net.weight": torch.ones(16, 16), "net.bias": torch.ones(16)})
    for part in (0.1, 0.5, 0.9, 0.99):
        yield Case(f"zip cut at {part}", lambda folder, part=part: sound[: int(len(sound) * part)], "is damaged")
    for cut in (1, 22, 40):
        yield Case(f"zip without its last {cut} bytes", lambda folder, cut=cut: sound[:-cut], "is damaged")
    table = sound.find(b"PK\x01\x02")
    for place in (0, 10, 20, 24, 28, 42, 43):
        yield Case(
            f"flipped byte {place} of the table",
            lambda folder, place=place: _flipped(sound, table + place),
            "is damaged|is encrypted|no file of torch.save",
        )
    for place in (4, 10, 12, 16):
        yield Case(
            f"flipped byte {place} of the end",
            lambda folder, place=place: _flipped(sound, len(sound) - 22 + place),
            f"is damaged|{FINE}",
        )
    start = sound.find(b"\x80\x02")
    draw = random.Random(0)
    for number_ in range(8):
        place = start + draw.randrange(1, 250)
        yield Case(
            f"flipped byte of the pickle {number_}",
            lambda folder, place=place: _flipped(sound, place),
            f"is damaged|names '|holds no network|{FINE}",
        )
    yield Case("zeros in the middle", lambda folder: sound[:100] + bytes(600) + sound[700:], "is damaged")
    yield Case("twice in a row", lambda folder: sound + sound, FINE)


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _lies() -> Iterator[Case]:
    for count in (5, LARGE, 1 << 62, 1 << 64, -1):
        yield _zip_case(f"storage of {count}", state(a=tensor(of=storage(count=count))), "is damaged.*storage")
    yield _zip_case("storage of a half", state(a=tensor(of=storage(count=b"G" + struct.pack(">d", 2.5)))), "is damaged")
    yield _zip_case("storage of a text", state(a=tensor(of=storage(count=text("4")))), "is damaged")
    yield _zip_case("storage of another type", state(a=tensor(of=storage(kind="torch.DoubleStorage"))), "is damaged")
    yield _zip_case("storage that is missing", state(a=tensor(of=storage("7"))), "is damaged.*lacks 'data/7'")
    yield _zip_case("storage outside", state(a=tensor(of=storage("../../etc/passwd"))), "is damaged.*lacks")
    for name, shape, stride, offset in (
        ("offset", (2, 2), (2, 1), 1),
        ("negative offset", (2, 2), (2, 1), -1),
        ("large offset", (1, 1), (1, 1), 1 << 62),
        ("stride", (2, 2), (3, 1), 0),
        ("large stride", (2, 2), (1 << 62, 1), 0),
        ("negative stride", (2, 2), (-1, 1), 3),
        ("fewer strides", (2, 2), (1,), 0),
        ("negative size", (-2, -2), (2, 1), 0),
        ("large size", (LARGE, LARGE), (1, 1), 0),
        ("larger size", (1 << 70, 1), (1, 1), 0),
        ("size that a zero hides", (1 << 62, 1 << 62, 0), (1, 1, 1), 0),
        ("65 dimensions", (1,) * 65, (1,) * 65, 0),
        ("100,000 dimensions", (1 << 62,) * 100_000, (0,) * 100_000, 0),
    ):
        body = state(a=tensor(shape, stride, offset))
        yield _zip_case(f"tensor with {name}", body, "is damaged.*(a tensor|storage)")
    for name, value in {"a text": text("2"), "None": b"N", "True": b"\x88", "a half": b"G" + bytes(8)}.items():
        yield _zip_case(f"size of {name}", state(a=tensor((value, 2), (2, 1))), "is damaged")
    yield _zip_case("shape that is a list", state(a=tensor(b"](K\x02K\x02e", (2, 1))), FINE)
    yield _zip_case("shape that is a dictionary", state(a=tensor(b"}", (2, 1))), "is damaged")
    yield _zip_case("tensor of a tensor", state(a=tensor(of=tensor())), "is damaged")
    yield _zip_case("tensor of nothing", state(a=call("torch._utils._rebuild_tensor_v2")), "is damaged")


def _bombs() -> Iterator[Case]:
    huge = number(10**11)
    for name, body in {
        "bytearray": call("builtins.bytearray", huge),
        "bytes": call("builtins.bytes", huge),
        "untyped storage": call("torch.storage.UntypedStorage", huge),
        "tensor": call("torch.FloatTensor", number(10**6), number(10**6)),
        "integer in text": call("builtins.int", text("9" * 100_000)),
        "complex": call("builtins.complex", number(1)),
        "range": call("builtins.list", huge),
    }.items():
        yield _zip_case(
            f"call of a large {name}", state() + b"0" + dictionary({"a": body}), "holds no network|is damaged"
        )
    body = state(a=tensor((1 << 20, 1 << 20), (0, 0)))
    yield _zip_case("one number repeated", body, "claims 4,398,046,511,120 bytes.*of which 16 are there")
    many = {f"a{i}": tensor((1 << 18, 1 << 10), (0, 0)) for i in range(42)}  # a gigabyte each
    yield _zip_case("many numbers repeated", state(**many), "claims .* bytes for its tensors, of which 16 are there")
    million = {"data/1": bytes(1 << 20)}
    views = {f"a{i}": tensor((1 << 18,), (1,), of=storage("1", 1 << 18)) for i in range(400)}
    yield Case("many views", lambda folder: torch_zip(program(state(**views)), million), "claims .* for its tensors")
    yield _zip_case("hash that doubles", b"})" + b"q\0h\0\x86" * 60 + b"Ns", "key that no checkpoint needs")
    colliding = b"".join(number(((1 << 61) - 1) * i) + b"N" for i in range(1, 50_000))
    yield _zip_case("keys that collide", b"}(" + colliding + b"u", "key that no checkpoint needs")
    yield _zip_case("far place of the memo", b"Nr\xff\xff\xff\xff" + state(), FINE)
    yield _zip_case("long integer", b"\x8b\xff\xff\xff\x7f" + bytes(100), "an integer has 2,147,483,647 bytes")
    yield _zip_case("long text", b"X\xff\xff\xff\xff" + bytes(100), "is damaged")
    laughs = b"]q\0" + b"".join(
        b"0]q" + bytes([i]) + b"(" + b"h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"e" for i in range(1, 80)
    )
    factor = dictionary({"unet_state_dict": state(), "scale_factor": laughs})
    yield _zip_case("lists that double, as a number", factor, "scale_factor must be a number.*a list")
    yield _zip_case("lists that double, as a weight", state(**{"n.a": laughs}), r"no tensors: '(net\.)?n.a' .list")
    yield _zip_case("lists that double, as a network", dictionary({"a": laughs}), "holds no network")
    yield _zip_case("deep lists", b"]" * 200_000 + b"a" * 199_999, "holds no network", is_heavy=True)
    yield _zip_case(
        "deep dictionaries",
        (b"}X\x01\0\0\0a" * 59_000) + b"N" + b"s" * 59_000,
        "holds no network",
        is_heavy=True,
    )
    nested = glob("torch.Tensor") + b"q\0" + glob("torch._tensor._rebuild_from_type_v2") + b"q\1)"
    nested += b"".join(b"q\2(h\1h\0h\2t" for _ in range(20_000))
    yield _zip_case("deep tensors", glob("torch._tensor._rebuild_from_type_v2") + b"q\1" + nested + b"R", "is damaged")
    yield _zip_case("self", b"}q\0X\1\0\0\0ah\0s", "holds no network")
    yield _zip_case("many steps", b"N0" * 1_600_000 + b"N", "in more than 3,000,000 steps", is_heavy=True)
    yield _zip_case(
        "many names",
        b"}(" + b"".join(text(f"k{i}") + b"N" for i in range(70_000)) + b"u",
        "60,000 names",
        is_heavy=True,
    )
    yield Case(
        "long pickle",
        lambda folder: torch_zip(program(text("a" * 40_000_000))),
        "more than the 32,000,000",
        is_heavy=True,
    )
    yield Case(
        "wide text",
        lambda folder: torch_zip(program(text("a" * 31_000_000 + "\U0001f600"))),
        "a str: pass",
        is_heavy=True,
    )
    half = b"](" + b"N" * 60_000 + b"eq\0"
    for name in ("collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.list"):
        copies = (glob(name) + b"(h\0tR0") * 50_000
        yield _zip_case(f"copies by {name}", half + copies, "60,000 names|is damaged")
    yield _zip_case(
        "copies of a text",
        text("a" * 1_000_000) + b"q\0" + (glob("_codecs.encode") + b"(h\0" + text("latin1") + b"tR0") * 200,
        "more than 32,000,000 bytes",
    )
    objects = glob("argparse.Namespace") + b"q\0" + b"(" + b"h\0)\x81" * 1_200_000 + b"t"
    yield _zip_case("many objects", objects, "holds no network|more than", is_heavy=True)
    body = (
        storage()
        + b"q\0"
        + glob("torch._utils._rebuild_tensor_v2")
        + b"q\1(h\0"
        + number(0)
        + sizes((1,))
        + sizes((1,))
        + b"\x89}tq\2("
    )
    yield _zip_case("many tensors", body + b"h\1h\2R" * 70_000 + b"t", "more than 60,000 tensors", is_heavy=True)
    for name in ("Namespace", "dict"):
        yield _zip_case(
            f"many kinds of {name}",
            b"(" + b"".join(glob(f"omegaconf.a{i}.{name}") for i in range(20_000)) + b"t",
            "holds no network",
            is_heavy=True,
        )


def _odd() -> Iterator[Case]:
    eye = torch.eye(3)
    for name, value, pattern in (
        ("sparse", eye.to_sparse(), r"'(net\.)?a' is a sparse tensor: .*to_dense\(\)"),
        ("csr", eye.to_sparse_csr(), r"'(net\.)?a' is a sparse tensor: .*to_dense\(\)"),
        ("bsr", torch.eye(4).to_sparse_bsr((2, 2)), r"'(net\.)?a' is a sparse tensor: .*to_dense\(\)"),
        ("quantized", torch.quantize_per_tensor(eye, 0.1, 0, torch.qint8), r"is a quantized tensor: .*dequantize\(\)"),
        ("nested", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), r"is a nested tensor: .*unbind\(\)"),
        ("meta", torch.ones(2, 2, device="meta"), "has no values"),
        ("conjugated", torch.ones(2, 2, dtype=torch.complex64).conj(), r"conjugated.*resolve_conj\(\)"),
    ):
        for is_zip in (True, False) if name in ("sparse", "csr") else (True,):
            content = {"net.weight": torch.ones(2, 2), "net.a": value}
            kind = f"{name} tensor {'in' if is_zip else 'in an old'} file"
            yield Case(kind, lambda folder, c=content, z=is_zip: saved(c, z), pattern)
    parts = (tuple_of(glob("torch.serialization._get_layout")), text("x"))
    yield _zip_case(
        "sparse tensor without indices", state(a=call("torch._utils._rebuild_sparse_tensor", *parts)), "sparse"
    )
    axis = call("torch._utils._rebuild_qtensor", storage(), number(0), number(1 << 40), b"N", b"N", b"N", b"N")
    yield _zip_case("quantized tensor that lies", state(a=axis), "quantized")
    lies = call("torch._utils._rebuild_nested_tensor", tensor(), tensor(), tensor(), number(1 << 50))
    yield _zip_case("nested tensor that lies", state(a=lies), "nested")
    wrapped = call("torch._utils._rebuild_wrapper_subclass", glob("torch.Tensor"), b"N", sizes((1 << 40,)))
    yield _zip_case("wrapper class that lies", state(a=wrapped), "a tensor of a class of its own")
    sharded = call(
        "torch._tensor._rebuild_from_type_v2",
        glob("torch._utils._rebuild_wrapper_subclass"),
        glob("torch.distributed.tensor.DTensor"),
        b")",
        b"}",
    )
    yield _zip_case("sharded tensor", state(a=sharded), "is a DTensor: .*full_state_dict=True")
    yield Case("complex weights", lambda folder: saved({"net.weight": torch.full((2, 2), 1j)}), FINE)
    yield Case("eight-bit floats", lambda folder: saved({"net.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}), FINE)
    attention = {f"a.to_{name}.weight": torch.ones(()) for name in "qkv"}
    yield Case("attention without width", lambda folder: saved({"b.weight": torch.ones(2, 2), **attention}), FINE)
    shapes = {
        "a.to_q.weight": (4, 4),
        "a.to_k.weight": (),
        "a.to_v.weight": (4,),
        "a.out_proj.weight": (0, 4),
        "a.out_proj.bias": (),
    }
    mixed = {name: torch.ones(shape) for name, shape in shapes.items()}
    yield Case("attention of other shapes", lambda folder: saved(mixed), FINE)
    odd = {
        "a.qkv.weight": torch.ones(6, 0),
        "b.qkv.weight": torch.ones(5, 4),
        "c.qkv.weight": torch.ones(6, 4, dtype=torch.float8_e5m2),
    }
    yield Case(
        "attention without values",
        lambda folder: saved({**odd, "a.rel_positional_embedding.rel_pos_arr.0": torch.ones(0)}),
        FINE,
    )


def _archives() -> Iterator[Case]:
    sound = program(state())
    yield Case(
        "zip bomb", lambda folder: torch_zip(sound, {"data/1": bytes(50_000_000)}, zipfile.ZIP_DEFLATED), "zip bomb"
    )
    yield Case("compressed, and fine", lambda folder: torch_zip(sound, compression=zipfile.ZIP_DEFLATED), FINE)
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield Case(
            f"compression {compression}", lambda folder, c=compression: torch_zip(sound, compression=c), "packed as"
        )
    yield Case("entries that overlap", _overlapping, "zip bomb|overlaps another entry")
    yield Case("entries that overlap a little", lambda folder: _overlapping(folder, 2), "overlaps another entry")
    yield Case("two pickles", lambda folder: _duplicate("archive/data.pkl"), "two of its entries have the same name")
    yield Case("two storages", lambda folder: _duplicate("archive/data/0"), "two of its entries have the same name")
    yield Case("two folders", lambda folder: _duplicate("other/data/0"), "two of its entries have the same name")
    for folder_name in ("../..", "/etc", "C:\\", "a\x1b[2Jb", "a/../b", "\u202e"):
        yield Case(
            f"folder {folder_name!r}",
            lambda _, f=folder_name: torch_zip(sound, folder=f),
            f"no file of torch.save|{FINE}",
        )
    yield Case("no storages", lambda folder: torch_zip(sound, {"data/0": None}), "lacks 'data/0'")
    yield Case("short storage", lambda folder: torch_zip(sound, {"data/0": b"abc"}), "has 3 bytes, not 16")
    yield Case("no pickle", lambda folder: torch_zip(b"", {"data.pkl": None}), "no file of torch.save.*unpack it")
    yield Case("empty pickle", lambda folder: torch_zip(b""), "is damaged.*ends too early")
    yield Case("pickle without end", lambda folder: torch_zip(sound[:-1]), "is damaged.*ends too early")
    yield Case("another byte order", lambda folder: torch_zip(sound, {"byteorder": b"middle"}), "its byte order is")
    yield Case(
        "long byte order", lambda folder: torch_zip(sound, {"byteorder": b"\x1b" * 100_000}), "its byte order is"
    )
    yield Case("entry in an entry", lambda folder: torch_zip(torch_zip(sound)), "is damaged")
    yield Case("names with escapes", lambda folder: _archive_of("a/\x1b[31mred\x1b[0m"), r"It holds 'a/\\x1b\[31mred")
    yield Case("empty names", lambda folder: _archive_of(""), "no file of torch.save")
    yield Case(
        "many entries", lambda folder: _many_entries(120_000), "table of contents of .* entries or more", is_heavy=True
    )
    yield Case("long comment", lambda folder: _commented(sound), "is damaged")
    yield Case("large table", _large_table, "table of contents of", is_heavy=True)
    for name, field, value in (
        ("size", 16, 0xFFFFFFF0),
        ("compressed size", 15, 0xFFFFFFF0),
        ("both sizes", -1, 0xFFFFFFF0),
        ("place", 22, 0xFFFFFFF0),
        ("flag of encryption", 6, 1),
        ("method", 7, 99),
        ("length of the name", 17, 0xFFF0),
        ("length of the extra field", 18, 0xFFF0),
        ("disk", 20, 7),
    ):
        pattern = "is damaged|is encrypted|zip bomb|no file of torch.save" + (f"|{FINE}" if name == "disk" else "")
        yield Case(f"{name} that lies", lambda folder, f=field, v=value: _patched(torch_zip(sound), f, v), pattern)
    for place in (26, 28):
        yield Case(
            f"local header that lies at {place}", lambda folder, p=place: _local(torch_zip(sound), p), "is damaged"
        )
    yield Case("zip64 sizes that lie", lambda folder: _zip64(torch_zip(sound)), "is damaged|zip bomb")


def _overlapping(folder: Path, count: int = 1000) -> bytes:
    """Many entries of the table for one piece of the file, as the better zip bomb has them."""
    data = torch_zip(program(state()), {"data/1": bytes(100_000)})
    table, end = data.find(b"PK\x01\x02"), data.rfind(b"PK\x05\x06")
    place = data.find(b"archive/data/1", table) - 46
    size = ENTRY.size + len("archive/data/1")
    entry = data[place : place + size]
    entries = b"".join(entry[:46] + f"archive/data/{i:>1}".encode()[:14] for i in range(2, min(count + 1, 10)))
    entries += b"".join(
        entry[:28] + struct.pack("<H", 17) + entry[30:46] + f"archive/data/{i:04}".encode() for i in range(count)
    )
    whole = data[table:end] + entries
    total = data[table:end].count(b"PK\x01\x02") + entries.count(b"PK\x01\x02")
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, total, total, len(whole), table, 0)
    return data[:table] + whole + tail


def _duplicate(name: str) -> bytes:
    buffer = io.BytesIO(torch_zip(program(state())))
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(name, program(call("posix.system", text("true"))))
    return buffer.getvalue()


def _archive_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    return buffer.getvalue()


def _many_entries(count: int) -> bytes:
    """Entries of no bytes, written by hand: zipfile takes long."""
    sound = torch_zip(program(state()))
    table = sound.find(b"PK\x01\x02")
    place = sound.find(b"archive/version", table) - 46
    head = sound[place : place + 28] + struct.pack("<H", 8) + sound[place + 30 : place + 46]
    entries = b"".join(head + f"{i:08}".encode() for i in range(count))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(entries), table, 0)
    return sound[:table] + entries + tail


def _large_table(folder: Path) -> bytes:
    sound = torch_zip(program(state()))
    table = sound.find(b"PK\x01\x02")
    entries = sound[table : table + 46 + 16] + bytes(20_000_000)
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entries), table, 0)
    return sound[:table] + entries + tail


def _commented(pickle_: bytes) -> bytes:
    buffer = io.BytesIO(torch_zip(pickle_))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = b"PK\x05\x06" * 10_000
    return buffer.getvalue()


def _patched(data: bytes, field: int, value: int) -> bytes:
    """A zip file in which an entry of the table lies, the one of the storage."""
    place = data.find(b"archive/data/0", data.find(b"PK\x01\x02")) - 46
    fields = list(struct.unpack("<4s6H3L5H2L", data[place : place + 46]))
    names = {6: 3, 7: 4, 15: 8, 16: 9, 17: 10, 18: 11, 20: 13, 22: 16}
    for one in (15, 16) if field < 0 else (field,):
        fields[names[one]] = value
    return data[:place] + struct.pack("<4s6H3L5H2L", *fields) + data[place + 46 :]


def _local(data: bytes, place: int) -> bytes:
    start = data.find(b"archive/data/0") - 30
    return data[: start + place] + b"\xf0\xff" + data[start + place + 2 :]


def _zip64(data: bytes) -> bytes:
    """The sizes of the storage in an extra field, which has eight bytes for each."""
    place = data.find(b"archive/data/0", data.find(b"PK\x01\x02")) - 46
    end = data.rfind(b"PK\x05\x06")
    fields = list(struct.unpack("<4s6H3L5H2L", data[place : place + 46]))
    fields[8] = fields[9] = 0xFFFFFFFF
    fields[11] = 20
    entry = struct.pack("<4s6H3L5H2L", *fields) + b"archive/data/0" + struct.pack("<2H2Q", 1, 16, 1 << 62, 1 << 62)
    table = data[data.find(b"PK\x01\x02") : place] + entry + data[place + 60 : end]
    tail = struct.pack(
        "<4s4H2LH", *struct.unpack("<4s4H2LH", data[end : end + 22])[:5], len(table), data.find(b"PK\x01\x02"), 0
    )
    return data[: data.find(b"PK\x01\x02")] + table + tail


def _legacy() -> Iterator[Case]:
    sound = saved({"net.weight": torch.ones(4, 4), "net.bias": torch.ones(4)}, is_zip=False)
    for part in (0.05, 0.3, 0.6, 0.9, 0.999):
        yield Case(f"old file cut at {part}", lambda folder, p=part: sound[: int(len(sound) * p)], "is damaged")
    for name, old, new in (
        ("another version", pickle.dumps(1001, 2), pickle.dumps(1002, 2)),
        ("a large first byte", b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        ("a key less", b"q\x02e.", b"0e."),
    ):
        yield Case(f"old file with {name}", lambda folder, o=old, n=new: _exchanged(sound, o, n), "is |was written on")
    for name, count in (("fewer", 15), ("more", 17), ("none", 0), ("negative", -1), ("huge", 1 << 62)):
        where = sound.rfind(struct.pack("<q", 16))
        data = sound[:where] + struct.pack("<q", count) + sound[where + 8 :]
        yield Case(f"old file with {name} values", lambda folder, d=data: d, "is damaged: storage")
    attack = program(call("posix.system", text("true")))
    yield Case("old file with code", lambda folder: _old(attack), "names 'posix.system'")
    yield Case("old file with code as keys", lambda folder: _old(program(state()), attack), "names 'posix.system'")
    yield Case(
        "old file with a number as keys", lambda folder: _old(program(state()), pickle.dumps(3, 2)), "did not write"
    )
    yield Case("old file with other keys", lambda folder: _old(program(state()), pickle.dumps(["9"], 2)), "is damaged")
    view = (
        tuple_of(
            text("storage"),
            glob("torch.FloatStorage"),
            text("0"),
            text("cpu"),
            number(4),
            tuple_of(text("v"), number(3), number(9)),
        )
        + b"Q"
    )
    yield Case("old file with a view", lambda folder: _old(program(state(a=tensor(of=view)))), "a part of a storage")
    yield Case(
        "old file with many steps",
        lambda folder: _old(program(b"N0" * 1_600_000 + b"N")),
        "3,000,000 steps",
        is_heavy=True,
    )
    yield Case("very old file", _tar, "is a tar archive")


def _exchanged(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data, old
    return data.replace(old, new, 1)


def _old(content: bytes, keys: bytes | None = None) -> bytes:
    """A file as torch.save wrote it before 1.6, around any pickle, with one storage."""
    magic, machine = 0x1950A86A20F9469CFC6C, {"protocol_version": 1001, "little_endian": True}
    start = b"".join(pickle.dumps(value, 2) for value in (magic, 1001, machine))
    return start + content + (keys or pickle.dumps(["0"], 2)) + struct.pack("<q4f", 4, 1, 2, 3, 4)


def _tar(folder: Path) -> Path:
    """As torch wrote before 0.1.10."""
    path = folder / "file.pt"
    (folder / "pickle").write_bytes(pickle.dumps({"a": 1}, 2))
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.add(folder / "pickle", name)
    return path


def _names() -> Iterator[Case]:
    for name, key in {
        "an escape": "net.\x1b[2Jweight",
        "a line": "net.weight\nerror: all is well",
        "a zero": "net.\0",
        "a surrogate": "net.\udcff",
        "a turn": "net.\u202egnp.exe",
        "200,000 letters": "net." + "a" * 200_000,
    }.items():
        yield _zip_case(
            f"key with {name}", dictionary({"net.weight": tensor(), key: tensor()}), "a name of [0-9,]+ characters"
        )
        yield _zip_case(
            f"dictionary with {name}",
            dictionary({key: state(), "other": state()}),
            "2 networks.*choose",
            code=2,
            inspected=0,
        )
        yield _zip_case(f"nothing with {name}", dictionary({key: b"N"}), "holds no network, but a dictionary with '")
        yield _zip_case(
            f"no tensor with {name}", dictionary({"net.weight": tensor(), key: b"N"}), "a name of [0-9,]+ characters"
        )
    yield _zip_case("global with an escape", glob("os.sys\x1b[2Jtem"), r"names 'os.sys\\x1b\[2Jtem'")
    yield _zip_case("global with many letters", b"c" + b"a" * 5000 + b"\nb\n", "is damaged.*a name has no end")
    yield _zip_case("global that is no text", b"c\xff\xfe\nb\n", "is damaged")
    yield _zip_case(
        "keys of bytes",
        b"}(" + b"".join(b"U\x01" + bytes([i]) + tensor() for i in (200, 201)) + b"u",
        "holds no network",
    )
    yield _zip_case("keys of numbers", b"}(" + number(1) + tensor() + number(2) + tensor() + b"u", "holds no network")
    yield _zip_case(
        "key without letters", dictionary({"net.weight": tensor(), "": tensor(), ".": tensor(), "..": tensor()}), FINE
    )
    yield _zip_case(
        "number of batches",
        state(**{"n.num_batches_tracked": number(1 << 80)}),
        r"no tensors: '(net\.)?n.num_batches_tracked'",
    )
    factor = {"unet_state_dict": state(), "scale_factor": b""}
    for name, value in {
        "a huge number": number(10**400),
        "a tensor": tensor(),
        "NaN": b"G\x7f\xf8" + bytes(6),
        "an escape": text("\x1b[2J"),
    }.items():
        pattern = FINE if name == "NaN" else "scale_factor must be a number"
        yield _zip_case(f"factor of {name}", dictionary({**factor, "scale_factor": value}), pattern)
