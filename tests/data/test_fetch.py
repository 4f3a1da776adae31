"""Downloads from a server that truncates, corrupts, redirects, stalls, refuses and changes its mind."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from http_server import Server, misbehaving_server

from hrseg_cli.data import fetch as fetching
from hrseg_cli.data.fetch import Fetched, archive_path, fetch, pins
from hrseg_cli.data.manifest import ArchiveFile, files_for, load_manifest, present, resolve_parts
from hrseg_cli.data.unpack import unpack
from hrseg_cli.errors import HrsegError
from hrseg_cli.writing import only_one


def zip_of(seed: int, size: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("images/1.jpg", random.Random(seed).randbytes(size))
    return buffer.getvalue()


DATA = zip_of(0, 300_000)
OTHER = zip_of(1, 300_000)
SUM = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    with misbehaving_server({"/a.zip": DATA, "/b.zip": DATA, "/other.zip": OTHER}) as server:
        yield server


def entry(server: Server | None, *paths: str, **changes: Any) -> ArchiveFile:
    urls = tuple(server.url(path) for path in paths) if server else ()
    return ArchiveFile(**{"name": "a.zip", "urls": urls, "sha256": SUM, "unpack": "zip", "into": "a", **changes})


def get(file: ArchiveFile, root: Path, **options: Any) -> Fetched:
    return fetch(file, root, **{"timeout": 0.4, "retries": 2, "wait": 0.01, **options})


def leftovers(root: Path) -> list[str]:
    """What lies where the archive is kept, but for the lock, which stays."""
    return sorted(path.name for path in (root / ".hrseg" / "archives" / "a").iterdir())


def begun(root: Path, server: Server, data: bytes = DATA[:100_000], **notes: Any) -> None:
    """A download that an earlier run has left behind."""
    part = archive_path(entry(server, "/a.zip"), root).with_name("a.zip.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(data)
    tag = f'"{hashlib.md5(DATA).hexdigest()}"'
    record = {"url": server.url("/a.zip"), "total": len(DATA), "validator": tag, **notes}
    part.with_name("a.zip.part.json").write_text(json.dumps(record), encoding="utf-8")


# ---- what ends well --------------------------------------------------------------------------------------------------

# What the server does, answer by answer -> the statuses of the answers that were needed.
MENDED: dict[str, tuple[list[str], list[int]]] = {
    "well": (["ok"], [200]),
    "cut short, then resumed": (["truncate", "ok"], [200, 206]),
    "cut short many times": (["truncate"] * 8 + ["ok"], [200] + [206] * 8),
    "stalls": (["stall", "ok"], [200, 206]),
    "stalls, then does not resume": (["stall", "no_ranges"], [200, 200]),
    "cut short, then refuses ranges": (["truncate", "refuse_range", "ok"], [200, 416, 200]),
    "overloaded": (["503", "500", "ok"], [503, 500, 200]),
    "tells no length": (["no_length"], [200]),
    "tells no length and stops": (["cut_no_length", "ok"], [200, 200]),
    "corrupt after a resume": (["truncate", "corrupt", "ok"], [200, 206, 200]),
}


@pytest.mark.parametrize("known", [True, False], ids=["known sum", "unknown sum"])
@pytest.mark.parametrize("case", MENDED)
def test_the_file_arrives(tmp_path: Path, server: Server, case: str, known: bool) -> None:
    script, statuses = MENDED[case]
    server.script("/a.zip", *script)
    seen: list[tuple[int, int | None]] = []
    file = entry(server, "/a.zip", sha256=SUM if known else None)
    path, sum_, pinned = get(file, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == DATA
    assert (sum_, pinned) == (SUM, not known)
    assert server.statuses == statuses
    assert leftovers(tmp_path) == ["a.zip"]
    assert seen[-1] == (len(DATA), None if script[-1] == "no_length" else len(DATA))


def test_redirects_are_followed_also_when_resuming(tmp_path: Path, server: Server) -> None:
    server.script("/old.zip", "redirect:/a.zip")
    server.script("/a.zip", "truncate", "ok")
    assert get(entry(server, "/old.zip"), tmp_path).path.read_bytes() == DATA
    assert server.statuses == [301, 200, 301, 206]


@pytest.mark.parametrize("script", ["404", "403", "html", "loop", "corrupt", "truncate 503"])
def test_mirrors_are_tried_in_order(tmp_path: Path, server: Server, script: str) -> None:
    server.script("/a.zip", *script.split())
    assert get(entry(server, "/a.zip", "/b.zip"), tmp_path).path.read_bytes() == DATA
    assert server.requests[-1] == ("/b.zip", None)
    assert leftovers(tmp_path) == ["a.zip"]


def test_an_interrupted_download_goes_on_in_the_next_run(tmp_path: Path, server: Server) -> None:
    begun(tmp_path, server)
    seen: list[int] = []
    assert get(entry(server, "/a.zip"), tmp_path, progress=lambda done, _: seen.append(done)).path.read_bytes() == DATA
    assert server.requests == [("/a.zip", "bytes=100000-")]
    assert seen[0] == 100_000


def test_what_is_there_is_hashed_once_however_often_the_line_drops(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading 20 GB again takes a minute, and bad lines drop a hundred times."""
    begun(tmp_path, server)
    server.script("/a.zip", *["truncate"] * 5, "ok")
    read: list[int] = []
    real = fetching._feed

    def counted(add: Any, stream: Any, *rest: Any) -> None:
        real(lambda chunk: (read.append(len(chunk)), add(chunk)), stream, *rest)  # type: ignore[arg-type, func-returns-value]

    monkeypatch.setattr(fetching, "_feed", counted)
    assert get(entry(server, "/a.zip"), tmp_path) == Fetched(
        archive_path(entry(server, "/a.zip"), tmp_path), SUM, False
    )
    assert server.statuses == [206] * 6
    assert sum(read) == 100_000


@pytest.mark.parametrize("script", ["no_ranges", "refuse_range ok", "corrupt ok"])
def test_the_running_sum_starts_again_with_the_file(tmp_path: Path, server: Server, script: str) -> None:
    begun(tmp_path, server)
    server.script("/a.zip", "truncate", "truncate", *script.split())
    assert get(entry(server, "/a.zip"), tmp_path).sha256 == SUM


def test_two_at_once_do_not_mix_their_bytes(tmp_path: Path, server: Server) -> None:
    file = entry(server, "/a.zip")
    target = archive_path(file, tmp_path)
    with (
        only_one(target, "the first"),
        pytest.raises(HrsegError, match=rf"{target}: in use by process .*; wait"),
    ):
        get(file, tmp_path)
    assert server.requests == []
    assert get(file, tmp_path).path.read_bytes() == DATA


def test_stopped_between_the_last_byte_and_the_check(tmp_path: Path, server: Server) -> None:
    begun(tmp_path, server, DATA)
    assert get(entry(server, "/a.zip"), tmp_path).path.read_bytes() == DATA
    assert server.requests == []


@pytest.mark.parametrize(("script", "statuses"), [("ok", [200]), ("rude_range", [206, 200])])
def test_pieces_of_two_versions_are_not_glued(tmp_path: Path, server: Server, script: str, statuses: list[int]) -> None:
    """The file has changed since the first piece, and some servers send ranges of the new one all the same."""
    begun(tmp_path, server, OTHER[:100_000], validator='"of another version"')
    server.script("/a.zip", script, "ok")
    seen: list[int] = []
    file = entry(server, "/a.zip", sha256=None)
    assert get(file, tmp_path, progress=lambda done, _: seen.append(done)).path.read_bytes() == DATA
    assert server.statuses == statuses
    assert seen.count(len(DATA)) == 1, "noticed only when all had come"


@pytest.mark.parametrize(
    "notes",
    [{"url": "http://elsewhere/a.zip"}, {"total": None, "validator": None}, {"total": 5}, {"validator": None}],
    ids=["of another address", "of nothing known", "of another length", "without a validator"],
)
def test_a_piece_of_unclear_origin_does_no_harm(tmp_path: Path, server: Server, notes: dict[str, Any]) -> None:
    begun(tmp_path, server, OTHER[:100_000], **notes)
    assert get(entry(server, "/a.zip"), tmp_path).path.read_bytes() == DATA


def test_broken_notes_start_again(tmp_path: Path, server: Server) -> None:
    begun(tmp_path, server)
    (tmp_path / ".hrseg" / "archives" / "a" / "a.zip.part.json").write_text("{", encoding="utf-8")
    assert get(entry(server, "/a.zip"), tmp_path).path.read_bytes() == DATA
    assert server.requests == [("/a.zip", None)]


def test_what_is_there_and_right_is_not_fetched(tmp_path: Path, server: Server) -> None:
    for _ in range(2):
        get(entry(server, "/a.zip"), tmp_path)
    assert len(server.requests) == 1


def test_what_is_there_and_wrong_is_fetched_again(tmp_path: Path, server: Server) -> None:
    archive_path(entry(server, "/a.zip"), tmp_path).parent.mkdir(parents=True)
    archive_path(entry(server, "/a.zip"), tmp_path).write_bytes(DATA[:-1])
    assert get(entry(server, "/a.zip", sha256=None), tmp_path).path.read_bytes() == DATA


def test_a_compressed_tar_of_unknown_sum(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        info = tarfile.TarInfo("img/1.jpg")
        info.size = 100_000
        file.addfile(info, io.BytesIO(random.Random(2).randbytes(100_000)))
    with misbehaving_server({"/s.tgz": buffer.getvalue()}) as server:
        server.script("/s.tgz", "corrupt", "ok")
        wanted = entry(server, "/s.tgz", "/s.tgz", name="s.tgz", sha256=None, unpack="tar")
        assert get(wanted, tmp_path).path.read_bytes() == buffer.getvalue()


# ---- what ends in one line -------------------------------------------------------------------------------------------

GIVEN_UP: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "gone": (["404"], {}, "127.0.0.1:PORT: HTTP 404 Not Found; give the archive with `from`"),
    "not allowed": (["403"], {}, "HTTP 403 Forbidden"),
    "redirected in a circle": (["loop"], {}, "infinite loop"),
    "a page instead": (["html"], {}, "returned text/html, not an archive (a web page)"),
    "a page, sum unknown": (["html"], {"sha256": None}, "returned text/html, not an archive (a web page)"),
    "always overloaded": (["503"], {}, "HTTP 503 Service Unavailable"),
    "always stalling": (["stall", "503"], {}, "150 kB kept), or give the archive with `from`"),
    "corrupt": (["corrupt"], {}, f"expected SHA-256 {SUM[:16]}… (the manifest's), got "),
    "corrupt, sum unknown": (["corrupt"], {"sha256": None}, "the download was deleted: damaged or not an archive"),
    "another length": (["ok"], {"size": 17}, f"expected 17 bytes, got {len(DATA)}"),
    "never whole, no length": (["cut_no_length"], {"sha256": None}, "damaged or not an archive"),
    "hints": (["404"], {"how": "ask Ann"}, "`from` (ask Ann)"),
}


@pytest.mark.parametrize("case", GIVEN_UP)
def test_failures_say_what_happened_and_what_to_do(tmp_path: Path, server: Server, case: str) -> None:
    script, changes, said = GIVEN_UP[case]
    server.script("/a.zip", *script)
    with pytest.raises(HrsegError) as error:
        get(entry(server, "/a.zip", **changes), tmp_path)
    text = str(error.value)
    assert text.startswith("a.zip: download failed: ")
    assert said.replace("PORT", str(server.server_address[1])) in text
    assert "\n" not in text
    assert "a.zip" not in leftovers(tmp_path)
    assert pins(tmp_path) == {}


def test_nobody_answers(tmp_path: Path) -> None:
    """Two copies on one server fail for one reason, which is said once."""
    file = entry(None, urls=("http://127.0.0.1:9/a.zip", "http://127.0.0.1:9/copy/a.zip"))
    with pytest.raises(HrsegError, match=r"failed: 127\.0\.0\.1:9: Connection refused; give the archive"):
        get(file, tmp_path, retries=0)


def test_behind_a_login(tmp_path: Path) -> None:
    with pytest.raises(HrsegError, match=r"a\.zip: no public link; ask Ann; then rerun with `from`"):
        get(entry(None, how="ask Ann"), tmp_path)


def test_a_disk_too_small_is_seen_before_the_first_byte(tmp_path: Path, server: Server) -> None:
    with pytest.raises(HrsegError, match=r"needs 1000000 GB, .* are free; free another"):
        get(entry(server, "/a.zip", size=10**15), tmp_path)
    assert server.requests == []


def test_a_disk_that_fills_up_keeps_what_it_has(tmp_path: Path, server: Server) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    server.piece = 10_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        with pytest.raises(HrsegError, match=r"a\.zip\.part: the disk is full; free some space, then rerun to resume"):
            get(entry(server, "/a.zip"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert get(entry(server, "/a.zip"), tmp_path).path.read_bytes() == DATA
    assert server.statuses == [200, 206]


def test_a_root_that_cannot_be_written(tmp_path: Path, server: Server) -> None:
    (tmp_path / ".hrseg").write_text("")
    with pytest.raises(HrsegError, match=r"a\.zip\.part: Not a directory; fix that, or use another `root`"):
        get(entry(server, "/a.zip"), tmp_path)


# ---- pinned sums -----------------------------------------------------------------------------------------------------


def test_an_unknown_sum_is_pinned_and_another_file_refused(tmp_path: Path, server: Server) -> None:
    file = entry(server, "/a.zip", sha256=None)
    assert get(file, tmp_path).pinned
    assert pins(tmp_path) == {"a/a.zip": SUM}
    assert not get(file, tmp_path).pinned
    shutil.rmtree(tmp_path / ".hrseg" / "archives")
    server.files["/a.zip"] = OTHER
    with pytest.raises(HrsegError, match=r"expected SHA-256 .* \(the one pinned in .hrseg/pins.json\), got") as error:
        get(file, tmp_path)
    assert 'if the new file is correct, delete "a/a.zip" from .hrseg/pins.json' in str(error.value)
    assert leftovers(tmp_path) == []


def test_only_a_pinned_sum_is_for_the_user_to_delete(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(OTHER)
    with pytest.raises(HrsegError, match="the manifest's") as error:
        get(entry(None, how="-"), tmp_path, from_path=tmp_path)
    assert "pins.json" not in str(error.value)


@pytest.mark.parametrize("known", [True, False], ids=["known sum", "unknown sum"])
def test_archives_of_one_name_for_two_places_are_two(tmp_path: Path, server: Server, known: bool) -> None:
    """Half of all sets come as an images.zip."""
    files = {
        into: entry(server, path, into=into, sha256=hashlib.sha256(data).hexdigest() if known else None)
        for into, path, data in (("one", "/a.zip", DATA), ("two/x", "/other.zip", OTHER))
    }
    for _ in range(2):
        assert get(files["one"], tmp_path).path.read_bytes() == DATA
        assert get(files["two/x"], tmp_path).path.read_bytes() == OTHER
    assert len(server.requests) == 2
    sums = {"one/a.zip": SUM, "two/x/a.zip": hashlib.sha256(OTHER).hexdigest()}
    assert pins(tmp_path) == ({} if known else sums)


def test_broken_pins_are_not_guessed_at(tmp_path: Path, server: Server) -> None:
    (tmp_path / ".hrseg").mkdir()
    (tmp_path / ".hrseg" / "pins.json").write_text("{", encoding="utf-8")
    with pytest.raises(HrsegError, match=r"pins\.json: cannot be read; delete it"):
        get(entry(server, "/a.zip", sha256=None), tmp_path)


# ---- the user's own archives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("known", [True, False], ids=["known sum", "unknown sum"])
def test_an_archive_of_the_user_is_read_in_place(tmp_path: Path, folder: bool, known: bool) -> None:
    mine = tmp_path / "mine" / "a.zip"
    mine.parent.mkdir()
    mine.write_bytes(DATA)
    before = mine.stat()
    file = entry(None, how="ask Ann", sha256=SUM if known else None)
    got = get(file, tmp_path / "data", from_path=mine.parent if folder else mine)
    assert got == Fetched(mine, SUM, not known)
    assert (mine.stat().st_mtime_ns, mine.stat().st_nlink) == (before.st_mtime_ns, before.st_nlink)
    assert not archive_path(file, tmp_path / "data").exists()


def test_a_wrong_archive_of_the_user_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "a.zip"
    mine.write_bytes(OTHER)
    with pytest.raises(HrsegError, match=f"{mine}: expected SHA-256 .*; it was not changed"):
        get(entry(None, how="-"), tmp_path, from_path=mine)
    mine.write_bytes(OTHER[:-100])
    with pytest.raises(HrsegError, match=f"{mine}: damaged or not an archive"):
        get(entry(None, how="-", sha256=None), tmp_path, from_path=mine)
    assert mine.read_bytes() == OTHER[:-100]
    assert pins(tmp_path) == {}


def test_a_place_without_the_archive(tmp_path: Path) -> None:
    with pytest.raises(HrsegError, match=rf"`from` {tmp_path}: a\.zip not found there; ask Ann"):
        get(entry(None, how="ask Ann"), tmp_path, from_path=tmp_path)
    with pytest.raises(HrsegError, match=r"no such file or folder; give the archive a\.zip"):
        get(entry(None, how="ask Ann"), tmp_path, from_path=tmp_path / "nowhere")


# ---- all of it -------------------------------------------------------------------------------------------------------


def test_from_manifest_to_a_dataset_that_is_there(tmp_path: Path) -> None:
    """A small HQSeg-44K validation set: two archives, one with and one without a folder of its own at the top."""
    trees = {
        "DIS5K.zip": ["DIS5K/DIS-VD/im/1#a.jpg", "DIS5K/DIS-VD/gt/1#a.png", "DIS5K/Terms.pdf"],
        "thin_object_detection.zip": [
            *("ThinObject5K/images_test/a.jpg", "ThinObject5K/masks_test/a.png"),
            *("COIFT/images/a.jpg", "COIFT/masks/a.png", "HRSOD/images/a.jpg", "HRSOD/masks_max255/a.png"),
        ],
    }
    served = {}
    for name, paths in trees.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for path in paths:
                archive.writestr(path, b"pixels")
        served[f"/{name}"] = buffer.getvalue()
    with misbehaving_server(served) as server:
        hqseg = load_manifest("hqseg44k")
        for file in files_for(hqseg, ["val"]):
            small = file.model_copy(update={"urls": (server.url(f"/{file.name}"),), "size": None, "sha256": None})
            got = get(small, tmp_path)
            unpack(got.path, tmp_path / file.into, kind=file.unpack, inside=file.inside)
        assert len(server.requests) == 2, "parts of one archive fetch it once"
    found = present(hqseg, tmp_path).splits
    for piece, split in resolve_parts(hqseg, "val"):
        one = found[f"{piece.name}/{split}"]
        assert (one.images, one.masks, one.state) == (1, 1, "partial")
    assert found["msra10k/train"].state == "absent"


# ---- kills -----------------------------------------------------------------------------------------------------------


def test_killed_at_twenty_moments_then_the_same_again(tmp_path: Path) -> None:
    """SIGKILL leaves no time to tidy up: whatever it leaves, the next run must end with the same bytes."""
    data = zip_of(3, 4_000_000)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hrseg_cli.data.fetch"])
    moments = random.Random(0)
    with misbehaving_server({"/a.zip": data}, delay=0.01, piece=16_384) as server:
        file = entry(server, "/a.zip", sha256=None)
        for _ in range(20):
            child = context.Process(target=fetch, args=(file, tmp_path), kwargs={"timeout": 5.0})
            child.start()
            time.sleep(moments.uniform(0.02, 0.2))
            child.kill()
            child.join()
            if archive_path(file, tmp_path).exists():  # whole only under its own name
                assert archive_path(file, tmp_path).read_bytes() == data
                shutil.rmtree(tmp_path / ".hrseg")
        server.delay = 0.0
        assert get(file, tmp_path).path.read_bytes() == data
        assert server.statuses.count(206) > 3, "nothing was resumed"
    assert leftovers(tmp_path) == ["a.zip"]
    assert [name for name in os.listdir(tmp_path / ".hrseg") if name.endswith(".json")] == ["pins.json"]


ODD: dict[str, tuple[bytes, str]] = {
    "no reason, as HTTP/2 front ends answer": (b"HTTP/1.1 404 \r\nContent-Length: 0\r\n\r\n", "HTTP 404 Not Found"),
    "an unknown status": (b"HTTP/1.1 499 \r\nContent-Length: 0\r\n\r\n", "HTTP 499;"),
    "odd digits to wait": (b"HTTP/1.1 503 Busy\r\nRetry-After: \xb2\r\nContent-Length: 0\r\n\r\n", "HTTP 503 Busy"),
    "odd digits of length": (b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nno archive", "not an archive"),
    "a length of 5000 digits": (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nno archive", ""),
    "redirected to no address": (b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n", "a.zip"),
    "not HTTP": (b"\0\xff\r\n\r\n", "a.zip"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_answers_end_in_one_line(tmp_path: Path, case: str) -> None:
    answer, said = ODD[case]
    with socket.create_server(("127.0.0.1", 0)) as ear:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    line, _ = ear.accept()
                    with line:
                        line.recv(65536)
                        line.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        wanted = entry(None, urls=(f"http://127.0.0.1:{ear.getsockname()[1]}/a.zip",))
        with pytest.raises(HrsegError, match=r"^a\.zip: download failed: 127") as error:
            get(wanted, tmp_path, retries=1)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
