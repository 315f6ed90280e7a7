"""What this project requires, and what that brings along where it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def required(extra: str = "") -> list[str]:
    """Requirements of the package itself, or of an extra, in which the extras that it names stand open."""
    found = []
    for line in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        named = Requirement(line)
        inner = [required(each) for each in sorted(named.extras)] if named.name == PROJECT["name"] else [[line]]
        found += [one for lines in inner for one in lines]
    return found


def installed(requirements: Iterable[str]) -> dict[str, str]:
    """Versions of what they bring along here, one through the other, by name; less the CUDA packages of torch."""
    todo, found, seen = [(Requirement(line), "") for line in requirements], {}, set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not wanted or (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        try:
            here = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = here.version
        for child in map(Requirement, here.requires or ()):
            if not (name == "torch" and "linux" in str(child.marker).lower()):
                todo += [(child, asked) for asked in ("", *requirement.extras)]
    return found
