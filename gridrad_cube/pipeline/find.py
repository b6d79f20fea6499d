"""Find source files: those that are named, and those in folders, local or by URL. No file is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gridrad_cube import readers
from gridrad_cube.pipeline.report import Outcome
from gridrad_cube.schema import SchemaError
from gridrad_cube.sources import list_url
from gridrad_cube.storage import is_url

#: Names of data files in a form that is not read, such as ``a.nc.gz``, ``a.nc.1``, ``a.h5`` and ``a.tar``.
_DATA = re.compile(
    r"\.(nc\d?|cdf|gri?b2?|h5|he5|hdf\d?|netcdf)(\W|$)|\.(gz|bz2|xz|zst|z|zip|tar|tgz)$", re.IGNORECASE
)
#: Other files beside data: indexes, checksums, descriptions, pictures.
_BESIDE = (
    ".idx",
    ".md5",
    ".sha1",
    ".sha256",
    ".sha512",
    ".sig",
    ".asc",
    ".json",
    ".xml",
    ".txt",
    ".html",
    ".png",
)
_NOT_TEXT = "its name is not UTF-8, so that a store cannot keep it; rename the file"


@dataclass
class _Found:
    """Files in folders: ``files`` to read, path by name; and those that are ``unread`` or ``other``
    (`Report`).
    """

    files: dict[str, str] = field(default_factory=dict)
    unread: list[Outcome] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


def find_sources(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> dict[str, str]:
    """Return source files by their names relative to the root: files that are named, and those in folders
    that are named.

    Parameters
    ----------
    sources
        Paths and URLs of files and folders.

    Returns
    -------
    Path or URL by name, sorted by name.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    SchemaError
        If a folder holds no source file, or two roots hold a file of the same relative name.
    """
    return search(sources).files


def search(sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> _Found:
    """Search as `find_sources` does, and list the other files of the folders."""
    roots = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    out = _Found()
    paths: set[str] = set()
    for place in roots:
        root = Path(os.path.expanduser(place))
        if is_url(place):
            files, others = list_url(os.fspath(place), readers.SUFFIXES)
            for url in others:
                if ".zarr/" not in url:
                    _note(url, out)
        elif root.is_dir():
            files = _search_folder(root, out)
        elif root.exists() and _as_text(str(root)) != str(root):
            out.unread.append(Outcome(_as_text(str(root)), "failed", _NOT_TEXT))
            continue
        elif root.exists():
            files = {root.name: str(root.resolve())}
        else:
            raise FileNotFoundError(f"{root}: no such file or folder")
        for name, path in files.items():
            if path in paths:
                continue  # given twice: by its name and by its folder, or through a link
            if name in out.files:
                raise SchemaError(f"{path}: another source of the same relative name: {out.files[name]}")
            out.files[name] = path
            paths.add(path)
    # A file that is named is read, with any suffix.
    out.unread = [o for o in out.unread if os.path.realpath(o.source) not in paths]
    out.files = dict(sorted(out.files.items()))
    return out


def _search_folder(root: Path, out: _Found) -> dict[str, str]:
    """Return the files with a suffix of sources under a folder. Links to folders are followed, each folder
    once. Zarr stores are skipped.
    """
    seen: set[str] = set()
    found: dict[str, str] = {}
    before = len(out.unread)

    def fail(error: OSError) -> None:
        out.unread.append(
            Outcome(str(error.filename), "failed", f"the folder cannot be read: {error.strerror}")
        )

    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        if real in seen or "zarr.json" in names or "_build" in folders:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            shown = _as_text(path)
            if not name.lower().endswith(readers.SUFFIXES):
                _note(shown, out)
            elif shown != path:
                out.unread.append(Outcome(shown, "failed", _NOT_TEXT))
            elif os.path.islink(path) and not os.path.exists(path):
                out.unread.append(Outcome(path, "failed", "a link to a file that is not there, or to itself"))
            else:
                found[Path(path).relative_to(root).as_posix()] = str(Path(path).resolve())
    if not found:
        why = "".join(f" {o.source}: {o.reason}." for o in out.unread[before : before + 3])
        raise SchemaError(
            f"{root}: no netCDF or GRIB2 file ({', '.join(readers.SUFFIXES)}) in this folder or below.{why}"
        )
    return found


def _as_text(path: str) -> str:
    """Return a path that can be shown and stored: Python reads bytes that are not UTF-8 as lone surrogates."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _note(path: str, out: _Found) -> None:
    """Note a file whose name is not that of a source."""
    name = path.rsplit("/", 1)[-1]
    if _DATA.search(name) and not name.lower().endswith(_BESIDE):
        why = "its name is not that of a source file; unpack it, or name the file"
        out.unread.append(Outcome(path, "skipped", why))
    elif name and not name.startswith("."):
        out.other.append(path)
