"""Archives, unpacked without trust: nothing outside the folder, no links, no bombs, nothing half done that looks whole.

The content goes into a hidden folder beside the target first. A new target appears by one rename; an existing one is
added to, and a stamp in it says last that all is there.
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
from typing import Literal

from hrseg_cli.data.paths import below, fault
from hrseg_cli.errors import HrsegError
from hrseg_cli.writing import only_one

Kind = Literal["zip", "tar"]
Progress = Callable[[int, int | None], None]

STAMP = ".hrseg-unpacked.json"
CHUNK = 1 << 20
FOLDER_BYTES = 4096  # an empty folder takes about as much of a disk
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAMAGED = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a compression that Python lacks
    ValueError,  # names that are no text
    struct.error,
)


@dataclass(frozen=True)
class Limits:
    """How much an archive of a given size may hold; pictures hardly compress, so honest ones stay far below.

    ratio: bytes unpacked per byte of archive, beyond ``floor`` bytes. file_bytes: bytes of archive each file must
    bring, beyond ``files`` files.
    """

    ratio: int = 50
    floor: int = 256 << 20
    file_bytes: int = 256
    files: int = 10_000

    def bytes(self, archive: Path) -> int:
        """Bytes that may come out of it."""
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

    kind: "zip", or "tar", plain or compressed in any way Python knows.
    inside: the folder of the archive that is meant. Without it, a folder that is alone on its floor is left out:
        ``Set/images/1.jpg`` and ``Set/masks/1.png`` come to lie as images/ and masks/.
    name: what the stamp calls the archive [its file name].
    progress: called with (bytes done, bytes in all).
    limits: against archives made to fill a disk.

    What the folder holds already stays, but for files of the same name. Raises HrsegError, which names the archive and
    the entry at fault, and leaves the folder as it was; so it does while another hrseg unpacks there.
    """
    name, limits = name or archive.name, limits or Limits()
    into = into.resolve()  # a link to another disk: the temporary folder belongs there too
    temporary = into.parent / f".{into.name}.unpacking"
    with _errors_named(archive, into), only_one(into, str(into)):
        shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
        require_space(into.parent, min(_size_said(archive, kind), limits.bytes(archive)))
        temporary.mkdir(parents=True)
        try:
            count = _fill(temporary, archive, kind, inside, progress, limits)
            source = _base(temporary, inside, archive)
            stamps = {**_stamps(into), name: {"bytes": archive.stat().st_size, "files": count}}
            new = not into.exists()
            if not new:
                for place, folders, _ in os.walk(source):
                    for folder in folders:  # a file that is renamed onto a link replaces it, but a folder is entered
                        below(into, Path(place, folder, "any").relative_to(source).as_posix(), archive)
                _merge(source, into)
            stamp = (source if new else temporary) / STAMP
            stamp.write_text(json.dumps(stamps) + "\n", encoding="utf-8")
            os.replace(*(source, into) if new else (stamp, into / STAMP))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return count


def is_unpacked(name: str, into: Path) -> bool:
    """Whether the archive of that name was unpacked into the folder, to the end."""
    return name in _stamps(into)


def check_archive(archive: Path, kind: Kind, limits: Limits | None = None) -> None:
    """Read an archive through, against its own check sums. Raises HrsegError where it is damaged or unsafe."""
    with _errors_named(archive, archive.parent):
        for _, stream in _entries(archive, kind, "", None, limits or Limits()):
            while stream is not None and stream(CHUNK):
                pass


def looks_like(head: bytes, kind: Kind) -> bool:
    """Whether the first bytes (512 or more, unless the file is shorter) can begin an archive of that kind."""
    if kind == "zip":
        return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")) or head[257:262] == b"ustar"


def require_space(folder: Path, needed: int) -> None:
    """Raises HrsegError, which says how much is missing, unless ``folder`` (or what of it exists) has the room."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    margin = 64 << 20  # for whoever else writes there
    free = shutil.disk_usage(place).free
    if needed + margin > free:
        raise HrsegError(
            f"{folder}: needs {size_text(needed)}, {size_text(free)} are free, {size_text(needed + margin - free)} are "
            f"missing ({size_text(margin)} are left to others); make room or name another `root`"
        )


def size_text(count: int) -> str:
    """Bytes for a person: 3.5 GB."""
    size, units = float(count), ["bytes", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if size >= 100 or units[0] == "bytes" else f"{size:.1f} {units[0]}"


# ---- reading ---------------------------------------------------------------------------------------------------------

Read = Callable[[int], bytes]


class _Allowance:
    """Counts what comes out, for what an archive says of itself need not be true."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self._name = archive.name
        self._bytes = limits.bytes(archive)
        self._files = max(limits.files, archive.stat().st_size // limits.file_bytes)
        self._seen: set[str] = set()

    def file(self, path: PurePosixPath) -> None:
        # Two names that differ in case are one file on a Mac or on Windows.
        key = unicodedata.normalize("NFC", str(path)).casefold()
        if key in self._seen:
            raise HrsegError(f"{self._name}: holds {str(path)!r} twice, give or take letter case; get a sound archive")
        self._seen.add(key)
        if len(self._seen) > self._files:
            raise HrsegError(f"{self._name}: holds more than {self._files} files, too many for its size; not unpacked")

    def spend(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < 0:
            raise HrsegError(f"{self._name}: unpacks to far more than its size can honestly hold; not unpacked")


def _entries(
    archive: Path, kind: Kind, inside: str, progress: Progress | None, limits: Limits
) -> Iterator[tuple[PurePosixPath, Read | None]]:
    """(path, read) of every file and (path, None) of every folder of an archive, all of them safe to write."""
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
    with zipfile.ZipFile(archive) as file:
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
                raise HrsegError(f"{archive}: is encrypted; unpack it with its password, then give the folder")
            with file.open(info) as stream:
                yield path, stream.read
            done += info.file_size
            if progress:
                progress(done, total)


def _tar_entries(
    archive: Path, prefix: tuple[str, ...], progress: Progress | None
) -> Iterator[tuple[PurePosixPath, Read | None]]:
    total = archive.stat().st_size
    with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:*") as file:
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
        # tarfile takes a missing end for the end, and stops before the check sum of a gzip file.
        assert file.fileobj is not None
        if not file.fileobj.read(tarfile.BLOCKSIZE):
            raise EOFError("it ends too early")
        while file.fileobj.read(CHUNK):
            pass


def _safe(archive: Path, name: str, prefix: tuple[str, ...]) -> PurePosixPath | None:
    """The path below ``prefix`` that an entry may have; None for what is not wanted."""
    path = PurePosixPath(name.replace("\\", "/"))
    leaves = path.parts and fault(path.as_posix())
    if leaves or re.match("[A-Za-z]:", name) or re.search(r"[\x00-\x1f]", name):
        raise _refused(archive, name, "a path that leaves the folder")
    parts = path.parts
    if parts[: len(prefix)] != prefix:
        return None
    if not parts or parts[0] == "__MACOSX" or parts[-1] in (".DS_Store", "Thumbs.db", STAMP) or parts[-1][:2] == "._":
        return None
    return path


def _refused(archive: Path, name: str, what: str) -> HrsegError:
    return HrsegError(f"{archive}: holds {what} ({name!r}); not unpacked, get the archive from its source")


# ---- writing ---------------------------------------------------------------------------------------------------------


def _size_said(archive: Path, kind: Kind) -> int:
    if kind == "tar":
        return archive.stat().st_size
    with zipfile.ZipFile(archive) as file:
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
            raise HrsegError(f"{archive}: holds no folder {inside}; it is another archive than expected")
        return folder / inside
    while True:
        entries = list(folder.iterdir())
        if not entries:
            raise HrsegError(f"{archive}: holds no files; get the archive from its source")
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
        return dict(json.loads((into / STAMP).read_text(encoding="utf-8")))
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
                f"{into}: the disk is full while unpacking {archive.name}; make room, then run again"
            ) from None
        if error.errno is None:  # gzip and bz2 complain by bare OSErrors
            raise _damaged(archive, error) from None
        place = error.filename or into
        raise HrsegError(
            f"{place}: {error.strerror} while unpacking {archive.name}; mend that, then run again"
        ) from None


def _damaged(archive: Path, error: Exception) -> HrsegError:
    reason = str(error).split("\n")[0] or type(error).__name__
    return HrsegError(f"{archive}: not a sound archive ({reason}); get it again")
