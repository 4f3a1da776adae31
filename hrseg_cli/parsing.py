"""Parse untrusted JSON, tables, YAML and safetensors headers within :mod:`hrseg_cli.limits`.

The parsers raise many kinds of exceptions. Everything here raises only :class:`Malformed`, a ValueError whose message
is one short line with the place, and OSError for files that cannot be read. The caller adds the file and the fix.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, TypeVar

from hrseg_cli.limits import DIGITS, HEADER, SETTINGS, TEXT, TextLimits

if TYPE_CHECKING:
    import yaml

Parsed = TypeVar("Parsed")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {91: 1, 123: 1, 93: -1, 125: -1}  # of [ { ] }


class Malformed(ValueError):
    """The content of a file is not what it should be. The message is a reason, such as "line 3: 2 columns instead
    of 3"."""


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file of at most that many bytes. Raises Malformed or OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most:
            # Not read(most + 1), which allocates as much at once; a pipe has no size, and a file may grow.
            parts = [file.read(size + 1)]
            while parts[-1] and sum(map(len, parts)) <= most:
                parts.append(file.read(1 << 20))
            if sum(map(len, parts)) <= most:
                return b"".join(parts)
    raise Malformed(f"more than {most / 1e6:.3g} MB")


def read_text(path: Path, limits: TextLimits = TEXT) -> str:
    """The content of a UTF-8 file, with or without a byte order mark. Raises Malformed or OSError."""
    return _text(read_bytes(path, limits.bytes))


def reason(error: BaseException) -> str:
    """Why a file could not be read or is not what it should be, for a message that names the file."""
    if isinstance(error, KeyError):
        return f"no {shown(error.args[0])}" if error.args else "a missing key"
    if isinstance(error, TypeError | AttributeError):
        return "values of other types than expected"
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def shown(value: object) -> str:
    """The repr of a value, shortened to fit into a message: it may be huge, or contain itself."""
    text = " ".join(_SHORT.repr(value).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 2


# ---- JSON ------------------------------------------------------------------------------------------------------------


def read_json(path: Path, limits: TextLimits = TEXT, *, finite: bool = True) -> Any:
    """The content of a JSON file; see :func:`parse_json`. Raises Malformed or OSError."""
    return parse_json(read_bytes(path, limits.bytes), limits, finite=finite)


def parse_json(data: str | bytes, limits: TextLimits = TEXT, *, finite: bool = True) -> Any:
    """The value of a JSON text. Raises Malformed, also for duplicate keys and for halves of surrogate pairs, which no
    file or terminal can take.

    finite: refuse NaN, infinity and integers of more than 18 digits. Otherwise these are NaN and infinity, for callers
    who check every number and can say where it is.
    """
    return _guarded(_parse_json if finite else _parse_any_json, data, limits)


def _parse_any_json(data: str | bytes, limits: TextLimits) -> Any:
    return _parse_json(data, limits, finite=False)


def _parse_json(data: str | bytes, limits: TextLimits, finite: bool = True) -> Any:
    blob = data.encode() if isinstance(data, str) else data
    if not blob.strip():
        raise Malformed("an empty file" if not blob else "nothing but white space")
    _check_size(blob, limits)
    strict: dict[str, Any] = {"parse_int": _integer, "parse_float": _float, "parse_constant": _no_number}
    lenient = {"parse_int": _integer_or_infinity}
    found = json.loads(_text(blob), object_pairs_hook=_unique, **(strict if finite else lenient))
    if b"\\ud" in blob or b"\\uD" in blob:
        json.dumps(found, ensure_ascii=False).encode()  # UnicodeEncodeError for half of a pair
    return found


def _check_size(blob: bytes, limits: TextLimits) -> None:
    """Check entries and nesting before they are allocated: "[]," takes 24 times its size in memory."""
    if len(blob) > limits.bytes:
        raise Malformed(f"more than {limits.bytes / 1e6:.3g} MB")
    if blob.count(b",") + blob.count(b"[") + blob.count(b"{") > limits.entries:
        raise Malformed(f"more than {limits.entries} values")
    if blob.count(b"[") + blob.count(b"{") <= limits.nesting:
        return
    plain = blob.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in blob else blob
    brackets = b"".join(plain.split(b'"')[::2]).translate(None, _NOT_BRACKETS)  # outside strings
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > limits.nesting:
        raise Malformed(f"nested more than {limits.nesting} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a duplicate key would silently lose its first value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise Malformed(f"duplicate key {shown(key)}")
    return found


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise Malformed(f"a number of {len(text)} digits")
    return int(text)


def _integer_or_infinity(text: str) -> float:
    return int(text) if len(text) <= DIGITS else math.inf


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Malformed(f"the number {shown(text)} is too large")
    return value


def _no_number(text: str) -> NoReturn:
    raise Malformed(f"{text} is not a number")


# ---- tables ----------------------------------------------------------------------------------------------------------


def read_table(path: Path, columns: Sequence[str], limits: TextLimits = TEXT) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> text) of each row of a table, stripped. Raises Malformed or OSError.

    Cells are separated by commas, or by semicolons or tabs if the first line has more of those, as Excel writes them.
    columns: that the first line must name; "a|b" is either of the two.
    """
    text = read_text(path, limits)
    if text.count("\n") + text.count("\r") > limits.entries:
        raise Malformed(f"more than {limits.entries} lines")
    head, *_ = text.splitlines() or [""]
    separator = max(",;\t", key=head.count)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    names: list[str] | None = None
    while True:
        try:
            row = [cell.strip() for cell in next(table)]
        except StopIteration:
            break
        except (csv.Error, ValueError) as error:
            raise Malformed(f"line {table.line_num}: {error}") from None
        if names is None:
            names = row
            if missing := [column for column in columns if sum(map(names.count, column.split("|"))) != 1]:
                wanted = ", ".join(missing).replace("|", " or ")
                raise Malformed(f"the first line must name the column {wanted} once")
        elif any(row):
            if len(row) != len(names):
                raise Malformed(f"line {table.line_num}: {len(row)} columns instead of {len(names)}")
            yield table.line_num, dict(zip(names, row, strict=True))
    if names is None:
        raise Malformed(f"an empty file; the first line must name the columns {','.join(columns)}")


# ---- YAML ------------------------------------------------------------------------------------------------------------


def read_yaml(path: Path, limits: TextLimits = SETTINGS) -> Any:
    """The content of a YAML file. Raises Malformed or OSError."""
    return parse_yaml(read_text(path, limits), limits)


def parse_yaml(text: str, limits: TextLimits = SETTINGS) -> Any:
    """The value of a YAML text: plain types only. Raises Malformed."""
    return _guarded(_parse_yaml, text, limits)


def _parse_yaml(text: str, limits: TextLimits) -> Any:
    import yaml

    if len(text) > limits.bytes:
        raise Malformed(f"more than {limits.bytes / 1e6:.3g} MB")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)  # in C where it is there: ten times as fast
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, limits, {}, 1)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        what = " ".join((getattr(error, "problem", None) or str(error)).split())[:200]
        raise Malformed(f"line {place.line + 1}: {what}" if place else what) from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, limits: TextLimits, known: dict[int, int], depth: int) -> int:
    """Number of nodes, with aliases written out: nine of them nested ten times stand for three billion."""
    import yaml

    if depth > limits.nesting:
        raise Malformed(f"nested more than {limits.nesting} deep")
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = list(node.value)
        elif isinstance(node, yaml.MappingNode):
            inner = [one for pair in node.value for one in pair]
        known[id(node)] = 1 + sum(_count(one, limits, known, depth + 1) for one in inner)
    if known[id(node)] > limits.entries:
        raise Malformed(f"more than {limits.entries} values")
    return known[id(node)]


# ---- safetensors -----------------------------------------------------------------------------------------------------


def safetensors_header(blob: bytes) -> dict[str, Any]:
    """The header of a safetensors file: name of each tensor -> its dtype, shape and place. Raises Malformed."""
    return header_of(io.BytesIO(blob))


def header_of(file: BinaryIO) -> dict[str, Any]:
    """Like :func:`safetensors_header`, from the start of an open file."""
    size = int.from_bytes(file.read(8), "little")
    if size > HEADER.bytes:
        raise Malformed(f"a header of {size} bytes")
    header = parse_json(file.read(size), HEADER)
    if not isinstance(header, dict) or not all(isinstance(one, dict) for one in header.values()):
        raise Malformed("its header is not a table of tensors")
    return header


def hrseg_metadata(header: dict[str, Any]) -> dict[str, Any] | None:
    """What hrseg has stored in a safetensors header; None in files of other programs. Raises Malformed."""
    text = header.get("__metadata__", {}).get("hrseg")
    return None if text is None else own_metadata(text)


def own_metadata(text: Any) -> dict[str, Any]:
    """The table in the metadata key ``hrseg`` of a safetensors or ONNX file. Raises Malformed."""
    if not isinstance(text, str):
        raise Malformed("its 'hrseg' metadata is not text")
    found = parse_json(text, HEADER)
    if not isinstance(found, dict):
        raise Malformed("its 'hrseg' metadata is not a table")
    return found


# ----------------------------------------------------------------------------------------------------------------------


def _guarded(parse: Callable[[Any, TextLimits], Parsed], data: Any, limits: TextLimits) -> Parsed:
    try:
        return parse(data, limits)
    except (Malformed, MemoryError):
        raise
    except RecursionError:
        raise Malformed("nested too deeply") from None
    except UnicodeError:
        raise Malformed("not UTF-8 text") from None
    except Exception as error:  # parsers of strangers' code raise nearly anything
        raise Malformed(reason(error)) from None


def _text(blob: bytes) -> str:
    try:
        return blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = " (UTF-16?)" if blob[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise Malformed(f"not UTF-8 text, at byte {error.start}{kind}") from None
