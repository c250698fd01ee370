"""The table of contents of a PyTorch checkpoint, ``pytorch_model.bin``, without PyTorch.

Such a file is a zip archive of uncompressed members: ``data.pkl`` describes the tensors,
``data/0``, ``data/1`` ... hold their numbers. Every claim of the description is checked against
the members' real sizes.
"""

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path

from ..errors import CheckpointError, FileMissingError, UnsafeFileError
from ..files import require_regular_file
from .tensors import STORED, TensorInfo
from .torch_pickle import Storage, View, read_pickle

PICKLE_LIMIT = 2**20
"""Largest description read, in bytes; that of the largest Mamba is about 100 kB."""
DIRECTORY_LIMIT = 4 * 2**20
"""Largest zip directory read, in bytes; ten times what the largest Mamba needs."""

LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, of the extra field
ENCRYPTED = 1
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # how torch.save began until 1.5

ADVICE = "; torch.save of PyTorch 1.6 or newer makes one, safetensors is better still"


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return what a PyTorch checkpoint holds, by the names in the file; no weight is read.

    Raises FileMissingError if it is no regular file, CheckpointError if it is damaged or not
    such a checkpoint, UnsafeFileError if it asks for more than a dictionary of tensors.
    """
    path = require_regular_file(path)
    try:
        with _FrugalFile(path) as file:
            return _Archive(path, file).tensors()
    except OSError as error:
        if isinstance(error, CheckpointError):  # FileMissingError is both
            raise
        raise FileMissingError(f"{path}: cannot be read: {error.strerror or error}") from error


class _FrugalFile(io.FileIO):
    """A file that is not read in large pieces: zipfile takes in a directory of any size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:  # zipfile reads the last 64 kB so
            size = DIRECTORY_LIMIT
        if size > DIRECTORY_LIMIT:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size) or b""


class _Archive:
    """The members of a checkpoint; each is checked before it is used."""

    def __init__(self, path: Path, file: _FrugalFile):
        self.path, self.file = path, file
        self.size = path.stat().st_size
        self.starts: dict[str, int] = {}
        self.members = {member.filename: member for member in self._directory()}
        pickles = [
            name for name in self.members if name.count("/") == 1 and name[-9:] == "/data.pkl"
        ]
        if len(pickles) != 1:
            raise CheckpointError(
                f"{path}: expected one data.pkl inside, found {len(pickles)}{ADVICE}"
            )
        self.root = pickles[0].removesuffix("data.pkl")
        for name in self.members:
            if not name.startswith(self.root) or ".." in name.split("/"):
                raise UnsafeFileError(
                    f"{path}: expected members below {self.root!r}, found {name!r:.80}"
                )

    def _directory(self) -> list[zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self.file) as archive:  # type: ignore[arg-type]
                members = archive.infolist()
        # What zipfile raises for damaged directories, depending on what is damaged.
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            found = self._legacy() or str(error)
        except struct.error:
            found = "a damaged directory"
        else:
            if len({member.filename for member in members}) == len(members):
                return members
            found = "two members of one name"
        raise CheckpointError(f"{self.path}: expected PyTorch's zip format, found: {found}{ADVICE}")

    def _legacy(self) -> str | None:
        self.file.seek(0)
        first = self.file.read(14)
        return "the older format of PyTorch 1.5" if first == LEGACY_MAGIC else None

    def tensors(self) -> dict[str, TensorInfo]:
        """Return {tensor name: where it is}."""
        if self._read("byteorder", 16, b"little") != b"little":
            raise CheckpointError(f"{self.path}: expected little-endian numbers, found others")
        pickled = self._read("data.pkl", PICKLE_LIMIT)
        views = read_pickle(pickled, f"{self.path}: data.pkl")
        tensors = {name: self._tensor(name, view) for name, view in views.items()}
        claimed = sum(math.prod(v.shape) * _itemsize(v.storage) for v in views.values())
        if claimed > 2 * self.size:  # a tied head counts twice; more sharing is an attack
            raise UnsafeFileError(
                f"{self.path}: expected tensors of about {self.size} bytes, found {claimed}: many "
                "share the same numbers"
            )
        return tensors

    def _tensor(self, name: str, view: View) -> TensorInfo:
        storage, count = view.storage, math.prod(view.shape)
        where = f"{self.path}: tensor {name!r:.80}"
        member = f"data/{storage.key}"
        start, size = self._member(member)
        if size != storage.count * _itemsize(storage):
            raise CheckpointError(
                f"{where}: expected {storage.count} numbers of {storage.dtype} in {member}, "
                f"found {size} bytes"
            )
        if view.start + count > storage.count:
            raise CheckpointError(
                f"{where}: expected elements {view.start} to {view.start + count} in {member}, "
                f"found {storage.count}"
            )
        if not _is_row_major(view):
            raise CheckpointError(
                f"{where}: expected the strides of consecutive rows, found {view.strides} for the "
                f"shape {view.shape}"
            )
        offset = start + view.start * _itemsize(storage)
        return TensorInfo(name, storage.dtype, view.shape, self.path, offset)

    def _read(self, name: str, limit: int, default: bytes | None = None) -> bytes:
        if default is not None and self.root + name not in self.members:
            return default
        start, size = self._member(name)
        if size > limit:
            raise CheckpointError(
                f"{self.path}: {name}: expected at most {limit} bytes, found {size}"
            )
        self.file.seek(start)
        data = self.file.read(size)
        if zlib.crc32(data) != self.members[self.root + name].CRC:
            raise CheckpointError(f"{self.path}: {name}: expected its checksum, found another")
        return data

    def _member(self, name: str) -> tuple[int, int]:
        """Return where a member's bytes start in the file, and how many there are."""
        where = f"{self.path}: {name}"
        member = self.members.get(self.root + name)
        if member is None:
            raise CheckpointError(f"{where}: expected inside the file, found no such member")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ENCRYPTED:
            raise UnsafeFileError(f"{where}: expected plain bytes, found them compressed")
        if name not in self.starts:
            self.starts[name] = self._start(member, where)
        if self.starts[name] + member.file_size > self.size:
            raise CheckpointError(
                f"{where}: expected {member.file_size} bytes, found the end of the file"
            )
        return self.starts[name], member.file_size

    def _start(self, member: zipfile.ZipInfo, where: str) -> int:
        # Name and padding before the bytes may differ in length from the directory's.
        if 0 <= member.header_offset <= self.size - LOCAL_HEADER.size:
            self.file.seek(member.header_offset)
            magic, name, extra = LOCAL_HEADER.unpack(self.file.read(LOCAL_HEADER.size))
            if magic == b"PK\3\4":
                return member.header_offset + LOCAL_HEADER.size + name + extra
        raise CheckpointError(f"{where}: expected a zip member, found other bytes")


def _itemsize(storage: Storage) -> int:
    return STORED[storage.dtype].itemsize


def _is_row_major(view: View) -> bool:
    if len(view.strides) != len(view.shape):
        return False
    step = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
