"""The last lines of `make demo`: what its two runs found, and where the pictures are.

python docs/demo_result.py runs/demo clicknet_m
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path


def main() -> None:
    folder, model = Path(sys.argv[1]).resolve(), sys.argv[2]
    found = [numbers(folder / name) for name in (model, "grabcut")]
    print(f"\nOn average over {found[0]['n']:.0f} objects, 90 % IoU takes")
    for name, one in zip((model, "a graph cut"), found, strict=True):
        failed = round(one["NoF@90"] * one["n"])
        more = f" ({failed} not reached in 10)" if failed else ""
        print(f"  {name:<11} {one['NoC@90']:4.1f} clicks{more}")
    print(f"Masks click by click:   {folder / 'pictures.png'}")
    print(f"Score after each click: {folder / 'curves.png'}")


def numbers(run: Path) -> dict[str, float]:
    """measure -> value of the first dataset in a run folder, and "n", the number of objects."""
    with (run / "noc.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    own = [row for row in rows if row["dataset"] == rows[0]["dataset"]]
    return {**{row["measure"]: float(row["value"]) for row in own}, "n": float(own[0]["n"])}


if __name__ == "__main__":
    main()
