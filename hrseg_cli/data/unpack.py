"""Safe unpacking of untrusted archives: no files outside the folder, no links, no archive bombs, no partial results.

The content is first unpacked to a hidden folder next to the target. A new target appears by a single rename; files are
merged into an existing one, and a stamp file written last records that it is complete.
"""

from __future__ import annotations

import errno
import json
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, NoReturn, cast

from hrseg_cli.data.paths import below, fault
from hrseg_cli.errors import HrsegError
from hrseg_cli.limits import TAR_HEADER, TAR_HEADERS, XZ_MEMORY, ZIP_DIRECTORY
from hrseg_cli.parsing import read_json
from hrseg_cli.writing import only_one

Kind = Literal["zip", "tar", "weights"]
Progress = Callable[[int, int | None], None]

STAMP = ".hrseg-unpacked.json"
CHUNK = 1 << 20
FOLDER_BYTES = 4096  # approximate disk space of an empty folder
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression method that Python does not support
    ValueError,  # names that are not text
    RecursionError,  # headers about headers about headers
    struct.error,
)


@dataclass(frozen=True)
class Limits:
    """How much an archive of a given size may contain. Images hardly compress, so legitimate archives stay far below.

    ratio: unpacked bytes per byte of archive, beyond ``floor`` bytes. file_bytes: bytes of archive required per file,
    beyond ``files`` files.
    """

    ratio: int = 50
    floor: int = 256 << 20
    file_bytes: int = 256
    files: int = 10_000

    def bytes(self, archive: Path) -> int:
        """Maximum unpacked size in bytes."""
        return max(self.floor, self.ratio * archive.stat().st_size)


def unpack(
    archive: Path,
    into: Path,
    *,
    kind: Kind,
    inside: str = "",
    name: str | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> int:
    """Unpack an archive into a folder and return the number of files.

    kind: "zip", or "tar", plain or in any compression that Python supports.
    inside: the folder of the archive to extract. Without it, single top-level folders are stripped:
        ``Set/images/1.jpg`` and ``Set/masks/1.png`` become images/ and masks/.
    name: name of the archive in the stamp [its file name].
    progress: called with (bytes done, total bytes).
    limits: protection against archives made to fill the disk.

    Existing files stay, unless the archive has a file of the same name. Raises HrsegError, which names the archive and
    the offending entry, and leaves the folder unchanged; also while another hrseg unpacks there.
    """
    name, limits = name or archive.name, limits or Limits()
    into = into.resolve()  # if it is a link to another disk, the temporary folder must be there too
    temporary = into.parent / f".{into.name}.unpacking"
    with _errors_named(archive, into), only_one(into, str(into)):
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
        require_space(into.parent, min(_size_said(archive, kind), limits.bytes(archive)))
        temporary.mkdir(parents=True)
        try:
            count = _fill(temporary, archive, kind, inside, progress, limits)
            source = _base(temporary, inside, archive)
            stamps = {**_stamps(into), name: {"bytes": archive.stat().st_size, "files": count}}
            new = not into.exists()
            if not new:
                for place, folders, _ in os.walk(source):
                    for (
                        folder
                    ) in folders:  # renaming a file onto a link replaces the link, but a folder would be entered
                        below(into, Path(place, folder, "any").relative_to(source).as_posix(), archive)
                _merge(source, into)
            stamp = (source if new else temporary) / STAMP
            stamp.write_text(json.dumps(stamps) + "\n", encoding="utf-8")
            os.replace(*(source, into) if new else (stamp, into / STAMP))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return count


def is_unpacked(name: str, into: Path) -> bool:
    """Whether the archive of that name was unpacked into the folder completely."""
    return name in _stamps(into)


def check_archive(archive: Path, kind: Kind, limits: Limits | None = None) -> None:
    """Read an archive completely and verify its checksums. Raises HrsegError if it is damaged or unsafe.

    Weights are not unpacked. Those in a zip archive, as PyTorch writes, have checksums too.
    """
    if kind == "weights":
        with archive.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        try:
            if zipped and (bad := zipfile.ZipFile(archive).testzip()):
                raise HrsegError(f"{archive}: {bad[:100]} is damaged; download it again")
        except DAMAGED as error:
            raise HrsegError(f"{archive}: damaged or truncated ({str(error)[:100]}); download it again") from None
        return
    with _errors_named(archive, archive.parent):
        for _, stream in _entries(archive, kind, "", None, limits or Limits()):
            while stream is not None and stream(CHUNK):
                pass


def looks_like(head: bytes, kind: Kind) -> bool:
    """Whether a file with these first bytes (512 or more, unless it is shorter) can be an archive of that kind."""
    if kind == "zip":
        return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    if kind == "weights":  # of PyTorch, zipped or pickled, or safetensors
        return head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")) or head[8:9] == b"{"
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")) or head[257:262] == b"ustar"


def require_space(folder: Path, needed: int) -> None:
    """Raises HrsegError, which says how much is missing, unless the disk of ``folder`` has enough free space."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    margin = 64 << 20  # left free for other programs
    free = shutil.disk_usage(place).free
    if needed + margin > free:
        raise HrsegError(
            f"{folder}: needs {size_text(needed)}, {size_text(free)} are free; free another "
            f"{size_text(needed + margin - free)} (including a margin of {size_text(margin)}) or use another `root`"
        )


def size_text(count: int) -> str:
    """Bytes as readable text, such as 3.5 GB."""
    size, units = float(count), ["bytes", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if size >= 100 or units[0] == "bytes" else f"{size:.1f} {units[0]}"


# ---- reading ---------------------------------------------------------------------------------------------------------

Read = Callable[[int], bytes]


class _Allowance:
    """Counts what is actually unpacked, because the sizes that an archive declares may be false."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self._name = archive.name
        self._bytes = limits.bytes(archive)
        self._files = max(limits.files, archive.stat().st_size // limits.file_bytes)
        self._seen: set[str] = set()

    def file(self, path: PurePosixPath) -> None:
        # Two names that differ only in case are the same file on macOS and Windows.
        key = unicodedata.normalize("NFC", str(path)).casefold()
        if key in self._seen:
            raise HrsegError(f"{self._name}: duplicate entry {str(path)!r} (ignoring case); get an intact archive")
        self._seen.add(key)
        if len(self._seen) > self._files:
            raise HrsegError(f"{self._name}: more than {self._files} files, too many for its size; not unpacked")

    def spend(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < 0:
            raise HrsegError(f"{self._name}: unpacks to far more than its size can legitimately contain; not unpacked")


def _entries(
    archive: Path, kind: Kind, inside: str, progress: Progress | None, limits: Limits
) -> Iterator[tuple[PurePosixPath, Read | None]]:
    """(path, read) for every file and (path, None) for every folder of an archive, all safe to write."""
    allowance = _Allowance(archive, limits)
    prefix = PurePosixPath(inside).parts
    for path, read in (_zip_entries if kind == "zip" else _tar_entries)(archive, prefix, progress):
        if read is None:
            allowance.spend(FOLDER_BYTES)
            yield path, None
            continue
        allowance.file(path)

        def counted(count: int, read: Read = read) -> bytes:
            data = read(count)
            allowance.spend(len(data))
            return data

        yield path, counted


def _zip_entries(
    archive: Path, prefix: tuple[str, ...], progress: Progress | None
) -> Iterator[tuple[PurePosixPath, Read | None]]:
    done = 0
    with _zip(archive) as file:
        total = sum(info.file_size for info in file.infolist())
        for info in file.infolist():
            path = _safe(archive, info.filename, prefix)
            if path is None:
                continue
            mode = info.external_attr >> 16
            if info.is_dir():
                yield path, None
                continue
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise _refused(archive, info.filename, "a link or device")
            if info.flag_bits & 1:
                raise HrsegError(f"{archive}: is encrypted; unpack it with its password and use the folder")
            if info.compress_type == zipfile.ZIP_LZMA:  # may ask for 4 GB of memory, and zipfile gives it
                raise HrsegError(f"{archive}: is packed with LZMA; unpack it yourself and use the folder")
            with file.open(info) as stream:
                yield path, stream.read
            done += info.file_size
            if progress:
                progress(done, total)


def _zip(archive: Path) -> zipfile.ZipFile:
    """The open archive. zipfile keeps its list of files, so its size is checked first."""
    size = archive.stat().st_size
    with archive.open("rb") as file:
        file.seek(max(0, size - (1 << 16) - 98))  # a comment of 64 kB, and the records before it
        tail = file.read()
        # zipfile may take any of these for the last record, and look for the 64-bit one in front of it or elsewhere.
        for at in (found.start() for found in re.finditer(b"PK\x05\x06", tail)):
            listed = int.from_bytes(tail[at + 12 : at + 16], "little")
            if listed == 0xFFFFFFFF:
                file.seek(min(int.from_bytes(tail[max(0, at - 12) : max(0, at - 4)], "little"), size))
                wide = (tail[max(0, at - 76) : max(0, at - 20)], file.read(56))
                sizes = [int.from_bytes(one[40:48], "little") for one in wide if one.startswith(b"PK\x06\x06")]
                listed = max(sizes, default=0)
            if listed > max(ZIP_DIRECTORY, size // 32):
                raise HrsegError(f"{archive}: a list of files of {size_text(listed)}; get an intact archive")
    return zipfile.ZipFile(archive)


class _Xz:
    """An .xz file as tarfile reads it, from the start to the end. Python's own reader allocates what the file asks."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._place, self._rest = file, 0, b""
        self._unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)

    def read(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count > 0 and (part := self._part(count)):
            parts.append(part)
            count -= len(part)
            self._place += len(part)
        return b"".join(parts)

    def _part(self, count: int) -> bytes:
        while True:
            if self._unpack.eof:  # streams may follow each other, with zeros in between
                self._rest = self._unpack.unused_data.lstrip(b"\0") or self._file.read(CHUNK).lstrip(b"\0")
                if not self._rest:
                    return b""
                self._unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)
            data = self._rest or (self._file.read(CHUNK) if self._unpack.needs_input else b"")
            if not data and self._unpack.needs_input:
                raise EOFError("it ends too early")
            self._rest = b""
            if part := self._unpack.decompress(data, count):
                return part

    def tell(self) -> int:
        return self._place

    def seek(self, place: int) -> None:
        while self._place < place and self.read(min(CHUNK, place - self._place)):
            pass
        if self._place != place:
            raise EOFError("it ends too early")


class _Member(tarfile.TarInfo):
    """A header that is refused before it is read if it is too long: tarfile reads long names as a whole, and keeps all
    headers."""

    left: int
    archive: Path

    def _proc_member(self, file: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type == tarfile.GNUTYPE_SPARSE:
            self._sparse()
        if self.type in tarfile.GNU_TYPES or self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
            type(self).left -= self.size
            if self.size > TAR_HEADER or type(self).left < 0:
                raise HrsegError(f"{self.archive}: a header of {size_text(self.size)}; get an intact archive")
        found: tarfile.TarInfo = super()._proc_member(file)  # type: ignore[misc]
        return found

    def _sparse(self, *_: object) -> NoReturn:
        raise _refused(self.archive, self.name, "a sparse file")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse


def _tar_entries(
    archive: Path, prefix: tuple[str, ...], progress: Progress | None
) -> Iterator[tuple[PurePosixPath, Read | None]]:
    total = archive.stat().st_size
    members = type("Member", (_Member,), {"left": max(TAR_HEADERS, total), "archive": archive})
    with archive.open("rb") as raw, _tar(raw, members) as file:
        for info in file:
            path = _safe(archive, info.name, prefix)
            if path is None:
                continue
            if info.isdir():
                yield path, None
                continue
            stream = file.extractfile(info) if info.isreg() else None
            if stream is None:
                raise _refused(archive, info.name, "a link or device")
            yield path, stream.read
            if progress:
                progress(raw.tell(), total)
        # tarfile accepts a missing end marker, and stops before the checksum of a gzip file.
        assert file.fileobj is not None
        if not file.fileobj.read(tarfile.BLOCKSIZE):
            raise EOFError("it ends too early")
        while file.fileobj.read(CHUNK):
            pass


def _tar(raw: BinaryIO, members: type[tarfile.TarInfo]) -> tarfile.TarFile:
    xz = raw.read(6) == b"\xfd7zXZ\x00"
    raw.seek(0)
    if xz:
        return tarfile.open(fileobj=cast(BinaryIO, _Xz(raw)), mode="r:", tarinfo=members)
    return tarfile.open(fileobj=raw, mode="r:*", tarinfo=members)


def _safe(archive: Path, name: str, prefix: tuple[str, ...]) -> PurePosixPath | None:
    """The path of an entry below ``prefix``; None for entries that are not extracted."""
    path = PurePosixPath(name.replace("\\", "/"))
    leaves = path.parts and fault(path.as_posix())
    if leaves or re.match("[A-Za-z]:", name) or re.search(r"[\x00-\x1f]", name):
        raise _refused(archive, name, "a path outside the folder")
    parts = path.parts
    if parts[: len(prefix)] != prefix:
        return None
    if not parts or parts[0] == "__MACOSX" or parts[-1] in (".DS_Store", "Thumbs.db", STAMP) or parts[-1][:2] == "._":
        return None
    return path


def _refused(archive: Path, name: str, what: str) -> HrsegError:
    return HrsegError(f"{archive}: contains {what} ({name!r}); not unpacked; get the archive from its source")


# ---- writing ---------------------------------------------------------------------------------------------------------


def _size_said(archive: Path, kind: Kind) -> int:
    if kind == "tar":
        return archive.stat().st_size
    with _zip(archive) as file:
        return sum(info.file_size for info in file.infolist())


def _fill(folder: Path, archive: Path, kind: Kind, inside: str, progress: Progress | None, limits: Limits) -> int:
    count = 0
    for path, read in _entries(archive, kind, inside, progress, limits):
        target = folder / path
        if read is None:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            while data := read(CHUNK):
                file.write(data)
        count += 1
    return count


def _base(folder: Path, inside: str, archive: Path) -> Path:
    if inside:
        if not (folder / inside).is_dir():
            raise HrsegError(f"{archive}: contains no folder {inside}; this is not the expected archive")
        return folder / inside
    while True:
        entries = list(folder.iterdir())
        if not entries:
            raise HrsegError(f"{archive}: contains no files; get the archive from its source")
        if len(entries) > 1 or not entries[0].is_dir():
            return folder
        folder = entries[0]


def _merge(source: Path, target: Path) -> None:
    for entry in list(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _merge(entry, place)
        else:
            os.replace(entry, place)


def _stamps(into: Path) -> dict[str, dict[str, int]]:
    try:
        return dict(read_json(into / STAMP))
    except (OSError, ValueError, TypeError):
        return {}


@contextmanager
def _errors_named(archive: Path, into: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise _damaged(archive, error) from None
    except OSError as error:
        if error.errno in NO_ROOM:
            raise HrsegError(
                f"{into}: the disk is full while unpacking {archive.name}; free some space, then rerun"
            ) from None
        if error.errno is None:  # gzip and bz2 raise plain OSErrors
            raise _damaged(archive, error) from None
        place = error.filename or into
        raise HrsegError(f"{place}: {error.strerror} while unpacking {archive.name}; fix that, then rerun") from None


def _damaged(archive: Path, error: Exception) -> HrsegError:
    reason = str(error).split("\n")[0] or type(error).__name__
    return HrsegError(f"{archive}: damaged or not an archive ({reason}); download it again")
