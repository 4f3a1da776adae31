"""The guarded parsers: any text gives a value or one short line, within the declared limits."""

from __future__ import annotations

import json
import os
import struct
import threading
from pathlib import Path

import pytest

from hrseg_cli.limits import SETTINGS, TextLimits
from hrseg_cli.parsing import (
    Malformed,
    header_of,
    hrseg_metadata,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_table,
    read_text,
    reason,
    shown,
)

JSON = {
    "": "an empty file",
    " \n": "white space",
    "{": "line 1",
    '{"a": 1,}': "line 1",
    '{"a": 1, "b": 2, "a": 3}': "duplicate key 'a'",
    '{"o": {"a": 1, "a": 3}}': "duplicate key 'a'",
    "NaN": "not a number",
    "[-Infinity]": "not a number",
    "1e400": "too large",
    "9" * 5000: "5000 digits",
    "1234567890123456789": "19 digits",
    '"\\ud800"': "not UTF-8",
    "[" * 65 + "]" * 65: "nested more than 64 deep",
    "[" * 100_000: "nested more than 64 deep",
    '{"a":' * 50_000: "nested more than 64 deep",
    '["\\"]]]]]]", ' + "[" * 64 + "]" * 64 + "]": "nested more than 64 deep",  # brackets in a text do not count
}


@pytest.mark.parametrize(("text", "why"), JSON.items(), ids=range(len(JSON)))
def test_json_that_is_none(text: str, why: str) -> None:
    with pytest.raises(Malformed, match=why) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_json_is_read_as_before() -> None:
    text = '\ufeff{"a": [1, -2.5, 1e3, true, null, "\\u00e9\\ud83d\\ude00", "[[[{"], "b": {}}'
    assert parse_json(text.encode()) == json.loads(text[1:])
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json('["' + "[" * 1000 + '"]')
    assert parse_json("123456789012345678") == 123456789012345678


def test_json_is_bounded_before_it_is_parsed() -> None:
    few = TextLimits(bytes=100, entries=5)
    assert parse_json("[1,2,3,4]", few)
    for text in ("[1,2,3,4,5,6]", "[" + "[]" * 5, "[" + " " * 100 + "]"):
        with pytest.raises(Malformed, match="more than"):
            parse_json(text, few)


def test_a_file_is_not_read_beyond_its_limit(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # takes no disk space
    with pytest.raises(Malformed, match="more than"):
        read_json(tmp_path / "large", SETTINGS)
    assert read_bytes(Path(__file__), 1 << 60) == Path(__file__).read_bytes()  # allocates what is there


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """hrseg predict --clicks <(program)"""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"x" * 3_000_000,))
    writer.start()
    assert len(read_bytes(tmp_path / "pipe", 3_000_000)) == 3_000_000
    writer.join()


def test_text_of_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes("Bär".encode("utf-16"))
    with pytest.raises(Malformed, match="UTF-16"):
        read_text(tmp_path / "t")
    (tmp_path / "t").write_bytes("aBär".encode("latin-1"))
    with pytest.raises(Malformed, match="not UTF-8 text, at byte 2"):
        read_text(tmp_path / "t")


YAML = {
    "a: 2001-99-99": "month",
    "a: !!int abc": "invalid literal",
    "a: !!timestamp x": "other types",
    "a: !!bool x": "no 'x'",
    "a: " + "9" * 5000: "digits",
    "{a: " * 3000: "nesting",
    "- " * 100 + "a": "nested more than 64 deep",
    "a: [": "line",
    "? [a]\n: 1": "unhashable",
    "a: !!python/object:os.system x": "could not determine a constructor",
    "a: &a [*a]": "nested more than 64 deep",
    "\0": "control characters",
    "a: " + "1:" * 2000 + "1.5": "too large",
    "\n".join(
        ["a0: &a0 [x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20))]
    ): "more",
    "\n".join(
        ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 9))]
    ): "more",
}


@pytest.mark.parametrize(("text", "why"), YAML.items(), ids=range(len(YAML)))
def test_yaml_that_is_none(text: str, why: str) -> None:
    with pytest.raises(Malformed, match=why) as caught:
        parse_yaml(text)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_yaml_may_use_aliases() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]")["b"] == {"x": 1, "y": 2}
    assert parse_yaml("") is None


def table(tmp_path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    return list(read_table(tmp_path / "t.csv", ("image", "row")))


def test_tables_as_programs_write_them(tmp_path: Path) -> None:
    wanted = [(2, {"image": "a.png", "row": "1"}), (3, {"image": 'b, "c"', "row": ""})]
    for separator, end in ((",", "\n"), (", ", "\r\n"), (";", "\r\n"), ("\t", "\r")):
        rows = [("image", "row"), ("a.png", "1"), ('"b, ""c"""', "")]
        text = end.join(separator.join(row) for row in rows) + end + end
        assert table(tmp_path, "\ufeff" + text) == wanted


TABLES = {
    "": "an empty file",
    "row,col\n1,2\n": "the column image",
    "image,image,row\n": "the column image",
    "image,row\na\n": "line 2: 1 columns instead of 2",
    "image,row\na,1,2\n": "line 2: 3 columns instead of 2",
    'image,row\n"' + "x" * 200_000 + '",1\n': "line 2: field larger",
    'image,row\n"a,1\n': "unexpected end",
    'image,row\n"a"b,1\n': "line 2",
}


@pytest.mark.parametrize(("text", "why"), TABLES.items(), ids=range(len(TABLES)))
def test_tables_that_are_none(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        table(tmp_path, text)


def test_a_table_has_a_limit_of_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,row\n" + "a,1\n" * 11)
    with pytest.raises(Malformed, match="more than 10 lines"):
        list(read_table(tmp_path / "t.csv", ("image",), TextLimits(10**6, 10)))


HEADERS = {
    b"": "empty",
    struct.pack("<Q", 1 << 60) + b"{": "a header of 1152921504606846976 bytes",
    struct.pack("<Q", 5) + b"[1,2]": "not a table",
    struct.pack("<Q", 9) + b'{"a": 12}': "not a table",
    struct.pack("<Q", 100_000) + b'{"a":' * 20_000: "nested",
}


@pytest.mark.parametrize(("blob", "why"), HEADERS.items(), ids=range(len(HEADERS)))
def test_safetensors_headers_that_are_none(tmp_path: Path, blob: bytes, why: str) -> None:
    (tmp_path / "m").write_bytes(blob)
    with (tmp_path / "m").open("rb") as file, pytest.raises(Malformed, match=why):
        header_of(file)


def test_metadata_of_other_programs_is_told_from_damaged_metadata() -> None:
    assert hrseg_metadata({}) is None
    assert hrseg_metadata({"__metadata__": {"format": "pt"}}) is None
    assert hrseg_metadata({"__metadata__": {"hrseg": '{"kind": "model"}'}}) == {"kind": "model"}
    for text in ("5", "[]", '{"format": Infinity}', "{"):
        with pytest.raises(Malformed):
            hrseg_metadata({"__metadata__": {"hrseg": text}})


def test_messages_stay_short() -> None:
    bomb: list[object] = ["x"] * 9
    for _ in range(20):
        bomb = [bomb] * 9
    assert len(shown(bomb)) < 2000
    assert len(shown("x" * 10**6)) < 100
    assert reason(KeyError("a")) == "no 'a'"
    assert reason(TypeError("'int' object is not subscriptable")) == "values of other types than expected"
    assert reason(PermissionError(13, "Permission denied")) == "Permission denied"
    assert reason(ValueError()) == "ValueError"
