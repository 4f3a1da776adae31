"""Public weights by name, downloaded from a server of our own."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from http_server import Server, misbehaving_server

from hrseg_cli.checkpoints import manifests
from hrseg_cli.checkpoints.formats import save_checkpoint
from hrseg_cli.checkpoints.manifests import fetched, load_model_manifest, model_manifest_names, place_of
from hrseg_cli.checkpoints.resolve import load_model
from hrseg_cli.errors import HrsegError, UnknownName
from hrseg_cli.models.hrnet import ClickHRNet
from hrseg_cli.recipe import data_folder, protocol_names


@pytest.mark.parametrize("name", model_manifest_names())
def test_each_says_where_it_comes_from(name: str) -> None:
    one = load_model_manifest(name)
    assert one.family in ("hrnet", "simpleclick", "sam")
    assert one.protocol in (*protocol_names(), "simpleclick")
    assert all(source.startswith("https://") for source in one.sources)
    assert not one.hub or one.family == "sam"
    assert not one.file or (one.file.name.endswith(".pth") and one.file.how)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_checkpoint(ClickHRNet(width=4, ocr_width=8, small=True), path, {})
    return path.read_bytes()


@pytest.fixture
def server(weights: bytes) -> Iterator[Server]:
    with misbehaving_server({"/tiny.safetensors": weights}) as server:
        yield server


@pytest.fixture
def known(tmp_path: Path, server: Server, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes "tiny" the only public weights, in a cache of its own; the keywords change its file."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "manifests"
    folder.mkdir()

    def write(**changes: Any) -> None:
        content = yaml.safe_load((data_folder("model_manifests") / "ritm_h18s.yaml").read_text())
        file = {"name": "tiny.safetensors", "urls": [server.url("/tiny.safetensors")], "how": "ask"}
        content |= {"name": "tiny", "file": file | {"sha256": hashlib.sha256(weights).hexdigest(), **changes}}
        (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
        manifests._read.cache_clear()

    monkeypatch.setattr(manifests, "data_folder", lambda name: folder)
    monkeypatch.setattr(manifests, "fetch", partial(manifests.fetch, timeout=1.0, retries=0, wait=0.01))
    write()
    return write


def test_they_are_downloaded_on_first_use_only(
    known: Callable[..., None], server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model, provenance = load_model("tiny")
        assert "tiny: downloading tiny.safetensors" in caplog.text
        assert (model.name, provenance["weights"]) == ("hrnet_ocr", "tiny")
        server.script("/tiny.safetensors", "404")
        caplog.clear()
        load_model("tiny")
    assert len(server.requests) == 1
    assert not caplog.text


def test_an_unknown_checksum_is_pinned(known: Callable[..., None], server: Server, tmp_path: Path) -> None:
    known(sha256=None)
    assert fetched(load_model_manifest("tiny"))["pinned"]
    place = place_of(load_model_manifest("tiny"))
    assert place is not None
    place.unlink()
    server.script("/tiny.safetensors", "corrupt")
    with pytest.raises(HrsegError, match="expected SHA-256"):
        load_model("tiny")
    assert not place.exists()


@pytest.mark.parametrize(
    ("answer", "line"),
    [("404", "HTTP 404"), ("html", "not weights"), ("corrupt", "expected SHA-256"), ("503", "HTTP 503")],
)
def test_a_failed_download_is_one_line(
    answer: str, line: str, known: Callable[..., None], server: Server, hrseg: Callable[..., Any], tmp_path: Path
) -> None:
    server.script("/tiny.safetensors", answer)
    done = hrseg("prepare-model", "tiny")
    assert done.code == 1
    said = [one for one in done.err.splitlines() if one.startswith("hrseg: ")]
    assert len(said) == 1
    assert line in said[0]
    assert "hrseg prepare-model tiny --from FILE" in said[0]
    assert not list((tmp_path / "cache").rglob("tiny.safetensors"))


def test_without_a_network(known: Callable[..., None]) -> None:
    known(urls=["http://127.0.0.1:9/tiny.safetensors"])
    with pytest.raises(HrsegError, match=r"tiny: .*[Rr]efused.*hrseg prepare-model tiny `from` FILE") as caught:
        load_model("tiny")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_copy_of_the_user_is_kept(
    known: Callable[..., None], server: Server, hrseg: Callable[..., Any], weights: bytes, tmp_path: Path
) -> None:
    """Also of a file without a link; a copy of something else is refused."""
    known(urls=[])
    with pytest.raises(HrsegError, match="no public link; ask"):
        load_model("tiny")
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "tiny.safetensors").write_bytes(weights[:-1])
    assert hrseg("prepare-model", "tiny", "--from", tmp_path / "wrong").code == 1
    (tmp_path / "tiny.safetensors").write_bytes(weights)
    done = hrseg("prepare-model", "tiny", "--from", tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["sha256"] == hashlib.sha256(weights).hexdigest()
    load_model("tiny")
    assert not server.requests


def test_unknown_names_and_broken_manifests(known: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'tiny'"):
        load_model("tinyy")
    with pytest.raises(UnknownName):
        load_model_manifest("other")
    for change in ({"sha256": "12"}, {"name": "../x"}, {"urls": ["ftp://x/y"]}, {"urls": [], "how": None}):
        known(**change)
        with pytest.raises(HrsegError, match=r"tiny\.yaml: .*correct the file"):
            load_model_manifest("tiny")
