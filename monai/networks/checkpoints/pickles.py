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
Reads pickles without running them.

Unpickling calls whatever a pickle names. :func:`decode` calls nothing but what :class:`Known` wraps, which is written
in this package: it imports no module, looks no attribute up and makes no object of a foreign class. The pickle of a
checkpoint is data, and every length, count and key in it may be a lie: each is checked before memory or time is spent
on it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import _compat_pickle

from . import untrusted
from .untrusted import CheckpointRefused, quoted

__all__ = ["RESAVE", "Damaged", "Known", "Record", "decode", "plain_facts", "put"]

RESAVE = (
    "Where you trust the file, load it with the package that wrote it, and save the state dict alone: "
    "torch.save(net.state_dict(), path)"
)
MARK = object()
PLAIN = (str, float, bytes, type(None))
LARGEST_KEY = 1 << 60  # of larger integers many have the same hash, and a dictionary of them takes forever
LONGEST_KEY = 64  # entries of a tuple
LONGEST_LINE = 1_000  # bytes of a module or a name in it
LONGEST_NUMBER = 255  # bytes of an integer; longer ones cannot be printed


class Damaged(CheckpointRefused):
    """
    A pickle that is not whole, or never was one.

    Args:
        source: the file's name.
        why: what was found.
    """

    def __init__(self, source: str, why: str) -> None:
        super().__init__(f"{source} is damaged ({why}): fetch it again.")
        self.why = why


class Known:
    """
    A global of a pickle whose meaning is known.

    Args:
        name: its module and name.
        make: called where the pickle calls it.
    """

    __slots__ = ("make", "name")

    def __init__(self, name: str, make: Callable[..., Any]) -> None:
        self.name, self.make = name, make


class Record(dict):
    """A dictionary that a pickle may give a state: OrderedDict, in which torch keeps the versions of modules."""

    def __init__(self, entries: Any = ()) -> None:
        super().__init__()
        for key, value in entries.items() if isinstance(entries, dict) else entries:
            put(self, key, value)

    def take_state(self, state: Any) -> None:
        """Keep what torch writes beside the tensors of each module."""
        written = state.get("_metadata") if isinstance(state, dict) else None
        if isinstance(written, dict):
            self._metadata = plain_facts(written)


def plain_facts(written: dict) -> dict[str, dict[str, Any]]:
    """What a file tells of modules, by their paths: a version, which is a number, and facts that are plain values."""
    return {
        path: {
            name: fact
            for name, fact in facts.items()
            if isinstance(name, str) and isinstance(fact, int if name == "version" else (*PLAIN, int))
        }
        for path, facts in written.items()
        if isinstance(path, str) and isinstance(facts, dict)
    }


def put(table: dict, key: Any, value: Any) -> None:
    """
    Set an entry of a dictionary, of whose keys none takes long to hash or collides with many others.

    Raises:
        ValueError: for another key, as nested tuples, which a pickle of some bytes makes exponentially large.
    """
    parts = key if isinstance(key, tuple) else (key,)
    if len(parts) > LONGEST_KEY or not all(map(_is_plain_key, parts)):
        raise ValueError("a dictionary has a key that no checkpoint needs")
    table[key] = value


def _is_plain_key(key: Any) -> bool:
    if isinstance(key, int):
        return -LARGEST_KEY < key < LARGEST_KEY
    kind: Any = type(key)
    return isinstance(key, PLAIN) or kind.__hash__ is object.__hash__


def decode(
    source: str,
    data: memoryview,
    find: Callable[[str], Any],
    load: Callable[[Any], Any] | None = None,
    start: int = 0,
    factor: int = 1,
    remedy: str = RESAVE,
) -> tuple[Any, int]:
    """
    Read a pickle of protocol 2 to 5.

    Args:
        source: the file's name, for error messages.
        data: bytes with the pickle.
        find: gives what stands for a global, by its name in Python 3: a :class:`Known`, which the pickle may call, or
            a value.
        load: gives what stands for a persistent id.
        start: where the pickle begins.
        factor: how many times larger than the limits it may be.
        remedy: what to do about one that is larger.

    Returns:
        the object, and where the pickle ends.

    Raises:
        Damaged: if it is damaged, or calls what is not known.
        CheckpointRefused: if it is larger than the limits.
    """
    machine = _Machine(source, data, find, load, start, factor, remedy)
    try:
        return machine.run(), machine.position
    except CheckpointRefused:
        raise
    except (RecursionError, MemoryError):
        raise Damaged(source, "its description does not fit into the memory") from None
    except Exception as error:  # a damaged pickle fails in any way
        why = quoted(str(error))[1:-1]
        raise Damaged(
            source, f"{type(error).__name__} at byte {machine.position:,} of its description: {why}"
        ) from None


class _Machine:
    """The stack machine that a pickle is a program for; see :mod:`pickletools` for its operations."""

    def __init__(
        self,
        source: str,
        data: memoryview,
        find: Callable,
        load: Callable | None,
        start: int,
        factor: int,
        remedy: str,
    ) -> None:
        self.source, self.find, self.load, self.remedy = source, find, load, remedy
        self.most_steps, self.most_calls = factor * untrusted.MAX_STEPS, factor * untrusted.MAX_CALLS
        self.most_entries, self.most_bytes = factor * untrusted.MAX_KEYS, factor * untrusted.MAX_DESCRIPTION
        self.data = data[: start + self.most_bytes]
        self.is_cut = len(self.data) < len(data)
        self.position = start
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.entries = self.copied = self.calls = 0

    def run(self) -> Any:
        data, end = self.data, len(self.data)
        for _ in range(self.most_steps):
            place = self.position
            if place >= end:
                raise self.ended()
            self.position = place + 1
            code = data[place]
            if code == STOP:
                return self.stack.pop()
            OPERATIONS[code](self)
        raise self.too_many(self.most_steps, "steps")

    def take(self, length: int) -> memoryview:
        piece = self.data[self.position : self.position + length]
        if len(piece) < length:
            raise self.ended()
        self.position += length
        return piece

    def byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        length = bytes(self.data[self.position : self.position + LONGEST_LINE]).find(b"\n")
        if length < 0:
            raise ValueError("a name has no end")
        return bytes(self.take(length + 1))[:-1].decode()

    def ended(self) -> Exception:
        return self.too_long() if self.is_cut else EOFError("it ends too early")

    def too_long(self) -> CheckpointRefused:
        return self.too_many(self.most_bytes, "bytes")

    def too_many(self, most: int, what: str) -> CheckpointRefused:
        return CheckpointRefused(
            f"{self.source} describes its tensors in more than {most:,} {what}, which no network needs. {self.remedy}."
        )

    def since_mark(self) -> list[Any]:
        """What was pushed after the last mark, which it is taken away with."""
        place = len(self.stack) - 1
        while self.stack[place] is not MARK:
            place -= 1
            if place < 0:
                raise ValueError("a mark is missing")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def count_entries(self, number: int) -> None:
        self.entries += number
        if self.entries > self.most_entries:
            raise CheckpointRefused(
                f"{self.source} holds more than {self.most_entries:,} names, which no network has. {self.remedy}."
            )

    def unknown(self) -> None:
        raise ValueError(f"operation {self.data[self.position - 1]:#04x} is none of a checkpoint")

    def skip(self, length: int) -> None:
        self.take(length)

    def push_mark(self) -> None:
        self.stack.append(MARK)

    def remember(self) -> None:
        self.memo[self.byte()] = self.stack[-1]

    def remember_far(self) -> None:
        self.memo[self.number(4)] = self.stack[-1]

    def remember_next(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def recall(self) -> None:
        self.stack.append(self.memo[self.byte()])

    def recall_far(self) -> None:
        self.stack.append(self.memo[self.number(4)])

    def push_byte(self) -> None:
        self.stack.append(self.byte())

    def push_number(self, size: int, signed: bool) -> None:
        self.stack.append(int.from_bytes(self.take(size), "little", signed=signed))

    def push_long(self, size: int) -> None:
        if size > LONGEST_NUMBER:
            raise ValueError(f"an integer has {size:,} bytes")
        self.push_number(size, signed=True)

    def push_float(self) -> None:
        self.stack.append(struct.unpack(">d", self.take(8))[0])

    def push_text(self, size: int) -> None:
        self.stack.append(str(self.take(size), "utf-8", "surrogatepass"))

    def push_old_text(self, size: int) -> None:
        """A text of Python 2, or bytes."""
        piece = bytes(self.take(size))
        try:
            self.stack.append(piece.decode())
        except UnicodeDecodeError:
            self.stack.append(piece)

    def push_bytes(self, size: int) -> None:
        self.stack.append(bytes(self.take(size)))

    def push_tuple(self) -> None:
        self.stack.append(tuple(self.since_mark()))

    def push_tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise ValueError("items are missing")
        self.stack[-count:] = [items]

    def push_list(self) -> None:
        self.stack.append(self.since_mark())

    def append(self) -> None:
        item = self.stack.pop()
        if type(self.stack[-1]) is not list:
            raise ValueError("an item is added to what is no list")
        self.stack[-1].append(item)

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("items are added to what is no list")
        self.stack[-1].extend(items)

    def set_entry(self) -> None:
        self.set_entries([self.stack.pop(-2), self.stack.pop()])

    def set_entries(self, items: list[Any]) -> None:
        table = self.stack[-1]
        if not isinstance(table, dict) or len(items) % 2:
            raise ValueError("entries are set in what is no dictionary")
        self.count_entries(len(items) // 2)
        for key, value in zip(items[::2], items[1::2]):
            put(table, key, value)

    def push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the name of a global is no text")
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        self.stack.append(self.find(f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"))

    def call(self) -> None:
        arguments = self.stack.pop()
        known = self.stack.pop()
        if type(known) is not Known or type(arguments) is not tuple:
            raise ValueError(f"{quoted(known)} is called")
        self.calls += 1
        for argument in arguments:  # a call may copy them, and a pickle may call often with the same large one
            if isinstance(argument, (list, dict)):
                self.count_entries(len(argument))
            elif isinstance(argument, (str, bytes)):
                self.copied += len(argument)
        if self.copied > self.most_bytes:
            raise self.too_long()
        if self.calls > self.most_calls:
            raise self.too_many(self.most_calls, "objects")
        self.stack.append(known.make(*arguments))

    def build(self) -> None:
        state = self.stack.pop()
        take = getattr(self.stack[-1], "take_state", None)
        if take is None:
            raise ValueError(f"{quoted(self.stack[-1])} is given a state")
        take(state)

    def push_stored(self) -> None:
        if self.load is None:
            raise ValueError("it refers to another file")
        self.stack.append(self.load(self.stack.pop()))


STOP = ord(".")
CODES: dict[bytes, Callable[[_Machine], Any]] = {
    # control
    b"\x80": lambda m: m.skip(1),  # PROTO
    b"\x95": lambda m: m.skip(8),  # FRAME
    b"(": _Machine.push_mark,
    b"0": lambda m: m.stack.pop(),
    b"1": _Machine.since_mark,  # POP_MARK
    # the memo
    b"q": _Machine.remember,
    b"r": _Machine.remember_far,
    b"\x94": _Machine.remember_next,
    b"h": _Machine.recall,
    b"j": _Machine.recall_far,
    # numbers
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"K": _Machine.push_byte,
    b"M": lambda m: m.push_number(2, False),
    b"J": lambda m: m.push_number(4, True),
    b"G": _Machine.push_float,
    b"\x8a": lambda m: m.push_long(m.byte()),
    b"\x8b": lambda m: m.push_long(m.number(4)),
    # text and bytes
    b"X": lambda m: m.push_text(m.number(4)),
    b"\x8c": lambda m: m.push_text(m.byte()),
    b"\x8d": lambda m: m.push_text(m.number(8)),
    b"U": lambda m: m.push_old_text(m.byte()),
    b"T": lambda m: m.push_old_text(m.number(4)),
    b"B": lambda m: m.push_bytes(m.number(4)),
    b"C": lambda m: m.push_bytes(m.byte()),
    b"\x8e": lambda m: m.push_bytes(m.number(8)),
    b"\x96": lambda m: m.push_bytes(m.number(8)),  # BYTEARRAY8
    # tuples, lists, sets (as lists, which need no hashes) and dictionaries
    b")": lambda m: m.stack.append(()),
    b"t": _Machine.push_tuple,
    b"\x85": lambda m: m.push_tuple_of(1),
    b"\x86": lambda m: m.push_tuple_of(2),
    b"\x87": lambda m: m.push_tuple_of(3),
    b"]": lambda m: m.stack.append([]),
    b"a": _Machine.append,
    b"e": lambda m: m.extend(m.since_mark()),
    b"\x8f": lambda m: m.stack.append([]),  # EMPTY_SET
    b"\x90": lambda m: m.extend(m.since_mark()),  # ADDITEMS
    b"\x91": _Machine.push_list,  # FROZENSET
    b"}": lambda m: m.stack.append({}),
    b"s": _Machine.set_entry,
    b"u": lambda m: m.set_entries(m.since_mark()),
    # objects
    b"c": lambda m: m.push_global(m.line(), m.line()),
    b"\x93": lambda m: m.push_global(m.stack.pop(-2), m.stack.pop()),  # STACK_GLOBAL
    b"R": _Machine.call,
    b"\x81": _Machine.call,  # NEWOBJ
    b"b": _Machine.build,
    b"Q": _Machine.push_stored,
}
OPERATIONS = [CODES.get(bytes([code]), _Machine.unknown) for code in range(256)]
