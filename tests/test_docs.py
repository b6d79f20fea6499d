"""The pages: links that lead somewhere, commands that can be typed, tests that exist, and a build without a warning."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_data import make_store
from test_readme import blocks

from gridrad_cube import store
from gridrad_cube.cli import cli
from gridrad_cube.schema import CHANNELS, Flag
from gridrad_cube.training import ALIASES, FIELDS

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(PROJECT.glob("*.md")),
    *sorted(PROJECT.glob("docs/**/*.md")),
    PROJECT / "notebooks" / "README.md",
]
PAGES += sorted(PROJECT.glob("benchmarks/results/*.md"))
PAGES = [page for page in PAGES if "_build" not in page.parts]
NOTEBOOKS = sorted(PROJECT.glob("notebooks/*.ipynb"))
#: Pages that the documentation holds, by the links above ``<!-- toctree -->`` from docs/index.md on.
CONTENTS = "<!-- toctree -->"


def text_of(page: Path) -> str:
    """Markdown of a page, or of a notebook's cells."""
    if page.suffix == ".md":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def prose(text: str) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(text_of(page))))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Of headings, as code hosts and Sphinx make them."""
    headings = re.findall(r"^#+ +(.+)$", prose(text_of(page)), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_relative_to(PROJECT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_contents():
    reached, new = set(), {PROJECT / "docs" / "index.md"}
    while new:
        page = new.pop()
        reached.add(page)
        text = text_of(page)
        if CONTENTS in text:
            above = re.findall(r"\]\(([^)#:\s]+\.(?:md|ipynb))\)", text.partition(CONTENTS)[0])
            new |= {(page.parent / name).resolve() for name in above} - reached
    pages = {page for page in PAGES if page.parent != PROJECT} | set(NOTEBOOKS)
    assert sorted(str(page.relative_to(PROJECT)) for page in pages - reached) == []
    assert PROJECT / "CHANGELOG.md" in reached


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(PROJECT)))
def test_commands_can_be_typed(page):
    text = text_of(page).replace("\\\n", " ")
    spans = re.findall(r"`(gridrad-cube [^`\n]+)`", text)
    spans += re.findall(r"^(?:torchrun .*-m )?(gridrad[-_]cube .+)$", text, re.MULTILINE)
    for span in spans:
        command, words = cli, span.split("#")[0].split()[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        flags = {word.partition("=")[0] for word in words if re.match(r"--\w", word)}
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        if command.name == "train":
            names = {*FIELDS, *ALIASES, "preset", "config"}
            known |= {f"--{name}" for name in names} | {f"--{name.replace('_', '-')}" for name in names}
        assert flags <= known, span


@pytest.mark.parametrize("name", ["guarantees.md", "security.md"])
def test_proofs_that_a_page_names_exist(name):
    page = (PROJECT / "docs" / name).read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    there = "\n".join(path.read_text() for path in (PROJECT / "tests").glob("test_*.py"))
    assert len(named) > 5
    assert sorted(test for test in named if f"def {test}(" not in there) == []


# --- the format, by the page alone ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    """Six scenes, day and night, in 32 px patches with padding."""
    folder = tmp_path_factory.mktemp("docs")
    return make_store(folder, scenes=6, shape=(112, 150), interval="4h")


def test_a_patch_is_read_by_hand_as_the_page_says(cube, monkeypatch):
    monkeypatch.chdir(cube.parent)
    code = blocks("docs/cube-format.md")[0]
    names = {}
    exec(compile(code, "docs/cube-format.md", "exec"), names)
    ours = store.open_cube(cube).ir_brightness_temperature[1, 64:96, 96:128].values
    np.testing.assert_allclose(names["kelvin"], ours, atol=1e-4)


def test_the_table_of_packings_is_that_of_the_program():
    page = (PROJECT / "docs" / "cube-format.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|(.*)\|$", page, re.MULTILINE)
    rows = [row for row in rows if row[0] in CHANNELS]
    assert [row[0] for row in rows] == list(CHANNELS)
    for name, units, scale, offset, rest in rows:
        packing, said = CHANNELS[name].packing, [cell.strip() for cell in rest.split("|")]
        codes = (
            packing.fill_value, packing.no_echo, packing.low_confidence, packing.clutter, packing.out_of_range,
            packing.non_finite, packing.echo_minimum,
        )  # fmt: skip
        valid = (packing.valid_minimum, packing.valid_maximum)
        assert units == CHANNELS[name].units
        assert (float(scale), float(offset)) == pytest.approx((packing.scale_factor, packing.add_offset))
        assert said[:7] == ["" if code is None else f"{code:g}" for code in codes]
        assert said[7] == ("" if None in valid else "{:g} to {:g}".format(*valid))
        assert packing.dtype == "uint16"


def test_flags_are_computed_from_what_is_stored_as_the_page_says(cube):
    plain = store.open_packed(cube)
    info = store.store_info(plain)
    q, seen = info["quality"], set()
    for name, thresholds in info["thresholds"].items():
        flags, s = plain[f"{name}_flags"].values, {
            k: plain[f"{name}_{k}"].values.astype(np.float64)
            for k in ("valid_fraction", "mean", "std", "minimum", "maximum", "dead_lines")
        }  # fmt: skip
        away = np.fmax(s["maximum"] - s["mean"], s["mean"] - s["minimum"])
        step = plain[name].attrs["scale_factor"]
        visible = name == "visible_reflectance"
        angle = {
            k: plain[k].values
            for k in ("solar_zenith_angle", "solar_zenith_angle_maximum", "satellite_zenith_angle")
        }
        absent = (flags & Flag.channel_absent) != 0
        expected = {
            "low_coverage": s["valid_fraction"] < q["low_coverage"],
            "local_outlier": (away > q["max_deviation_factor"] * s["std"])
            & (away > 2 * step)
            & (s["std"] > 0)
            | (s["dead_lines"] > 0),
            "global_outlier": np.zeros(flags.shape, bool)
            if thresholds["rule"] == "off"
            else np.abs(s["mean"] - thresholds["center"]) > thresholds["factor"] * thresholds["spread"],
            "night": visible & (angle["solar_zenith_angle"] > q["night_solar_zenith"]),
            "low_sun": visible & (angle["solar_zenith_angle_maximum"] > q["low_sun_solar_zenith"]),
            "limb": angle["satellite_zenith_angle"] > q["limb_satellite_zenith"],
        }
        for flag, where in expected.items():
            there = (flags & Flag[flag]) != 0
            np.testing.assert_array_equal(there[~absent], where[~absent], err_msg=f"{name} {flag}")
            seen |= {flag} if there.any() else set()
    assert {"night", "low_sun", "low_coverage"} <= seen  # the store shows what is tested


# --- the build ------------------------------------------------------------------------------------------------


def test_pages_build_without_a_warning(tmp_path):
    """Without running the notebooks: `tests/test_notebooks.py` does."""
    pytest.importorskip("myst_nb", reason="pip install -e '.[docs]'")
    options = ["-Wq", "--keep-going", "-c", "docs", "-d", str(tmp_path / "trees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ".", str(tmp_path / "html")], cwd=PROJECT, capture_output=True,
        text=True, timeout=280, env={**os.environ, "GRIDRAD_CUBE_DOCS_EXECUTE": "off"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "html" / "docs" / "api" / "gridrad_cube.pipeline.html").read_text()
    assert "None takes that of an existing store" in api
    constants = (tmp_path / "html" / "docs" / "api" / "gridrad_cube.schema.html").read_text()
    assert "Code of a missing time" in constants
    assert (tmp_path / "html" / "index.html").read_text().count("docs/index.html") >= 2
