"""Run the commands of docs/getting-started.md up to its Python part, compare their output, and keep their pictures.

    python docs/run_getting_started.py

The commands run in a temporary folder. A line that the page shows but a command does not print is an error. Pictures
replace those in docs/_static, at the width at which pages show them.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
WIDTH = 1100


def main() -> int:
    """Return the exit status: 1 if the page shows a line that was not printed."""
    page = (DOCS / "getting-started.md").read_text().partition("## The same in Python")[0]
    blocks = re.findall(r"^```(sh|text)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    printed, missing = "", []
    with tempfile.TemporaryDirectory() as folder:
        for kind, block in blocks:
            if kind == "sh":
                done = subprocess.run(
                    ["bash", "-ec", block], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
                )
                printed += done.stdout
            else:
                missing += [line for line in block.splitlines() if line != "..." and line not in printed]
        for picture in Path(folder).glob("*.png"):
            with Image.open(picture) as image:
                size = WIDTH, round(image.height * WIDTH / image.width)
                small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
                small.save(DOCS / "_static" / picture.name, optimize=True)
    for line in missing:
        print(f"shown on the page, not printed: {line}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
