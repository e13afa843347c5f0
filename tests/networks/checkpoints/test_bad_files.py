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

"""Files that are damaged, are something else, claim absurd sizes or would run code."""

from __future__ import annotations

import builtins
import os
import pickle
import random
import tarfile
import unittest
import warnings
import zipfile
from pathlib import Path
from unittest import mock

import torch
import torch.distributed.checkpoint as dcp
import torch.nn as nn
from parameterized import parameterized
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from monai.networks.checkpoints import load_checkpoint, networks_in, read_checkpoint, untrusted
from monai.networks.checkpoints.distributed import covers_once
from monai.networks.checkpoints.torch_files import LEGACY_MAGIC
from tests.networks.checkpoints.file_case import FileCase

torch.set_num_threads(1)
STATE = {"head.weight": torch.ones(3, 4), "head.bias": torch.zeros(3)}
PAGE = "<!DOCTYPE html>\n<html><body>404: Not found</body></html>\n"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


class Code:
    """What runs a call when it is unpickled."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(marker: Path) -> dict[str, Code]:
    """Calls that would make a file, by the name that the error has to tell."""
    command = f"touch '{marker}'"
    return {
        "(posix|nt).system": Code(os.system, command),
        "eval": Code(builtins.eval, f"open({str(marker)!r}, 'w')"),
        "exec": Code(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "subprocess.Popen": Code(__import__("subprocess").Popen, ["touch", str(marker)]),
        "(io|_io).open": Code(open, str(marker), "w"),
        "torch.hub.load": Code(torch.hub.load, "x/y", "z"),
        "torch.serialization.load": Code(torch.load, str(marker)),
    }


ATTACKS = list(attacks(Path()))


class BadFileCase(FileCase):
    def refused(self, pattern: str, path: Path | None = None, error: type = ValueError) -> None:
        """Each function refuses, and the network is left as it was."""
        path = path or self.path
        net = nn.ModuleDict({"head": nn.Linear(4, 3)})
        before = {key: value.clone() for key, value in net.state_dict().items()}
        for function in (read_checkpoint, networks_in, lambda path: load_checkpoint(net, path)):
            with self.assertRaisesRegex(error, pattern) as caught:
                function(path)
            self.assertTrue(str(caught.exception).startswith(str(path)), caught.exception)
        for key, value in net.state_dict().items():
            self.assertTrue(torch.equal(value, before[key]), key)

    def save_folder(self, content=None) -> Path:
        folder = self.folder / "distributed"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save({"model": STATE} if content is None else content, checkpoint_id=folder)
        return folder


class TestCode(BadFileCase):
    def setUp(self) -> None:
        super().setUp()
        self.marker = self.folder / "ran"

    def tearDown(self) -> None:
        self.assertFalse(self.marker.exists(), "the code ran")

    @parameterized.expand([(name, is_zip) for name in ATTACKS for is_zip in (True, False)])
    def test_in_a_torch_file(self, name, is_zip):
        content = {"model": STATE, "extra": attacks(self.marker)[name]}
        torch.save(content, self.path, _use_new_zipfile_serialization=is_zip)
        self.refused(
            rf"names '{name}'.*may run code: not loaded\. Where you trust.*torch.save\(net.state_dict\(\), path\)"
        )

    def test_the_attacks_would_work(self):
        """Otherwise the tests above would prove nothing."""
        torch.save(attacks(self.marker)["(posix|nt).system"], self.path)
        torch.load(self.path, weights_only=False)
        self.assertTrue(self.marker.exists())
        self.marker.unlink()

    def test_in_a_plain_pickle(self):
        self.path.write_bytes(pickle.dumps(attacks(self.marker)["exec"], protocol=4))
        self.refused("is a pickle that torch.save did not write")

    @parameterized.expand([(name,) for name in ATTACKS])
    def test_in_the_metadata_of_a_folder(self, name):
        folder = self.save_folder()
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        metadata.planner_data = attacks(self.marker)[name]
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with self.assertRaisesRegex(ValueError, rf"\.metadata names '(builtins\.)?{name}'.*may run code: not loaded"):
            read_checkpoint(folder)

    def test_torch_would_run_the_metadata(self):
        folder = self.save_folder()
        (folder / ".metadata").write_bytes(pickle.dumps(attacks(self.marker)["(posix|nt).system"]))
        with self.assertRaises(AttributeError):
            dcp.FileSystemReader(folder).read_metadata()
        self.assertTrue(self.marker.exists())
        self.marker.unlink()

    def test_in_the_data_of_a_folder(self):
        """In an entry that is no tensor it stays unread; in the place of a tensor it is refused."""
        folder = self.save_folder({"model": STATE, "extra": attacks(self.marker)["eval"]})
        self.assertEqual(list(read_checkpoint(folder).state_dict), list(STATE))
        data = folder / "__0_0.distcp"
        torch.save(attacks(self.marker)["eval"], data)
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        for place in metadata.storage_data.values():
            place.offset, place.length = 0, data.stat().st_size
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with self.assertRaisesRegex(ValueError, "__0_0.distcp names 'eval'"):
            read_checkpoint(folder)

    def test_whole_modules(self):
        torch.save(nn.Linear(4, 3), self.path)
        self.refused("names 'torch.nn.modules.linear.Linear'.*torch.save")

    def test_torchscript(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(nn.Linear(4, 3)), str(self.path))
        self.refused(r"is a TorchScript archive.*torch.jit.load\(path\).state_dict\(\)")

    @parameterized.expand([(3,), (4,), (5,)])
    def test_another_pickle_protocol(self, protocol):
        """torch.load(weights_only=True) refuses these; the tensors are the same."""
        for is_zip in (True, False):
            torch.save(STATE, self.path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
            found = read_checkpoint(self.path).state_dict
            self.assertEqual(list(found), list(STATE))
            self.assertTrue(all(torch.equal(found[key], value) for key, value in STATE.items()))


class TestSomethingElse(BadFileCase):
    @parameterized.expand(
        [
            ("empty", b"", r"empty \(0 bytes\): its download or copy failed, fetch it again"),
            ("zeros", bytes(100_000), "without content: its 100,000 bytes begin with zeros"),
            ("page", PAGE.encode(), "a web page, saved by a failed download, beginning with '<!DOCTYPE html>"),
            ("pointer", POINTER.encode(), "a pointer of git-lfs.*run 'git lfs pull'"),
            ("text", "Grüße\n".encode() * 2000, "text, beginning with 'Grüße"),
            ("json", b'{"model_type": "unet"}', "text, beginning with"),
            ("gzip", b"\x1f\x8b" + bytes(50), "a gzip archive: unpack it"),
            ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
            ("numpy", b"\x93NUMPY\1\0" + bytes(50), "an array of numpy"),
            ("empty_zip", b"PK\5\6" + bytes(18), "a zip archive that is empty"),
            (
                "unknown",
                b"\xff\xd8\xff\xe0" + bytes(range(256)),
                "no checkpoint known here.*beginning with ff d8 ff e0",
            ),
        ]
    )
    def test_files(self, _, content, pattern):
        self.path.write_bytes(content)
        self.refused(f"is {pattern}")

    def test_archives(self):
        (self.folder / "note.txt").write_text("note")
        with zipfile.ZipFile(self.path, "w") as archive:
            archive.write(self.folder / "note.txt", "bundle/note.txt")
        self.refused("a zip archive but no file of torch.save. It holds 'bundle/note.txt'")
        with tarfile.open(self.path, "w") as archive:
            archive.add(self.folder / "note.txt", "storages")
        self.refused("is a tar archive: unpack it")

    def test_folders_and_paths(self):
        self.refused("does not exist", self.folder / "missing.pt", FileNotFoundError)
        self.refused("is a folder without '.metadata'.*holds nothing", self.folder)
        self.path.write_bytes(b"x")
        self.refused("it holds checkpoint.pt: pass the file inside", self.folder)
        self.refused("is neither a file nor a folder", Path(os.devnull))


class TestDamaged(BadFileCase):
    @parameterized.expand([(True,), (False,)])
    def test_truncated_torch_files(self, is_zip):
        torch.save({"model": STATE}, self.path, _use_new_zipfile_serialization=is_zip)
        content = self.path.read_bytes()
        for length in range(1, len(content), 61):
            self.path.write_bytes(content[:length])
            with self.assertRaises(ValueError) as caught:
                read_checkpoint(self.path)
            self.assertTrue(str(caught.exception).startswith(f"{self.path} is "), caught.exception)
        self.refused("is damaged")

    @parameterized.expand([(True,), (False,)])
    def test_flipped_bytes(self, is_zip):
        """Whatever a byte becomes, the error is one of ours, or the load works: no crash, no code."""
        torch.save({"model": STATE}, self.path, _use_new_zipfile_serialization=is_zip)
        content = bytearray(self.path.read_bytes())
        for place in range(0, len(content), 7):
            broken = content.copy()
            broken[place] ^= 0x55
            self.path.write_bytes(broken)
            try:
                read_checkpoint(self.path)
            except ValueError as error:
                self.assertIn(str(self.path), str(error))

    def test_a_legacy_head_alone(self):
        self.path.write_bytes(LEGACY_MAGIC)
        self.refused("is damaged")

    @parameterized.expand(
        [
            ("data_is_missing", lambda folder: (folder / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
            ("data_is_cut", lambda folder: os.truncate(folder / "__0_0.distcp", 700), "has 700 bytes"),
            ("metadata_is_cut", lambda folder: os.truncate(folder / ".metadata", 300), "cannot be read"),
            ("metadata_is_empty", lambda folder: os.truncate(folder / ".metadata", 0), "cannot be read"),
            ("no_metadata", lambda folder: (folder / ".metadata").write_bytes(pickle.dumps([1])), "holds a list"),
        ]
    )
    def test_folders(self, _, damage, pattern):
        folder = self.save_folder()
        damage(folder)
        with self.assertRaisesRegex(ValueError, f"{folder} is a damaged folder.*{pattern}.*Copy the whole folder"):
            read_checkpoint(folder)

    @parameterized.expand(
        [
            (
                "outside",
                lambda index, place: setattr(place, "relative_path", "../checkpoint.pt"),
                "outside of the folder",
            ),
            ("absolute", lambda index, place: setattr(place, "relative_path", "/etc/passwd"), "outside of the folder"),
            ("parent", lambda index, place: setattr(place, "relative_path", ".."), "outside of the folder"),
            ("number", lambda index, place: setattr(place, "relative_path", 3), "outside of the folder"),
            ("offset", lambda index, place: setattr(place, "offset", -5), "lies at -5, with"),
            ("length", lambda index, place: setattr(place, "length", "x"), "lies at .*'x' bytes"),
            (
                "no_place",
                lambda index, place: object.__setattr__(index, "offset", torch.Size([7])),
                "nothing tells where",
            ),
        ]
    )
    def test_metadata_that_lies(self, _, change, pattern):
        folder = self.save_folder()
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        places = list(metadata.storage_data.items())
        for index, place in places:
            change(index, place)
        metadata.storage_data = dict(places)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with self.assertRaisesRegex(ValueError, f"{folder} is a damaged folder.*{pattern}"):
            read_checkpoint(folder)

    @parameterized.expand(
        [
            ("overlap", (0, 0), (1, 0), False),  # as many elements as the whole has: the last row stays as memory was
            ("same_place", (0, 0), (0, 0), False),
            ("gap", (0, 0), (3, 0), False),
            ("beyond", (0, 0), (4, 0), False),
            ("one_after_the_other", (2, 0), (0, 0), True),
        ]
    )
    def test_pieces(self, _, first, second, is_sound):
        folder = self.save_folder({"a": torch.full((2, 3), 1.0), "b": torch.full((2, 3), 2.0)})
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        places = {index.fqn: place for index, place in metadata.storage_data.items()}
        described = metadata.state_dict_metadata.pop("a")
        described.size = torch.Size([4, 3])
        described.chunks = [ChunkStorageMetadata(torch.Size(at), torch.Size([2, 3])) for at in (first, second)]
        metadata.state_dict_metadata = {"weight": described}
        corners = {first: places["a"], second: places["b"]}
        metadata.storage_data = {MetadataIndex("weight", torch.Size(at)): place for at, place in corners.items()}
        metadata.planner_data = {"weight": ("weight",)}
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        if is_sound:
            weight = read_checkpoint(folder).state_dict["weight"]
            self.assertEqual(weight[:, 0].tolist(), [2, 2, 1, 1])
            return
        with self.assertRaisesRegex(
            ValueError, r"pieces of 'weight' do not make up its size \[4, 3\]: they overlap, or"
        ):
            read_checkpoint(folder)

    def test_what_covers_once(self):
        """Against counting, in up to three dimensions."""
        draw = random.Random(0)
        sound = 0
        for _ in range(3000):
            size = [draw.randrange(1, 4) for _ in range(draw.randrange(4))]
            boxes = [((0,) * len(size), tuple(size))]
            for _ in range(draw.randrange(5)):  # cut some of them in two
                corner, shape = boxes.pop(draw.randrange(len(boxes)))
                dim = draw.randrange(len(size)) if size else None
                at = draw.randrange(shape[dim] + 1) if dim is not None else 0
                if dim is None:
                    boxes.append((corner, shape))
                    continue
                boxes.append((corner, (*shape[:dim], at, *shape[dim + 1 :])))
                boxes.append(
                    (
                        (*corner[:dim], corner[dim] + at, *corner[dim + 1 :]),
                        (*shape[:dim], shape[dim] - at, *shape[dim + 1 :]),
                    )
                )
            for _ in range(draw.randrange(3)):  # and change what comes out
                place = draw.randrange(len(boxes))
                corner, shape = boxes[place]
                moved = tuple(max(0, start + draw.choice([0, 0, 1, -1])) for start in corner)
                boxes[place] = moved, tuple(max(0, length + draw.choice([0, 0, 1, -1])) for length in shape)
            count = torch.zeros([length + 8 for length in size])
            for corner, shape in boxes:
                count[tuple(slice(start, start + length) for start, length in zip(corner, shape))] += 1
            whole = torch.zeros_like(count)
            whole[tuple(slice(length) for length in size)] = 1
            expected = torch.equal(count, whole)
            self.assertEqual(covers_once(size, boxes), expected, (size, boxes))
            sound += expected
        self.assertTrue(500 < sound < 2500, sound)

    def test_another_tensor_than_the_metadata_claims(self):
        folder = self.save_folder()
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        described = metadata.state_dict_metadata["model.head.weight"]
        described.size = described.chunks[0].sizes = torch.Size([2, 4])
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with self.assertRaisesRegex(ValueError, r"another tensor than the \[2, 4\]"):
            read_checkpoint(folder)
        described.chunks[0].sizes = torch.Size([3, 4])
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with self.assertRaisesRegex(ValueError, r"pieces of 'model.head.weight' do not make up"):
            read_checkpoint(folder)


class TestAbsurdSizes(BadFileCase):
    def rezip(self, compression: int) -> None:
        """The same archive, packed again, as a zip program does."""
        packed = self.folder / "packed.pt"
        with zipfile.ZipFile(self.path) as old, zipfile.ZipFile(packed, "w", compression) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        os.replace(packed, self.path)

    def test_a_zip_bomb(self):
        torch.save({"model.weight": torch.zeros(64, 1 << 16)}, self.path)
        self.rezip(zipfile.ZIP_DEFLATED)
        self.assertLess(self.path.stat().st_size, 1 << 16)
        with mock.patch.object(zipfile.ZipFile, "read") as unpack:
            self.refused("would unpack from [0-9,]+ to 16,[0-9,]+ bytes, more than 20-fold, as a zip bomb")
            unpack.assert_not_called()

    def test_a_compressed_file_that_is_none(self):
        """Its tensors cannot be mapped: they would come out as what deflate made of them."""
        torch.save({"model": STATE | {"body": torch.arange(4096.0)}}, self.path)
        self.rezip(zipfile.ZIP_DEFLATED)
        found = read_checkpoint(self.path).state_dict
        self.assertTrue(torch.equal(found["body"], torch.arange(4096.0)))

    def test_packed_again_without_compression(self):
        torch.save({"model": STATE}, self.path)
        self.rezip(zipfile.ZIP_STORED)
        self.assertTrue(torch.equal(read_checkpoint(self.path).state_dict["head.weight"], STATE["head.weight"]))

    def refused_for_its_keys(self, keys: int, is_zip: bool) -> None:
        torch.save({f"k{i}": None for i in range(keys)}, self.path, _use_new_zipfile_serialization=is_zip)
        with self.assertRaisesRegex(ValueError, f"holds more than {untrusted.MAX_KEYS:,} names, which no network has"):
            read_checkpoint(self.path)

    @parameterized.expand([(True,), (False,)])
    def test_many_keys(self, is_zip):
        with mock.patch.object(untrusted, "MAX_KEYS", 10_000):
            self.refused_for_its_keys(10_001, is_zip)

    def test_a_million_keys(self):
        self.refused_for_its_keys(1_000_001, is_zip=True)

    @parameterized.expand([(True,), (False,)])
    def test_a_long_description(self, is_zip):
        torch.save({"model": STATE, "notes": ["x" * 900, "y" * 900]}, self.path, _use_new_zipfile_serialization=is_zip)
        with mock.patch.object(untrusted, "MAX_DESCRIPTION", 1000):
            self.refused("describes its tensors in .*1,000")

    def test_keys_of_a_folder(self):
        folder = self.save_folder()
        with mock.patch.object(untrusted, "MAX_KEYS", 1), self.assertRaisesRegex(ValueError, "more than 1 names"):
            read_checkpoint(folder)
        with (
            mock.patch.object(untrusted, "MAX_DESCRIPTION", 10),
            self.assertRaisesRegex(ValueError, "more than 10 bytes"),
        ):
            read_checkpoint(folder)

    def test_a_number_repeated_beyond_all_memory(self):
        torch.save({"model.weight": torch.ones(1, 1).expand(1 << 20, 1 << 20)}, self.path)
        self.assertLess(self.path.stat().st_size, 2000)
        with self.assertRaisesRegex(ValueError, r"claims 4,398,046,511,104 bytes.*of which 4 are there"):
            read_checkpoint(self.path)

    def test_tensors_without_values(self):
        torch.save({"model.weight": torch.ones(2, 2, device="meta")}, self.path)
        with self.assertRaisesRegex(ValueError, "'model.weight'|'weight' has no values"):
            read_checkpoint(self.path)


if __name__ == "__main__":
    unittest.main()
