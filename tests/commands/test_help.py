"""What a newcomer reads: help under headings, complete lists of names, a command line that starts at once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import pytest
from typer.main import get_command

from hrseg_cli import catalog, cli
from hrseg_cli.commands import headings, options
from hrseg_cli.recipe import BinarizeRule, protocol_names

Command = Callable[..., Any]
COMMANDS = list(get_command(cli.app).commands)  # type: ignore[attr-defined]  # a group


def help_of(hrseg: Command, name: str) -> str:
    done = hrseg(name, "--help")
    assert done.code == 0
    return str(done.out)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_heading_a_metavar_and_a_text(hrseg: Command, name: str) -> None:
    text = help_of(hrseg, name)
    assert not re.search(r"<[a-z]", text), "the Python type of a value says nothing to a user"
    assert "{" not in text
    assert "default: (" not in text
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    for parameter in command.params:
        if parameter.name not in ("help", "install_completion"):
            assert parameter.help.endswith("."), parameter.name
            assert (getattr(parameter, "rich_help_panel", None) or "Options") in headings.ORDER
    for private in ("mend", "goes on", "go on ", "there already", "leave it out"):
        assert private not in text


def test_evaluate_and_simulate_clicks_share_their_headings(hrseg: Command) -> None:
    found = {name: re.findall(r"(?m)^(\w+):$", help_of(hrseg, name)) for name in ("evaluate", "simulate-clicks")}
    assert found["evaluate"] == ["Data", "Model", "Protocol", "Metrics", "Output", "Machine", "Options"]
    assert [one for one in found["simulate-clicks"] if one != "Clicks"] == found["evaluate"]


@pytest.mark.parametrize(
    ("name", "option", "names"),
    [
        ("evaluate", "--protocol", protocol_names()),
        ("simulate-clicks", "--protocol", protocol_names()),
        ("predict", "--protocol", protocol_names()),
        ("annotate", "--protocol", protocol_names()),
        ("benchmark", "--protocol", protocol_names()),
        ("evaluate", "--metric", list(catalog.METRICS)),
        ("report", "--metric", list(catalog.METRICS)),
        ("train", "--adapter", list(catalog.ADAPTERS)),
        ("evaluate", "--binarize", list(get_args(BinarizeRule))),
        ("report", "--format", list(catalog.FORMATS)),
    ],
)
def test_an_option_names_everything_that_it_takes(hrseg: Command, name: str, option: str, names: list[str]) -> None:
    """Texts that cannot be derived without a slow import are held against what they are about."""
    text = " ".join(help_of(hrseg, name).split())
    own = re.search(rf"{option} [A-Z]+ (.*?) (?:-\w, )?--", text + " --")
    assert own is not None
    assert set(names) <= set(re.findall(r"[\w-]+", own[1]))


def test_help_imports_nothing_slow() -> None:
    code = (
        "import sys; from hrseg_cli.cli import main; sys.argv = ['hrseg', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "slow = {'rich', 'torch', 'numpy', 'cv2', 'pandas', 'matplotlib', 'pydantic', 'yaml'} & sys.modules.keys()\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "--datset", "x"], "no such option --datset; did you mean --dataset?"),
        (["predict", "a.jpg", "--count", "3"], "no such option --count; 'hrseg prepare-data' has it."),
        (
            ["--model", "x", "evaluate"],
            "no such option --model; write it after the command: hrseg evaluate --model.",
        ),
        (["evaluate"], "missing option '--dataset' / '-d'."),
        (["predict", "a.jpg", "--adapter", "a.safetensors"], "no such option --adapter; write --model BASE+ADAPTER, "),
        (["evalute"], "no such command 'evalute'. Did you mean 'evaluate'?"),
        (["frobnicate"], "no such command 'frobnicate'; one of annotate, predict, refine, evaluate, simulate-clicks, "),
        (["evaluate", "-d", "x", "--limit", "0"], "invalid value for '--limit': "),
        (["report"], "invalid value: give run folders, or one folder with --tables PLAN."),
    ],
)
def test_wrong_usage_takes_one_line_and_a_hint(hrseg: Command, words: list[str], said: str) -> None:
    done = hrseg(*words)
    name = words[0] if words[0] in COMMANDS else ""
    assert (done.code, done.out) == (2, "")
    line, hint = done.err.splitlines()
    assert line.startswith(f"hrseg: {said}")
    assert hint == f"Try '{f'hrseg {name}'.strip()} --help'."


def test_without_a_command_the_help_is_shown(hrseg: Command) -> None:
    done = hrseg()
    assert done.code == 2
    assert "Segment your images:" in done.out + done.err


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("evaluate --metric b", ["biou"]),
        ("evaluate --protocol fi", ["fixed"]),
        ("predict --model grab", ["grabcut"]),
        ("simulate-clicks --dataset gr", ["grabcut"]),
        ("train --recipe tiny", ["tiny_procedural"]),
        ("adapt --adapter lo", ["lora"]),
        ("list prot", ["protocols"]),
    ],
)
def test_the_shell_completes_values(
    hrseg: Command, monkeypatch: pytest.MonkeyPatch, line: str, found: list[str]
) -> None:
    words = f"hrseg {line}"
    for name, value in (("_HRSEG_COMPLETE", "complete_bash"), ("COMP_WORDS", words)):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert hrseg().out.split() == found


def test_a_dumb_terminal_and_no_color_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as far as rich can know
    monkeypatch.setenv("TERM", "dumb")
    assert options.progress().disable
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    bar = options.progress()
    assert not bar.disable
    assert bar.console.no_color
