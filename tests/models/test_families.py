"""What is particular to one family of networks is known in its folder alone."""

from __future__ import annotations

import re
from pathlib import Path

import hrseg_cli

PACKAGE = Path(hrseg_cli.__file__).parent
# Families, their parts, and the names of their layers. A name that a user types, as h18s, is no such secret.
SECRETS = re.compile(
    r"hrnet|\bocr\b|ocr_|_ocr|feature_extractor|cls_head|aux_head|maps_transform|clicknet(?!_m)|stage\d|transition\d"
    r"|f_pixel|f_object",
    re.IGNORECASE,
)


def test_no_other_module_names_a_family_or_its_layers() -> None:
    """The import contract sees imports only; texts and names of layers would tie a module to a family all the same."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if "models" not in path.relative_to(PACKAGE).parts]
    assert len(paths) > 50
    for path in paths:
        if path.name != "catalog.py":
            found = [line.strip() for line in path.read_text().splitlines() if SECRETS.search(line)]
            assert not found, path
