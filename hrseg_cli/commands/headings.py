"""Help texts: options under plain headings, without rich, which takes longer to import than everything else.

Options and commands choose their heading with Typer's ``rich_help_panel``.
"""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

DATA = "Data"
MODEL = "Model"
PROTOCOL = "Protocol"
REFINER = "Refiner"
CLICKS = "Clicks"
METRICS = "Metrics"
TRAINING = "Training"
DOWNLOAD = "Known datasets"
DRAWING = "Drawing (procedural)"
OUTPUT = "Output"
MACHINE = "Machine"
ORDER = (
    *("Arguments", DATA, DOWNLOAD, DRAWING, MODEL, REFINER, CLICKS, PROTOCOL, METRICS, TRAINING, OUTPUT, MACHINE),
    "Options",
)
WIDEST = 24  # of the column of names; a longer name gets a line of its own

Entries = list[tuple[str, str]]  # name and help text


class Command(TyperCommand):
    """A command with its options under headings, in :data:`ORDER`; within a heading, in the order of the function."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, Entries] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is None:
                continue
            name, text = record[0], re.sub(r"\[default: \((.*?)\)(?=[];])", r"[default: \1", record[1])
            heading = getattr(parameter, "rich_help_panel", None) or "Options"
            if parameter.param_type_name == "argument":
                heading, name = "Arguments", name.partition(" <")[0]  # Typer adds the Python type
            sections.setdefault(heading, []).append((name, text))
        _write(formatter, {heading: sections[heading] for heading in sorted(sections, key=ORDER.index)})

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}").replace("}...", "...") for piece in super().collect_usage_pieces(ctx)]


class Group(TyperGroup):
    """The program: its own options, then the commands under headings in the order of their registration."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, Entries] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            sections.setdefault(command.rich_help_panel or "Commands", []).append((name, command.short_help))
        _write(formatter, sections)


def _write(formatter: Any, sections: dict[str, Entries]) -> None:
    """All sections in the same two columns."""
    lengths = [len(name) for rows in sections.values() for name, _ in rows]
    width = max((length for length in lengths if length <= WIDEST), default=WIDEST)
    for heading, rows in sections.items():
        with formatter.section(heading):
            formatter.write_dl([(name.ljust(width), text) for name, text in rows], col_max=width)
