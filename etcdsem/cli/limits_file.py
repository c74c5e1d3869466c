"""The file of `apply` and `export`: names with limits and rates, in YAML or JSON.

    semaphores: {my-api: 5}
    rates: {llm: 100/1m, bulk: 10000/1m/50}

JSON is read without PyYAML; a name is taken as it is written, so `on` and `1.5` are names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from etcdsem.errors import EtcdSemError, InvalidSetting
from etcdsem.validation import check_limit, check_name, read_rate

if TYPE_CHECKING:
    from etcdsem.model import Rate

SECTIONS = ("semaphores", "rates")


class _Item(NamedTuple):
    """A key and its value. `value` is a number, a text, a list of entries, or anything else."""

    key: str
    value: Any
    place: str
    """Where it is: `` (line 3)``, or empty if that is unknown."""


class _Items(list[_Item]):
    """What a mapping has, in the order of the file, and twice what is there twice."""


def read_limits(text: str, *, source: str) -> dict[str, int | Rate]:
    """Return the limits and the rates of a file, by name. `source` names it in errors.

    Raises:
        InvalidSetting: it cannot be read, or an entry is invalid: which one, and in which line.
        EtcdSemError: it is not JSON, and PyYAML is not installed.
    """
    try:
        return dict(_limits(_parse(text)))
    except InvalidSetting as error:
        raise InvalidSetting(f"{source}: {error}") from None


def _parse(text: str) -> Any:
    try:
        return json.loads(
            text, object_pairs_hook=lambda pairs: _Items(_Item(*pair, "") for pair in pairs)
        )
    except ValueError as error:
        return _parse_yaml(text, error)


def _parse_yaml(text: str, not_json: ValueError) -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise EtcdSemError(
            f"it is not JSON ({not_json}), and to read YAML PyYAML is needed: pip install "
            "'etcdsem[yaml]'"
        ) from None
    try:
        return _value(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        why = getattr(error, "problem", None) or error
        raise InvalidSetting(
            f"invalid YAML: {why}" + (f" (line {mark.line + 1})" if mark is not None else "")
        ) from None


def _value(node: Any) -> Any:
    """The value of a YAML node: only what a file of limits may have is told apart."""
    if node is None:
        return None
    if node.id == "mapping":
        return _Items(
            _Item(str(key.value), _value(value), f" (line {key.start_mark.line + 1})")
            for key, value in node.value
        )
    if node.id == "scalar" and node.tag == "tag:yaml.org,2002:int":
        plain = re.fullmatch("-?(0|[1-9][0-9]{0,19})", node.value)
        return int(node.value) if plain else node.value
    return node.value if node.id == "scalar" else list(node.value)


def _limits(found: Any) -> Iterator[tuple[str, int | Rate]]:
    if not isinstance(found, _Items):
        raise InvalidSetting("expected 'semaphores: {NAME: LIMIT}' and 'rates: {NAME: RATE}'")
    seen: dict[str, str] = {}
    sections: set[str] = set()
    for section in found:
        if section.key not in SECTIONS:
            raise InvalidSetting(
                f"unknown key {section.key!r}{section.place}: expected semaphores or rates"
            )
        if section.key in sections:
            raise InvalidSetting(f"{section.key} is there twice{section.place}")
        sections.add(section.key)
        if not isinstance(section.value, _Items):
            raise InvalidSetting(f"{section.key}{section.place}: expected names with their limits")
        for entry in section.value:
            where = f"{section.key}: {entry.key}{entry.place}"
            if entry.key in seen:
                also = "" if seen[entry.key] == section.key else f", also in {seen[entry.key]}"
                raise InvalidSetting(f"{where}: the name is there twice{also}")
            seen[entry.key] = section.key
            try:
                yield check_name(entry.key), _limit(section.key, entry.value)
            except EtcdSemError as error:
                raise InvalidSetting(f"{where}: {error}") from None


def _limit(section: str, value: Any) -> int | Rate:
    if section == "semaphores":
        return check_limit(value, least=0)
    if not isinstance(value, str):
        raise InvalidSetting(f"invalid rate {value!r}: give 100/1m (100 starts in any minute)")
    return read_rate(value)


def write_limits(semaphores: Mapping[str, int], rates: Mapping[str, str]) -> str:
    """Return the file as YAML, without the last line break."""
    lines: list[str] = []
    for section, entries in (("semaphores", semaphores), ("rates", rates)):
        lines.append(f"{section}:" + ("" if entries else " {}"))
        lines += [f"  {_name(name)}: {value}" for name, value in entries.items()]
    return "\n".join(lines)


def _name(name: str) -> str:
    """A name as a key; in quotes if YAML could take it for something else than a text."""
    plain = re.fullmatch("[A-Za-z][A-Za-z0-9._-]*", name) and name.lower() not in _WORDS
    return name if plain else json.dumps(name)


_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
