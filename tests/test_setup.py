"""What holds the house together: installation, what travels, a light start, and documents that tell the truth."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import typer.core
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hrseg_cli import __version__, catalog
from hrseg_cli.cli import app
from hrseg_cli.recipe import data_folder

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# What is installed


def requirements(name: str, extra: str = "") -> set[str]:
    """Canonical names of what an installed distribution requires on this machine."""
    found = [Requirement(text) for text in metadata.requires(name) or []]
    return {canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate({"extra": extra})}


def test_nothing_we_require_needs_torchvision_cuda_or_a_second_opencv() -> None:
    """torchvision makes pip choose another torch, headless OpenCV overwrites ours, and CUDA is torch's own affair."""
    installed = {canonicalize_name(d.metadata["Name"]) for d in metadata.distributions()}
    seen: set[str] = set()
    queue = requirements("hrseg") | requirements("hrseg", "dev")
    while queue:
        name = queue.pop()
        seen.add(name)
        if name in installed - {"torch"}:
            queue |= requirements(name) - seen
    assert {"torch", "opencv-python", "pytest"} <= seen, "the walk over the requirements is broken"
    assert not {n for n in seen if n in {"torchvision", "opencv-python-headless"} or n.startswith("nvidia-")}


def test_one_opencv_and_no_stray_cuda_libraries() -> None:
    """Two OpenCV distributions share cv2/ and break each other; a CPU build of torch comes without nvidia packages."""
    installed = {canonicalize_name(d.metadata["Name"]) for d in metadata.distributions()}
    assert {n for n in installed if n.startswith("opencv-")} == {"opencv-python"}
    if metadata.version("torch").endswith("+cpu"):
        assert not {n for n in installed if n.startswith("nvidia-") or n == "torchvision"}


def test_version_is_the_same_in_package_and_project() -> None:
    assert PROJECT["project"]["version"] == __version__


# What travels


@pytest.mark.parametrize("name", ["recipes", "data_manifests", "model_manifests"])
def test_data_travels_in_the_wheel_to_where_it_is_looked_for(name: str) -> None:
    """A folder without files is no part of a git clone, and then not even the installation works."""
    carried = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert carried[name] == f"hrseg_cli/{name}"
    assert any(path.is_file() for path in data_folder(name).rglob("*"))


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in catalog.TABLES.items() for name in table])
def test_every_name_of_the_catalog_resolves(kind: str, name: str) -> None:
    assert callable(catalog.resolve(kind, name))


# The command line


def test_help_does_not_wait_for_heavy_packages() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "hrseg_cli.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "evaluate" in done.stdout
    assert "typer" in imported
    assert imported.isdisjoint({"torch", "cv2", "pandas", "matplotlib", "lightning"})


def test_the_version_needs_no_command() -> None:
    command = [sys.executable, "-m", "hrseg_cli.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"hrseg {__version__}\n"


def commands_in(text: str) -> list[list[str]]:
    """The words after ``hrseg`` of each command line in a document or script; continued lines count as one."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [re.match(r"\s*(?:\$ |@)?(?:\./run |\.venv/bin/)?hrseg (?P<rest>.*)", line) for line in lines]
    return [shlex.split(match["rest"], comments=True) for match in found if match]


@pytest.mark.parametrize("document", ["README.md", "docs/tour.md", "Makefile"])
def test_commands_in_documents_exist_with_their_options(document: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    used = commands_in((ROOT / document).read_text(encoding="utf-8"))
    assert used, f"{document} shows no hrseg command"
    for words in used:
        name = next((word for word in words if not word.startswith("-")), None)
        if name is None:
            assert set(words) <= {"--help", "--version"}, words
            continue
        assert name in group.commands, f"{document}: hrseg {name}"
        options = {option for parameter in group.commands[name].params for option in parameter.opts}
        options |= {option for parameter in group.commands[name].params for option in parameter.secondary_opts}
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert asked <= options | {"--help", "--debug"}, f"{document}: hrseg {name}"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", ".ci/run"])
def test_make_targets_in_documents_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = (ROOT / document).read_text(encoding="utf-8")
    used = set(re.findall(r"(?:^|`|\" )\s*make ([a-z-]+)\b", text, re.MULTILINE))
    assert "test" in used
    assert used <= targets


# ./run, with a stand-in for the Python of .venv that writes down how it was called

STAND_IN = """#!/bin/sh
echo "$*" >>"{log}"
case "$*" in
*"pip install"*) exit ${{PIP_STATUS:-0}} ;;
*"-m venv"*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
*"import cv2"*) [ -z "${{CV2_ERROR:-}}" ] || {{ echo "$CV2_ERROR" >&2; exit 1; }} ;;
esac
"""
MISSING_LIBRARY = "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"


class Sandbox:
    """A project folder with ``run``, and a PATH of little stand-ins before the real one."""

    def __init__(self, folder: Path) -> None:
        self.home, self.bin, self.log = folder / "a project", folder / "bin", folder / "log"
        self.venv = self.home / ".venv"
        self.bin.mkdir()
        self.log.touch()
        (self.venv / "bin").mkdir(parents=True)
        shutil.copy(ROOT / "run", self.home)
        shutil.copy(ROOT / "pyproject.toml", self.home)
        self.script(self.venv / "bin" / "python", STAND_IN.format(log=self.log))
        self.script(self.bin / "id", "#!/bin/sh\necho 1000\n")

    @staticmethod
    def script(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}", **variables}
        return subprocess.run(
            [self.home / "run", *words], capture_output=True, text=True, env=environment, cwd=self.bin, timeout=60
        )

    def installations(self) -> int:
        return self.log.read_text(encoding="utf-8").count("pip install")


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_run_installs_once_and_keeps_words_folder_and_output(sandbox: Sandbox) -> None:
    for _ in range(2):
        done = sandbox.run("sh", "-c", 'pwd; printf "%s|" "$@"', "sh", "two words", "*")
        assert (done.returncode, done.stdout) == (0, f"{sandbox.bin}\ntwo words|*|")
    assert sandbox.installations() == 1
    assert done.stderr == ""


def test_run_prefers_the_commands_of_the_venv(sandbox: Sandbox) -> None:
    sandbox.script(sandbox.venv / "bin" / "hrseg", "#!/bin/sh\necho ours\n")
    assert sandbox.run("hrseg").stdout == "ours\n"


def test_run_installs_again_when_the_project_is_newer(sandbox: Sandbox) -> None:
    sandbox.run("true")
    os.utime(sandbox.venv / ".ready", (1, 1))
    assert sandbox.run("true").returncode == 0
    assert sandbox.installations() == 2


def test_run_does_an_interrupted_installation_again(sandbox: Sandbox) -> None:
    broken = sandbox.run("true", PIP_STATUS="1")
    assert broken.returncode == 1
    assert not (sandbox.venv / ".ready").exists()
    assert sandbox.run("true").returncode == 0
    assert sandbox.installations() == 2


def test_run_makes_the_venv_anew_after_a_move(sandbox: Sandbox) -> None:
    """Scripts in .venv/bin begin with the path of their Python: a copied folder would run the old one."""
    sandbox.run("true")
    sandbox.script(sandbox.bin / "python-of-the-system", STAND_IN.format(log=sandbox.log))
    sandbox.home = sandbox.home.rename(sandbox.home.with_name("moved"))
    assert sandbox.run("true", PYTHON="python-of-the-system").returncode == 0
    assert f"-m venv --clear {sandbox.home}/.venv" in sandbox.log.read_text(encoding="utf-8")
    assert sandbox.installations() == 2


def test_run_names_the_libraries_that_opencv_lacks(sandbox: Sandbox) -> None:
    done = sandbox.run("true", CV2_ERROR=MISSING_LIBRARY)
    assert done.returncode == 1
    assert "apt-get install --no-install-recommends libxcb1 libgl1 libglib2.0-0" in done.stderr.splitlines()[-1]
    assert not (sandbox.venv / ".ready").exists()


def test_run_installs_the_libraries_where_it_may(sandbox: Sandbox) -> None:
    """As root it asks apt-get, first for the lists; here that changes nothing, so the line to type comes after all."""
    sandbox.script(sandbox.bin / "id", "#!/bin/sh\necho 0\n")
    sandbox.script(sandbox.bin / "apt-get", f'#!/bin/sh\necho "apt-get $*" >>"{sandbox.log}"\n')
    done = sandbox.run("true", CV2_ERROR=MISSING_LIBRARY)
    calls = [line for line in sandbox.log.read_text(encoding="utf-8").splitlines() if line.startswith("apt-get")]
    assert calls == [
        "apt-get -qq update",
        "apt-get -qq install -y --no-install-recommends libxcb1 libgl1 libglib2.0-0",
    ]
    assert done.returncode == 1


def test_run_says_in_one_line_that_a_python_is_unfit(sandbox: Sandbox) -> None:
    shutil.rmtree(sandbox.venv)
    done = sandbox.run("true", PYTHON="no-such-python")
    assert done.returncode == 1
    assert done.stderr == "run: PYTHON=no-such-python is not a Python 3.11 or newer; name another one\n"


def test_run_names_the_package_when_venv_is_missing(sandbox: Sandbox) -> None:
    shutil.rmtree(sandbox.venv)
    answer = 'case "$*" in *venv*) exit 1 ;; *"%d.%d"*) echo 3.11 ;; esac'
    sandbox.script(sandbox.bin / "bare-python", f"#!/bin/sh\n{answer}\n")
    done = sandbox.run("true", PYTHON="bare-python")
    assert done.returncode == 1
    assert done.stderr.endswith("apt-get install python3.11-venv\n")


def test_run_without_a_command_shows_its_use(sandbox: Sandbox) -> None:
    done = sandbox.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ./run COMMAND")
    assert sandbox.installations() == 0
