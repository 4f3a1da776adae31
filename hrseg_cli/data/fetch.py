"""Download archives resumably and verify them.

First decide (verified, partial or absent; enough disk space), then act: the bytes go to ``NAME.part``, which is renamed
only if its SHA-256 matches. An interrupted download resumes where it stopped; a notes file next to it keeps bytes of a
different version of the file from being appended. A file without a published SHA-256 is checked for integrity once,
then its SHA-256 is pinned: later downloads must match it.

Standard library only: pooch verifies but does not resume, and clients that resume do not verify.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from hrseg_cli import __version__
from hrseg_cli.data.manifest import ArchiveFile
from hrseg_cli.data.unpack import NO_ROOM, Progress, check_archive, looks_like, require_space, size_text
from hrseg_cli.errors import HrsegError
from hrseg_cli.parsing import read_json
from hrseg_cli.writing import only_one, write_atomically

CHUNK = 1 << 18
AGAIN = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses worth a retry
LONGEST_WAIT = 60.0


class Fetched(NamedTuple):
    """A verified archive. ``pinned``: its SHA-256 was unknown and has just been recorded."""

    path: Path
    sha256: str
    pinned: bool


class _Interrupted(Exception):
    """A retry may succeed; ``pause``: seconds to wait, if the server said so."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _Useless(Exception):
    """This URL will not deliver the file."""


@dataclass
class _Running:
    """SHA-256 of the first ``done`` bytes of the partial file, kept across retries."""

    done: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.done += len(chunk)

    def start_again(self) -> None:
        self.done, self.digest = 0, hashlib.sha256()


class _Job(NamedTuple):
    """A download: file, destination and retry settings; see :func:`fetch`."""

    file: ArchiveFile
    part: Path
    known: str | None
    progress: Progress | None
    timeout: float
    retries: int
    wait: float
    running: _Running


def archive_path(file: ArchiveFile, root: Path) -> Path:
    """Where :func:`fetch` keeps an archive: in a folder per dataset, because many datasets have an ``images.zip``."""
    return root / ".hrseg" / "archives" / file.into / file.name


def pin_name(file: ArchiveFile) -> str:
    """The key of an archive in :func:`pins`: ``into/name``."""
    return PurePosixPath(file.into, file.name).as_posix()


def fetch(
    file: ArchiveFile,
    root: Path,
    *,
    progress: Progress | None = None,
    from_path: Path | None = None,
    timeout: float = 30.0,
    retries: int = 4,
    wait: float = 1.0,
) -> Fetched:
    """The verified archive: an existing one, the user's own, or a download.

    root: the data root; downloads and pinned checksums are in its folder ``.hrseg``.
    progress: called with (bytes, total bytes or None); restarts at 0 if the download does.
    from_path: the archive, or a folder that contains it. It is read in place and never changed.
    timeout: seconds without data after which a server counts as stalled. retries: consecutive retries without progress.
    wait: seconds before the first retry, doubled each time.

    Raises HrsegError, one line with the file, the problem and the fix. A partial download is kept for the next run;
    a file that fails verification is deleted, unless it is the user's own. Also raises while another hrseg downloads
    the same archive.
    """
    known = file.sha256 or pins(root).get(pin_name(file))
    target = archive_path(file, root)
    if from_path is not None:
        path = _given(file, from_path)
        sum_ = _verify(file, path, known, progress, "it was not changed")
    else:
        path = target
        part = target.with_name(target.name + ".part")
        job = _Job(file, part, known, progress, timeout, retries, wait, _Running())
        with only_one(target, str(target)):
            sum_ = _kept(file, target, known, progress) or _download(job, target)
    if known is None:
        _pin(root, pin_name(file), sum_)
    return Fetched(path, sum_, pinned=known is None)


def pins(root: Path) -> dict[str, str]:
    """``into/name`` of an archive -> SHA-256, for all archives pinned under this data root."""
    path = root / ".hrseg" / "pins.json"
    try:
        return {str(name): str(sum_) for name, sum_ in dict(read_json(path)).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError):
        raise HrsegError(f"{path}: cannot be read; delete it, and the next downloads will be pinned again") from None


def _pin(root: Path, name: str, sum_: str) -> None:
    path = root / ".hrseg" / "pins.json"
    try:
        with only_one(path, str(path), wait=True):  # otherwise a checksum pinned in the meantime would be lost
            text = json.dumps({**pins(root), name: sum_}, indent=2, sort_keys=True) + "\n"
            write_atomically(path, text)
    except OSError as error:
        raise HrsegError(f"{root / '.hrseg'}: cannot be written ({error.strerror}); use another `root`") from None


# ---- existing files --------------------------------------------------------------------------------------------------


def _kept(file: ArchiveFile, target: Path, known: str | None, progress: Progress | None) -> str | None:
    """SHA-256 of an archive from an earlier run, if it verifies."""
    if not target.is_file():
        return None
    try:
        return _verify(file, target, known, progress, "")
    except HrsegError:
        return None


def _given(file: ArchiveFile, path: Path) -> Path:
    path = path.expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise HrsegError(
            f"`from` {path}: no such file or folder; give the archive {file.name}, or the folder that contains it"
        )
    if (path / file.name).is_file():
        return path / file.name
    raise HrsegError(f"`from` {path}: {file.name} not found there; {file.how or 'give the folder that contains it'}")


def _verify(file: ArchiveFile, path: Path, known: str | None, progress: Progress | None, done: str) -> str:
    """SHA-256 of a file that passes verification. Raises HrsegError otherwise."""
    try:
        sum_ = _sha256(path, progress)
    except OSError as error:
        raise HrsegError(f"{path}: cannot be read ({error.strerror}); fix that, then rerun") from None
    if known is None:
        check_archive(path, file.unpack)
    elif sum_ != known:
        raise HrsegError(_mismatch(file, path, known, sum_, done))
    return sum_


def _mismatch(file: ArchiveFile, place: str | Path, known: str, got: str, done: str) -> str:
    source, fix = "the manifest's", ""
    if not file.sha256:
        source = "the one pinned in .hrseg/pins.json"
        fix = (
            f'; if the new file is correct, delete "{pin_name(file)}" from .hrseg/pins.json in the data root and rerun'
        )
    return (
        f"{place}: expected SHA-256 {known[:16]}… ({source}), got {got[:16]}…; {done}. Either it was damaged in "
        f"transfer (rerun) or it is another version of the file (see the dataset's home page){fix}"
    )


def _sha256(path: Path, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        _feed(digest.update, stream, path.stat().st_size, progress)
    return digest.hexdigest()


def _feed(add: Callable[[bytes], None], stream: IO[bytes], total: int | None, progress: Progress | None) -> None:
    done = 0
    while chunk := stream.read(CHUNK):
        add(chunk)
        done += len(chunk)
        if progress:
            progress(done, total)


# ---- the network -----------------------------------------------------------------------------------------------------


def _download(job: _Job, target: Path) -> str:
    """Try the URLs in order until one delivers the file; returns its SHA-256."""
    file, part = job.file, job.part
    if not file.urls:
        raise HrsegError(f"{file.name}: no public link; {file.how}; then rerun with `from`")
    reasons = []
    try:
        target.unlink(missing_ok=True)  # it failed verification
        part.parent.mkdir(parents=True, exist_ok=True)
        if file.size:
            require_space(part.parent, file.size - _size(part))
        for url in file.urls:
            try:
                sum_ = _from_url(job, url)
            except (_Useless, _Interrupted) as reason:
                reasons.append(f"{url.split('/')[2]}: {reason}")
                continue
            os.replace(part, target)
            _notes(part).unlink(missing_ok=True)
            return sum_
        if not _size(part):
            _drop(part)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise HrsegError(f"{part}: the disk is full; free some space, then rerun to resume") from None
        raise HrsegError(f"{part}: {error.strerror}; fix that, or use another `root`") from None
    kept = f"rerun to resume ({size_text(_size(part))} kept), or " if _size(part) else ""
    how = f" ({file.how})" if file.how else ""
    raise HrsegError(
        f"{file.name}: download failed: {'; '.join(dict.fromkeys(reasons))}; {kept}give the archive with `from`{how}"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _from_url(job: _Job, url: str) -> str:
    """Download one URL to ``job.part``; returns its SHA-256.

    Raises _Useless or _Interrupted for network errors, OSError for disk errors.
    """
    idle, fresh = 0, 0
    while True:
        before = _size(job.part)
        try:
            sum_ = _one_try(job, url)
        except _Interrupted as reason:
            idle = 0 if _size(job.part) > before else idle + 1
            if idle > job.retries:
                raise
            time.sleep(min(reason.pause or job.wait * 2.0 ** (idle - 1), LONGEST_WAIT))
            continue
        wrong = _what_is_wrong(job, sum_)
        if wrong is None:
            return sum_
        # Pieces of several tries may not fit together, and a server that sends no length may have stopped early:
        # download it once more, in one piece.
        again = before > 0 or _read_notes(job.part, url).get("total") is None
        _drop(job.part)
        fresh += 1
        if fresh > 1 or not again:
            raise _Useless(wrong)


def _what_is_wrong(job: _Job, sum_: str) -> str | None:
    if job.known is not None:
        done = "the download was deleted"
        return None if sum_ == job.known else _mismatch(job.file, job.file.name, job.known, sum_, done)
    try:
        check_archive(job.part, job.file.unpack)
    except HrsegError as error:
        return str(error).replace(f"{job.part}: ", "the download was deleted: ")
    return None


def _one_try(job: _Job, url: str) -> str:
    """One request; appends to the partial file if the server supports it. Returns the SHA-256 once complete."""
    file, part, running = job.file, job.part, job.running
    notes = _read_notes(part, url)
    if not notes:
        _drop(part)
    have = _size(part)
    if running.done != have:  # the first try in this process
        running.start_again()
        if have:
            with part.open("rb") as stream:
                _feed(running.add, stream, notes["total"], job.progress)
    if have and have == notes["total"]:  # stopped between the last byte and the check
        return str(running.digest.hexdigest())
    with _ask(url, have, notes, job) as response:
        start, total = _extent(response)
        if start != have or (have and total != notes["total"]) or _changed(response, notes):
            _drop(part)
            if start:
                raise _Interrupted("the file has changed on the server")
            have = 0
            running.start_again()
        if file.size and total and total != file.size:
            _drop(part)
            raise _Useless(f"expected {file.size} bytes, got {total}")
        if total:
            require_space(part.parent, total - have)
        if have == 0:
            _write_notes(part, url, response, total)
        done = _receive(job, response, have, total or file.size)
    if done < (total or file.size or 0):
        raise _Interrupted(f"stopped after {size_text(done)} of {size_text(total or file.size or 0)}")
    return str(running.digest.hexdigest())


def _ask(url: str, have: int, notes: dict[str, Any], job: _Job) -> http.client.HTTPResponse:
    headers = {"User-Agent": f"hrseg/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if notes["validator"]:
            headers["If-Range"] = notes["validator"]
    try:
        return cast(
            http.client.HTTPResponse,
            urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=job.timeout),
        )
    except urllib.error.HTTPError as error:
        with error:
            said = " ".join(str(error.reason).split()) or http.client.responses.get(error.code, "")
            answer = f"HTTP {error.code} {said[:100]}".strip()
            if error.code == 416 and have:
                _drop(job.part)
                raise _Interrupted(answer) from None
            if error.code in AGAIN:
                raise _Interrupted(answer, _digits(error.headers.get("Retry-After"))) from None
            raise _Useless(answer) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_reason(error)) from None
    except ValueError as error:  # redirected to an address that is none
        raise _Useless(_reason(error)) from None


def _receive(job: _Job, response: http.client.HTTPResponse, have: int, total: int | None) -> int:
    """Size of the partial file when the server has sent everything."""
    with job.part.open("ab") as out:
        while True:
            try:
                chunk = response.read1(CHUNK)
                while have == 0 and 0 < len(chunk) < 512 and (more := response.read1(CHUNK)):
                    chunk += more
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise _Interrupted(f"{_reason(error)} after {size_text(have)}") from None
            if not chunk:
                return have
            if have == 0 and not looks_like(chunk, job.file.unpack):
                kind = response.headers.get_content_type()
                wanted = "weights" if job.file.unpack == "weights" else "an archive"
                raise _Useless(f"returned {kind}, not {wanted}" + (" (a web page)" if kind == "text/html" else ""))
            out.write(chunk)
            job.running.add(chunk)
            have += len(chunk)
            if total and have > total:
                _drop(job.part)
                raise _Useless(f"sent more than {size_text(total)}")
            if job.progress:
                job.progress(have, total)


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """(offset of the first byte, total bytes or None) of a response."""
    if response.status == 206:
        found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", response.headers.get("Content-Range", ""))
        if not found:
            return -1, None
        return int(found[1]), None if found[2] == "*" else int(found[2])
    return 0, _digits(response.headers.get("Content-Length"))


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "stalled"
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return " ".join(text.split())[:200]


def _digits(text: str | None) -> int | None:
    """A header's number; None for anything else, such as the digits of other alphabets."""
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text.strip()) else None


# ---- notes next to a partial download --------------------------------------------------------------------------------


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_notes(part: Path, url: str) -> dict[str, Any]:
    """Notes that allow a download from the same URL to resume; empty if it must restart."""
    try:
        notes = read_json(_notes(part))
        usable = notes["url"] == url and (notes["validator"] or notes["total"]) is not None
        usable = usable and isinstance(notes["validator"], str | None) and isinstance(notes["total"], int | None)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return dict(notes) if usable else {}


def _write_notes(part: Path, url: str, response: http.client.HTTPResponse, total: int | None) -> None:
    write_atomically(_notes(part), json.dumps({"url": url, "total": total, "validator": _validator(response)}) + "\n")


def _validator(response: http.client.HTTPResponse) -> str | None:
    """The header that identifies this version of the file; a weak ETag does not identify its bytes."""
    tag: str | None = response.headers.get("ETag")
    date: str | None = response.headers.get("Last-Modified")
    return tag if tag and not tag.startswith("W/") else date


def _changed(response: http.client.HTTPResponse, notes: dict[str, Any]) -> bool:
    """Whether a range response is of another version than the notes say: some servers ignore If-Range."""
    now = _validator(response)
    return bool(notes and response.status == 206 and now and now != notes["validator"])
