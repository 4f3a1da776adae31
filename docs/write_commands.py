"""Write docs/commands/NAME.md, a page per command, from the help texts.

python docs/write_commands.py            updates pages that have changed
python docs/write_commands.py --check    only lists pages that are out of date; exit code 1 if there are any
"""

from __future__ import annotations

import sys
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from hrseg_cli.cli import app

FOLDER = Path(__file__).resolve().parent / "commands"
WIDTH = 100


def pages() -> dict[str, str]:
    """File name -> text, for every command and an index of them."""
    commands = get_command(app).commands  # type: ignore[attr-defined]  # a group
    made = {f"{name}.md": f"# hrseg {name}\n\n```\n{_help(name)}\n```\n" for name in commands}
    lines = [f"- [`hrseg {name}`]({name}.md): {commands[name].short_help}" for name in commands]
    made["README.md"] = "\n".join(["# Commands", "", "Written by `make docs` from the help texts.", "", *lines, ""])
    return made


def _help(name: str) -> str:
    result = CliRunner().invoke(
        app,
        [name, "--help"],
        prog_name="hrseg",
        env={"COLUMNS": str(WIDTH)},
        terminal_width=WIDTH,
        max_content_width=WIDTH,
    )
    if result.exit_code:
        raise RuntimeError(f"hrseg {name} --help: exit code {result.exit_code}")
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


def stale() -> list[Path]:
    """Pages that are missing, differ, or belong to no command."""
    wanted = {FOLDER / name: text for name, text in pages().items()}
    there = {path: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    return sorted(path for path in wanted.keys() | there.keys() if wanted.get(path) != there.get(path))


def main() -> int:
    old = stale()
    if "--check" in sys.argv[1:]:
        for path in old:
            print(f"docs/commands/{path.name} is not up to date; run 'make docs' and commit", file=sys.stderr)
        return bool(old)
    texts = pages()
    FOLDER.mkdir(exist_ok=True)
    for path in old:
        if path.name in texts:
            path.write_text(texts[path.name], encoding="utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
