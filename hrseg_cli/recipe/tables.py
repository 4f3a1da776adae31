"""Plans of tables of many runs: rows and columns, their order, and published numbers to print next to them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from hrseg_cli.recipe.reading import Settings, names, read

Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][\w.+-]*$")]


class TableRow(Settings):
    """row: folder of its runs. numbers: published ones, as printed, set by set and in each metric by metric."""

    row: Folder
    label: str
    numbers: tuple[str, ...] = ()


class TablePlan(Settings):
    """One table: its title and its rows from top to bottom."""

    title: str
    rows: list[TableRow] = Field(min_length=1)


class Scores(Settings):
    """A table of the mean score by ``metric`` after ``after`` clicks, compared with the base object by object."""

    metric: str
    after: int = Field(10, ge=1)
    title: str


class TablesPlan(Settings):
    """Tables of the runs in one folder, ``ROW/SEED/SET``; ``ROW/SEED/train`` may hold the training of a row.

    sets: folder of a set -> its title. metrics: columns of each set, such as ``biou``, or ``iou@80`` for clicks to a
        score other than ``level``.
    base: the row that others are compared with. timed: the set whose seconds per click are printed [the last].
    scores: see :class:`Scores`; by default there is no such table.
    published: heading of the columns of published numbers; published_note: a sentence about them.
    published_data: datasets that the published rows were trained on. A note below the tables names others, followed by
        other_data_note.
    made_by: command that creates the runs, for the error if there are none.
    """

    name: str
    tables: list[TablePlan] = Field(min_length=1)
    sets: dict[Folder, str] = Field(min_length=1)
    metrics: list[Annotated[str, Field(pattern=r"^\w+(@[1-9]\d?(\.\d+)?)?$")]] = Field(min_length=1)
    level: float = Field(0.9, gt=0, le=1)
    base: Folder = "base"
    timed: str = ""
    scores: Scores | None = None
    published: str = "published"
    published_note: str = ""
    published_data: list[str] = []
    other_data_note: str = ""
    made_by: str = "'hrseg evaluate --out FOLDER/ROW/SEED/SET'"

    @model_validator(mode="after")
    def _fits(self) -> TablesPlan:
        if "train" in self.sets:
            raise ValueError("sets: 'train' is the folder of a row's training; choose another name")
        if self.timed and self.timed not in self.sets:
            raise ValueError(f"timed: '{self.timed}' is not among the sets")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metrics: a column is named twice")
        for row in (row for table in self.tables for row in table.rows):
            if len(row.numbers) not in (0, len(self.columns)):
                raise ValueError(f"row {row.row}: has {len(row.numbers)} numbers for {len(self.columns)} columns")
        return self

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """(set, metric), in printing order."""
        return tuple((part, metric) for part in self.sets for metric in self.metrics)

    def target(self, metric: str) -> tuple[str, float]:
        """Name and level of one of ``metrics``."""
        name, _, percent = metric.partition("@")
        return name, float(percent) / 100 if percent else self.level

    @property
    def rows(self) -> list[str]:
        """The folders of all rows, each once, the base first."""
        return list(dict.fromkeys([self.base, *(row.row for table in self.tables for row in table.rows)]))


def load_tables(name: str) -> TablesPlan:
    """Load a plan by name or path of a YAML file. Raises UnknownName or HrsegError."""
    return read(TablesPlan, "tables", name)


def tables_names() -> list[str]:
    """Names of the plans that come with hrseg."""
    return names("tables")
