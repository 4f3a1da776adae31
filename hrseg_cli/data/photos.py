"""Find the user's own images and masks: files, folders and patterns as typed. Nothing is opened."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from hrseg_cli.data.pixels import HEIF, SUFFIXES
from hrseg_cli.errors import HrsegError

OTHERS = (*HEIF, ".jxl", ".psd", ".svg", ".exr", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf")

log = logging.getLogger(__name__)


def find_images(words: Iterable[str]) -> list[Path]:
    """Each image once, in the order typed. A folder stands for the images directly in it; a pattern may contain ``**``.
    Raises HrsegError for a word that matches no image.
    """
    found: dict[str, Path] = {}
    for word in words:
        path = Path(word)
        if path.is_file():
            inside = [path]
        elif path.is_dir():
            inside = _named(word, path.iterdir())
        else:
            inside = _once(_named(word, map(Path, glob.glob(word, recursive=True))))
        if not inside:
            raise HrsegError(
                f"{word}: no image found; give a file, a folder of images, or a quoted pattern such as '*.jpg'"
            )
        for image in inside:
            try:
                str(image).encode()
            except UnicodeEncodeError:
                raise HrsegError(f"{str(image)!r}: the file's name is not UTF-8; rename it") from None
            found.setdefault(os.path.abspath(image), image)
    return list(found.values())


def _named(word: str, paths: Iterable[Path]) -> list[Path]:
    """The pictures among the files that a word stands for, with a warning about those that cannot be read."""
    files = list(paths)
    warn_of_others(word, files)
    return _pictures(files)


def warn_of_others(word: str, paths: Iterable[Path]) -> None:
    """Warn about pictures that cannot be read."""
    unread = set(OTHERS).difference(SUFFIXES)
    if others := sorted(path.name for path in paths if path.suffix.lower() in unread and not path.name.startswith(".")):
        log.warning(
            "%s: skipped %d pictures in formats that hrseg cannot read, such as %s; %s",
            word,
            len(others),
            others[0],
            "run pip install 'hrseg[heif]'" if others[0].lower().endswith(HEIF) else "convert them to JPEG or PNG",
        )


def _once(paths: list[Path]) -> list[Path]:
    """Each file by its shortest path: a link back to a folder above repeats all of its files many times."""
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: len(path.parts)):
        found.setdefault(os.path.join(os.path.realpath(path.parent), path.name), path)
    return sorted(found.values())


def masks_by_stem(folder: Path) -> dict[str, Path]:
    """Mask files in a folder by stem; if several have the same stem, the PNG."""
    return {path.stem: path for path in sorted(_pictures(folder.iterdir()), key=lambda p: p.suffix == ".png")}


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
