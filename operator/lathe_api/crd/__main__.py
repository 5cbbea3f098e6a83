"""Writes the CustomResourceDefinitions into a folder, one file each."""

import sys
from pathlib import Path

from lathe_api.crd.kinds import documents


def main() -> None:
    """`python -m lathe_api.crd FOLDER`."""
    if len(sys.argv) != 2:  # noqa: PLR2004
        sys.exit("usage: python -m lathe_api.crd FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
