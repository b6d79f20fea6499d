"""The demo from the first line to the last, on few scenes and two steps: its output, with numbers masked."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from gridrad_cube import demo
from gridrad_cube.training import load_config

GOLDEN = Path(__file__).parent / "golden" / "demo.txt"


def masked(text: str, out: Path) -> str:
    """Return the text without what depends on the machine: the folder, numbers and widths of columns."""
    text = text.replace(str(out), "OUT")
    text = re.sub(r"(?<=\s)-(?=\d)", "", text)  # the sign of a score near zero
    text = re.sub(r"\d+(,\d{3})*(\.\d+)?", "N", text)
    return re.sub(r" +", " ", text)


def test_output_is_that_of_the_page(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "SCENES", 6)
    monkeypatch.setattr(demo, "PLANTS", 6)
    monkeypatch.setattr(demo, "load_config", partial(load_config, steps=2, batch_size_per_gpu=4))
    monkeypatch.setattr("gridrad_cube.training.plan._SMALLEST_STEP_2K", 4)
    said: list[str] = []
    demo.run(tmp_path / "demo", workers=1, say=said.append)
    text = masked("\n".join(said) + "\n", tmp_path / "demo")
    assert text == GOLDEN.read_text()
    # Nothing beside these lines: no records of logs, JSON, warnings of libraries, or bars outside of a terminal.
    assert capfd.readouterr() == ("", "")
