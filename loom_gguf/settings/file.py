"""Settings in a YAML file: sections of keys, each with the place where it stands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from ..errors import SettingsError

logger = logging.getLogger(__name__)

_SECTIONS = {"server", "models", "gpu", "hidden_states", "logging"}
_MAX_BYTES = 2**20


class Given(NamedTuple):
    """A value of a file."""

    text: str  # of a list: its items with commas between them
    where: str  # "file, line n"


def find_file(environ: Mapping[str, str]) -> Path | None:
    """The first file that there is, where The Loom looks for one."""
    home = environ.get("HOME")
    places = [Path("config.yaml"), Path("config.yml"), Path("loom.yaml")]
    if home:
        own = Path(environ.get("XDG_CONFIG_HOME") or f"{home}/.config") / "loom"
        places += [own / "config.yaml", own / "config.yml"]
    places.append(Path("/etc/loom/config.yaml"))
    return next((place for place in places if place.is_file()), None)


def read_file(path: Path, *, chosen: bool, opaque: Callable[[str], bool]) -> dict[str, Given]:
    """What is said at each "section.key"; keys that are null are left out.

    `chosen`: somebody named this file. One that was only found, and has none of our sections, is another program's.
    `opaque`: whether a section or key is not to be looked into, whatever it holds.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read the settings in {path}: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise SettingsError(f"{path} is too long for settings: more than {_MAX_BYTES:,} bytes")
    try:
        # Only the tree: no tag of the file is followed, and every node knows its line.
        root = yaml.compose(data, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{path}{at}: this is not YAML: {getattr(error, 'problem', None) or error}") from None
    if root is None:
        return {}
    sections = _mapping(root, path, "the file")
    if not chosen and not _SECTIONS & sections.keys():
        logger.warning("%s has none of %s: it is taken for another program's", path, ", ".join(sorted(_SECTIONS)))
        return {}
    found: dict[str, Given] = {}
    for section, node in sections.items():
        if _is_null(node):
            continue
        if opaque(section):
            found[section] = Given("", _at(node, path))
            continue
        for key, value in _mapping(node, path, section).items():
            if not _is_null(value):
                text = "" if opaque(key) else _text(value, path, f"{section}.{key}")
                found[f"{section}.{key}"] = Given(text, _at(value, path))
    return found


def _mapping(node: yaml.Node, path: Path, what: str) -> dict[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise SettingsError(f"{_at(node, path)}: {what} must have keys with values, `key: value`")
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise SettingsError(f"{_at(key, path)}: a key of {what} must be a word")
        if key.value in found:
            raise SettingsError(f"{_at(key, path)}: {key.value!r:.60} stands twice in {what}")
        found[key.value] = value
    return found


def _text(node: yaml.Node, path: Path, what: str) -> str:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return ",".join(item.value for item in node.value)
    raise SettingsError(f"{_at(node, path)}: {what} must be a value, or a list of values")


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _at(node: yaml.Node, path: Path) -> str:
    return f"{path}, line {node.start_mark.line + 1}"
