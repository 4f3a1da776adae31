"""Unpacking: sound archives come out whole; every kind of bad one ends in one line and leaves the folder as it was."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import multiprocessing
import os
import random
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hrseg_cli.data.unpack import (
    STAMP,
    Kind,
    Limits,
    check_archive,
    is_unpacked,
    looks_like,
    require_space,
    size_text,
    unpack,
)
from hrseg_cli.errors import HrsegError
from hrseg_cli.writing import only_one

Entries = dict[str, bytes]
NOISE = random.Random(0).randbytes(200_000)
SMALL = Limits(ratio=10, floor=1 << 20, file_bytes=256, files=100)


def make_zip(path: Path, entries: Entries, mode: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", mode) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def make_tar(path: Path, entries: Entries, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != STAMP)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def beside(folder: Path) -> list[str]:
    """What lies in a folder, but for the lock, which stays."""
    return sorted(os.listdir(folder))


PAIRS = {"Set/images/ä b.jpg": b"image", "Set/masks/ä b.png": NOISE}
UNPACKED = {"images/ä b.jpg": b"image", "masks/ä b.png": NOISE}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.zip", "zip"),
        ("a.tar", "tar"),
        ("a.tar.gz", "tar"),
        ("a.tgz", "tar"),
        ("a.tar.bz2", "tar"),
        ("a.tar.xz", "tar"),
    ],
)
def test_every_kind_comes_out_whole(tmp_path: Path, name: str, kind: Kind) -> None:
    mode = {"gz": "w:gz", "tgz": "w:gz", "bz2": "w:bz2", "xz": "w:xz"}.get(name.rpartition(".")[2], "w")
    archive = make_zip(tmp_path / name, PAIRS) if kind == "zip" else make_tar(tmp_path / name, PAIRS, mode)
    seen: list[tuple[int, int | None]] = []
    assert looks_like(archive.read_bytes()[:512], kind)
    check_archive(archive, kind)
    into = tmp_path / "data" / "set"
    assert not is_unpacked(name, into)
    assert unpack(archive, into, kind=kind, progress=lambda done, total: seen.append((done, total))) == 2
    assert tree(into) == UNPACKED
    assert is_unpacked(name, into)
    assert seen
    assert seen == sorted(seen)
    assert beside(into.parent) == ["set"]


def test_folders_that_stand_alone_are_left_out(tmp_path: Path) -> None:
    """Some archives of a set hold its files at the top, others below one or two folders; the result is the same."""
    for number, prefix in enumerate(("", "Set/", "Set/Set/", "x/y/z/")):
        entries = {
            f"{prefix}im/1.jpg": b"i",
            f"{prefix}gt/1.png": b"g",
            "__MACOSX/._1.jpg": b"",
            f"{prefix}.DS_Store": b"",
        }
        archive = make_zip(tmp_path / f"{number}.zip", entries)
        unpack(archive, tmp_path / str(number), kind="zip")
        assert tree(tmp_path / str(number)) == {"im/1.jpg": b"i", "gt/1.png": b"g"}


def test_only_the_folder_that_is_meant(tmp_path: Path) -> None:
    """SBD's archive brings code besides the data."""
    entries = {"benchmark/dataset/img/1.jpg": b"i", "benchmark/code/run.m": b"c"}
    archive = make_tar(tmp_path / "a.tgz", entries, "w:gz")
    unpack(archive, tmp_path / "sbd", kind="tar", inside="benchmark/dataset")
    assert tree(tmp_path / "sbd") == {"img/1.jpg": b"i"}
    with pytest.raises(HrsegError, match="contains no folder benchmark/data"):
        unpack(archive, tmp_path / "sbd", kind="tar", inside="benchmark/data")
    assert tree(tmp_path / "sbd") == {"img/1.jpg": b"i"}


def test_archives_of_one_folder_are_added_to_each_other(tmp_path: Path) -> None:
    into = tmp_path / "set"
    unpack(make_zip(tmp_path / "a.zip", {"train/im/1.jpg": b"1", "val/im/2.jpg": b"2"}), into, kind="zip")
    unpack(make_zip(tmp_path / "b.zip", {"train/im/3.jpg": b"3", "val/im/2.jpg": b"new"}), into, kind="zip")
    assert tree(into) == {"train/im/1.jpg": b"1", "train/im/3.jpg": b"3", "val/im/2.jpg": b"new"}
    assert is_unpacked("a.zip", into)
    assert is_unpacked("b.zip", into)


def test_two_at_once_do_not_share_the_half_done_copy(tmp_path: Path) -> None:
    archive, into = make_zip(tmp_path / "a.zip", PAIRS), tmp_path / "data" / "set"
    half_done = into.parent / ".set.unpacking" / "1.png"
    with only_one(into, "the first"):
        half_done.parent.mkdir()
        half_done.write_bytes(b"its own")
        with pytest.raises(HrsegError, match=f"{into}: in use by process .*; wait for it to finish"):
            unpack(archive, into, kind="zip")
        assert half_done.read_bytes() == b"its own"
    assert unpack(archive, into, kind="zip") == 2
    assert tree(into) == UNPACKED


def test_a_folder_that_is_a_link_is_filled_where_it_points(tmp_path: Path) -> None:
    """The half-done copy too lies there, for the link may lead to another disk."""
    (tmp_path / "disk" / "set").mkdir(parents=True)
    (tmp_path / "set").symlink_to(tmp_path / "disk" / "set")
    seen: list[list[str]] = []
    archive = make_zip(tmp_path / "a.zip", PAIRS)
    unpack(archive, tmp_path / "set", kind="zip", progress=lambda *_: seen.append(beside(tmp_path / "disk")))
    assert tree(tmp_path / "disk" / "set") == UNPACKED
    assert seen[0] == [".set.hrseg-lock", ".set.unpacking", "set"]


# ---- archives nobody should unpack -----------------------------------------------------------------------------------


def test_a_link_inside_of_the_folder_is_not_filled_where_it_points(tmp_path: Path) -> None:
    """What lies there may be somebody's own pictures."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.jpg").write_bytes(b"precious")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/images").symlink_to(tmp_path / "pictures")
    archive = make_zip(tmp_path / "a.zip", {"masks/1.png": b"new", "images/1.jpg": b"new"})
    with pytest.raises(HrsegError, match=r"set/images/any|link that points outside"):
        unpack(archive, tmp_path / "set", kind="zip")
    assert tree(tmp_path / "pictures") == {"1.jpg": b"precious"}
    assert not (tmp_path / "set/masks").exists()


def zip_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc")
    return path


def zip_encrypted(path: Path) -> Path:
    data = bytearray(make_zip(path, {"a.jpg": b"secret"}).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    return path


def zip_flipped(path: Path) -> Path:
    data = bytearray(make_zip(path, {"a.jpg": NOISE}, zipfile.ZIP_STORED).read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    return path


def zip_bad_name(path: Path) -> Path:
    data = make_zip(path, {"ä.jpg": b"x"}).read_bytes()
    path.write_bytes(data.replace("ä".encode(), b"\xff\xfe"))
    return path


def zip_understated(path: Path) -> Path:
    """Says 10 bytes where 3 MB come out."""
    data = bytearray(make_zip(path, {"a.jpg": bytes(3 << 20)}).read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.index(mark) + offset
        data[start : start + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def tar_with(kind: bytes, target: str = "") -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        with tarfile.open(path, "w:gz") as file:
            info = tarfile.TarInfo("images/1.jpg")
            info.type, info.linkname = kind, target
            file.addfile(info)
        return path

    return make


def cut(make: Callable[[Path], Path], share: float) -> Callable[[Path], Path]:
    def made(path: Path) -> Path:
        data = make(path).read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        return path

    return made


def tar_flipped(path: Path) -> Path:
    """A wrong byte near the end, in what deflate stores as it is: only the check sum of the file tells."""
    data = bytearray(make_tar(path, {"a.jpg": NOISE}, "w:gz").read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def tar_without_end(path: Path) -> Path:
    """Cut between two entries."""
    data = make_tar(path, {"a.jpg": bytes(512), "b.jpg": bytes(512)}).read_bytes()
    path.write_bytes(data[: 2 * 512])
    return path


def zipped(**entries: bytes) -> Callable[[Path], Path]:
    return lambda path: make_zip(path, {name.replace("__", "/"): data for name, data in entries.items()})


def named(kind: Kind, *names: str) -> Callable[[Path], Path]:
    entries = dict.fromkeys(("good/1.jpg", *names), b"x")
    return lambda path: make_zip(path, entries) if kind == "zip" else make_tar(path, entries, "w:gz")


def doubled(path: Path) -> Path:
    with tarfile.open(path, "w") as file:
        for _ in range(2):
            file.addfile(tarfile.TarInfo("a.jpg"))
    return path


BAD: dict[str, tuple[Kind, Callable[[Path], Path], str]] = {
    "zip: out of the folder": ("zip", named("zip", "../evil.txt"), "a path outside the folder"),
    "zip: out of it in the middle": ("zip", named("zip", "a/../../evil.txt"), "a path outside the folder"),
    "zip: absolute": ("zip", named("zip", "/hrseg-evil.txt"), "a path outside the folder"),
    "zip: drive letter": ("zip", named("zip", "C:/evil.txt"), "a path outside the folder"),
    "zip: backslashes": ("zip", named("zip", "..\\evil.txt"), "a path outside the folder"),
    "zip: control character": ("zip", named("zip", "a\nb.jpg"), "a path outside the folder"),
    "zip: link": ("zip", zip_link, "a link or device"),
    "zip: encrypted": ("zip", zip_encrypted, "encrypted"),
    "zip: cut short": ("zip", cut(zip_flipped, 0.5), "damaged or not an archive"),
    "zip: wrong byte": ("zip", zip_flipped, "damaged or not an archive"),
    "zip: name that is no text": ("zip", zip_bad_name, "damaged or not an archive"),
    "zip: bomb": ("zip", zipped(bomb=bytes(4 << 20)), "far more than its size can legitimately contain"),
    "zip: bomb of a false size": ("zip", zip_understated, "damaged or not an archive"),
    "zip: too many files": ("zip", lambda path: make_zip(path, {f"{n}": b"" for n in range(300)}), "more than"),
    "zip: too many folders": ("zip", lambda path: make_zip(path, {f"{n}/": b"" for n in range(300)}), "far more than"),
    "zip: letter case": ("zip", named("zip", "A/1.jpg", "a/1.JPG"), "duplicate entry"),
    "zip: file as a folder": ("zip", named("zip", "a", "a/b.jpg"), "while unpacking"),
    "zip: name too long": ("zip", named("zip", "x" * 300 + ".jpg"), "while unpacking"),
    "zip: empty": ("zip", lambda path: make_zip(path, {}), "contains no files"),
    "zip: a web page": ("zip", lambda path: (path.write_text("<html>"), path)[1], "damaged or not an archive"),
    "zip: zero bytes": ("zip", lambda path: (path.write_bytes(b""), path)[1], "damaged or not an archive"),
    "zip: a tar": ("zip", lambda path: make_tar(path, PAIRS), "damaged or not an archive"),
    "tar: out of the folder": ("tar", named("tar", "../evil.txt"), "a path outside the folder"),
    "tar: absolute": ("tar", named("tar", "/hrseg-evil.txt"), "a path outside the folder"),
    "tar: link out": ("tar", tar_with(tarfile.SYMTYPE, "/etc/passwd"), "a link or device"),
    "tar: link inside": ("tar", tar_with(tarfile.SYMTYPE, "2.jpg"), "a link or device"),
    "tar: hard link": ("tar", tar_with(tarfile.LNKTYPE, "../../secret"), "a link or device"),
    "tar: pipe": ("tar", tar_with(tarfile.FIFOTYPE), "a link or device"),
    "tar: device": ("tar", tar_with(tarfile.CHRTYPE), "a link or device"),
    "tar: bomb": ("tar", lambda path: make_tar(path, {"a": bytes(4 << 20)}, "w:gz"), "far more than its size"),
    "tar.gz: cut short": ("tar", cut(tar_flipped, 0.6), "damaged or not an archive"),
    "tar.gz: wrong byte": ("tar", tar_flipped, "damaged or not an archive"),
    "tar: cut short in a file": ("tar", cut(lambda path: make_tar(path, PAIRS), 0.5), "damaged or not an archive"),
    "tar: cut between files": ("tar", tar_without_end, "damaged or not an archive"),
    "tar: the same file twice": ("tar", doubled, "duplicate entry"),
    "tar: a web page": ("tar", lambda path: (path.write_text("<html>" * 200), path)[1], "damaged or not an archive"),
    "tar: zero bytes": ("tar", lambda path: (path.write_bytes(b""), path)[1], "damaged or not an archive"),
    "tar: a zip": ("tar", lambda path: make_zip(path, PAIRS), "damaged or not an archive"),
    "absent": ("zip", lambda path: path, "No such file"),
}


@pytest.mark.parametrize("existing", [False, True], ids=["new folder", "folder in use"])
@pytest.mark.parametrize("case", BAD)
def test_bad_archives_leave_the_folder_as_it_was(tmp_path: Path, case: str, existing: bool) -> None:
    kind, make, said = BAD[case]
    archive = make(tmp_path / "bad.archive")
    into = tmp_path / "data" / "set"
    if existing:
        unpack(make_zip(tmp_path / "good.zip", PAIRS), into, kind="zip")
    with pytest.raises(HrsegError) as error:
        unpack(archive, into, kind=kind, limits=SMALL)
    assert said in str(error.value)
    assert "bad.archive" in str(error.value)
    assert "\n" not in str(error.value)
    assert tree(tmp_path / "data") == ({f"set/{name}": data for name, data in UNPACKED.items()} if existing else {})
    assert not is_unpacked("bad.archive", into)
    assert not Path("/hrseg-evil.txt").exists()


@pytest.mark.parametrize(
    "case", [case for case, (_, _, said) in BAD.items() if "while unpacking" not in said and case != "zip: empty"]
)
def test_checking_finds_what_unpacking_finds(tmp_path: Path, case: str) -> None:
    """An archive of unknown sum is pinned only when it reads through, so nothing bad may pass here."""
    kind, make, said = BAD[case]
    with pytest.raises(HrsegError, match=r"bad\.archive") as error:
        check_archive(make(tmp_path / "bad.archive"), kind, SMALL)
    assert said in str(error.value)


# ---- full disks and kills --------------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The nearest thing to a full disk that needs no rights: files of this process cannot grow beyond ``size``."""
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_left_clean(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", PAIRS)
    into = tmp_path / "data" / "set"
    with (
        largest_file(100_000),
        pytest.raises(HrsegError, match=r"set: the disk is full while unpacking a\.zip; free some space"),
    ):
        unpack(archive, into, kind="zip")
    assert beside(into.parent) == []
    unpack(archive, into, kind="zip")
    assert tree(into) == UNPACKED


def test_room_is_looked_for_first(tmp_path: Path) -> None:
    with pytest.raises(HrsegError, match=r"not/there: needs 1000000 GB, .* are free; free another .* or use"):
        require_space(tmp_path / "not" / "there", 10**15)
    require_space(tmp_path / "not" / "there", 1)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HrsegError, match=f"file.*: {os.strerror(errno.ENOTDIR)} while unpacking a.zip"):
        unpack(make_zip(tmp_path / "a.zip", PAIRS), tmp_path / "file" / "set", kind="zip")


@pytest.mark.parametrize("existing", [False, True], ids=["new folder", "folder in use"])
def test_killed_at_any_moment_then_the_same_again(tmp_path: Path, existing: bool) -> None:
    entries = {f"Set/{part}/{n}.png": NOISE[:20_000] for n in range(150) for part in ("im", "gt")}
    archive = make_zip(tmp_path / "a.zip", entries, zipfile.ZIP_STORED)
    into = tmp_path / "data" / "set"
    wanted = {name.removeprefix("Set/"): data for name, data in entries.items()}
    if existing:
        unpack(make_zip(tmp_path / "b.zip", {"im/own.png": b"own", "gt/own.png": b"own"}), into, kind="zip")
        wanted |= {"im/own.png": b"own", "gt/own.png": b"own"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hrseg_cli.data.fetch"])
    moments = random.Random(1)
    for _ in range(6):
        child = context.Process(target=unpack, args=(archive, into), kwargs={"kind": "zip"})
        child.start()
        time.sleep(moments.uniform(0.02, 0.15))
        child.kill()
        child.join()
        if is_unpacked("a.zip", into):  # whoever says it is all there must be right
            assert tree(into) == wanted
    unpack(archive, into, kind="zip")
    assert tree(into) == wanted
    assert beside(into.parent) == ["set"]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (127_000_000, "127 MB"), (3529707387, "3.5 GB")],
)
def test_sizes_for_a_person(count: int, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_long_headers_of_a_tar_are_not_read(tmp_path: Path, kind: bytes) -> None:
    """tarfile reads a header as a whole: 250 kB took 548 MB."""
    info = tarfile.TarInfo("././@Long")
    info.type, info.size = kind, 8 << 20
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(8 << 20))
    with pytest.raises(HrsegError, match=r"a header of 8\.4 MB; get an intact archive"):
        check_archive(tmp_path / "a.tar.gz", "tar")


def test_many_headers_of_a_tar_have_a_limit_together(tmp_path: Path) -> None:
    """Global headers accumulate, and every entry keeps its own."""
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        for number in range(20):
            body = f"{1 << 20} comment={'x' * ((1 << 20) - 17)}\n".encode()
            info = tarfile.TarInfo(f"pax{number}")
            info.type, info.size = tarfile.XGLTYPE, len(body)
            file.write(info.tobuf(tarfile.USTAR_FORMAT) + body)
    with pytest.raises(HrsegError, match="a header of"):
        check_archive(tmp_path / "a.tar.gz", "tar")


def test_an_xz_of_several_streams_is_read_to_its_end(tmp_path: Path) -> None:
    """xz -T writes blocks, and cat joins streams, with zeros in between."""
    whole = make_tar(tmp_path / "a.tar", {"a/1": NOISE, "a/2": b"x"}).read_bytes()
    parts = [lzma.compress(whole[:70_000]), bytes(8), lzma.compress(whole[70_000:])]
    (tmp_path / "a.tar.xz").write_bytes(b"".join(parts))
    assert unpack(tmp_path / "a.tar.xz", tmp_path / "out", kind="tar") == 2
    assert tree(tmp_path / "out") == {"1": NOISE, "2": b"x"}
    (tmp_path / "cut.tar.xz").write_bytes(b"".join(parts)[:-50])
    with pytest.raises(HrsegError, match=r"cut.tar.xz: damaged or not an archive"):
        unpack(tmp_path / "cut.tar.xz", tmp_path / "cut", kind="tar")
    assert not (tmp_path / "cut").exists()


def test_an_xz_that_asks_for_gigabytes_of_memory_is_refused(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "a.tar", {"a": b"x"}).read_bytes()
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(whole, format=lzma.FORMAT_XZ, filters=filters))
    place = 12 + data[12:24].index(b"\x21\x01") + 2  # filter LZMA2, one byte of properties: the size of the dictionary
    data[place] = 38  # 2 GB
    size = (data[12] + 1) * 4
    data[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(data[12 : 12 + size - 4]))
    (tmp_path / "a.tar.xz").write_bytes(data)
    with pytest.raises(HrsegError, match="Memory usage limit exceeded"):
        check_archive(tmp_path / "a.tar.xz", "tar")


def test_a_zip_packed_with_lzma_is_refused(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a": b"x"}, zipfile.ZIP_LZMA)
    with pytest.raises(HrsegError, match="packed with LZMA; unpack it yourself"):
        check_archive(archive, "zip")


@pytest.mark.parametrize("kind", ["zip", "zip64", "zip64 elsewhere", "hidden in itself"])
def test_a_zip_with_an_endless_list_of_files_is_refused_before_it_is_read(kind: str, tmp_path: Path) -> None:
    listed, deep = 40 << 20, kind.startswith("zip64")
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 9, 9, 0xFFFFFFFF if deep else listed, 0, 0)
    if kind == "hidden in itself":
        end = end[:16] + b"PK\5\6" + bytes(2)
    if deep:
        record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 9, 9, listed, 0)
        end = record + struct.pack("<4sIQI", b"PK\6\7", 0, 0 if "elsewhere" in kind else listed, 1) + end
    (tmp_path / "a.zip").write_bytes(bytes(listed) + end)
    with pytest.raises(HrsegError, match=r"a list of files of 41\.9 MB; get an intact archive"):
        check_archive(tmp_path / "a.zip", "zip")
