"""Reads a configuration: YAML file and `section.key=value` overrides -> a typed, frozen `Config`."""

import difflib
import json
import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import yaml
from pydantic import BaseModel, ValidationError

from stages.engine.errors import UserError, of_the_system, oneline
from stages.engine.rules import check, plain
from stages.engine.schema import Config

LARGEST = 2**16  # bytes of a configuration file; those in configs/ have a fiftieth
DEEPEST = 20  # levels of sections and lists; the sections of `Config` have three


class _Loader(yaml.SafeLoader):
    """Loads safe YAML with decimal numbers, reads 1e-4 as one, and rejects a key that is given twice.

    It rejects nesting deeper than DEEPEST, which would take longer to read with each level.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent, index):
        self._depth += 1
        if self._depth > DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEEPEST} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _refused("<< is not supported; write the keys out, or let `extends` name a file", key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise _refused("a key must be a name, not a list or a section", key_node)
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _refused(f"key {key!r} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _refused(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {  # YAML 1.1's own read 010 as 8 and 1:30 as 90
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in zip(
    _NUMBERS, (r"[-+]?\d+", r"[-+]?(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.inf|\.nan"), strict=True
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^({_pattern})$"), list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(str(node.value)))


def _parse(text: str, where: str):
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or oneline(error)
        raise UserError(f"{where}{line}: not valid YAML ({problem})") from None
    except (RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{where}: not a configuration ({oneline(error)})") from None


def _read(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UserError(f"{path}: more than {LARGEST} bytes; see configs/demo.yaml for an example")
        content = _parse(text.decode(), str(path))
    except FileNotFoundError:
        near = sorted(p.as_posix() for p in Path("configs").glob("*.yaml"))
        raise UserError(f"no configuration {path}; there are {', '.join(near) or 'none in configs/'}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; a configuration is a YAML file such as configs/demo.yaml") from None
    except OSError as error:
        raise of_the_system(error, f"cannot read {path}") from None
    except ValueError as error:  # no file can have this name
        raise UserError(f"cannot read {path}: {oneline(error)}; a configuration is a file in configs/") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a configuration is a mapping of sections, such as configs/demo.yaml")
    return content


def _read_extended(path: Path, depth: int = 0) -> dict:
    """Reads a file and merges it over the file beside it that `extends` names: sections merge, values are replaced."""
    content = _read(path)
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str) or depth > 4:
        raise UserError(f"{path}: extends must name one file beside it, such as iclevr.yaml, and form no circle")
    below = _read_extended(path.parent / base, depth + 1)
    below.pop("name", None)
    return _merged(below, content, Config)


def _merged(below: dict, above: dict, section: type[BaseModel]) -> dict:
    """Merges the keys of a section. Only those of the schema are merged: aliases can make others endlessly deep."""
    deeper = {}
    for key in below.keys() & above.keys() & section.model_fields.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            inner = _inner(section, key)
            deeper[key] = _merged(below[key], above[key], inner) if inner else below[key] | above[key]
    return below | above | deeper


def _override(content: dict, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"override {text!r}: write section.key=value, such as ldm.steps=2000")
    target, path = content, key.split(".")
    for part in path[:-1]:
        section = {} if target.get(part) is None else target[part]
        if not isinstance(section, dict):
            raise UserError(f"override {text!r}: {part} is not a section")
        target[part] = dict(section)  # a copy: a YAML alias may share it with another section
        target = target[part]
    as_written = _is_text(path) and value != "null" and not (_is_several(path) and value.startswith("["))
    target[path[-1]] = value if as_written else _parse(value, f"override {text!r}")


def _is_text(path: list[str]) -> bool:
    """Returns True if the key holds a string: its value is taken as written and not parsed as YAML."""
    try:
        field = _section_at(tuple(path[:-1])).model_fields[path[-1]]
    except (KeyError, AttributeError):
        return False  # an unknown key is reported later, with the nearest name
    return field.annotation in (str, str | None) or _is_several(path)


def _is_several(path: list[str]) -> bool:
    """Returns True if the key holds one string or a list of them."""
    return path == ["data", "folder"]


def _section_at(path: tuple) -> type[BaseModel]:
    section: type[BaseModel] = Config
    for part in path:
        inner = _inner(section, part)
        if inner is None:
            raise KeyError(part)
        section = inner
    return section


def _inner(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    """Returns the section that a key of a section holds, None if it holds a value."""
    annotation = section.model_fields[key].annotation
    candidates = (*get_args(annotation), annotation)  # of `Ddpm | None`
    return next((a for a in candidates if isinstance(a, type) and issubclass(a, BaseModel)), None)


def _explain(error: ValidationError, where: str) -> str:
    """Returns the first fault as one line: the key's path, what is wrong, the nearest valid name."""
    fault = error.errors()[0]
    path = fault["loc"]
    key = ".".join(map(str, path))
    if fault["type"] == "extra_forbidden":
        names = list(_section_at(path[:-1]).model_fields)
        near = difflib.get_close_matches(str(path[-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(names)}"
        return f"{where}: unknown key {key}; {hint}"
    if fault["type"] == "missing" and isinstance(path[-1], int):  # of a pair
        return f"{where}: {'.'.join(map(str, path[:-1]))} should have two numbers, such as [0.5, 0.9]"
    if fault["type"] == "missing":
        return f"{where}: {key} is missing; see configs/demo.yaml for an example"
    if fault["type"] in ("tuple_type", "list_type") and isinstance(fault["input"], str):
        return f"{where}: {key} should be a list, such as [{fault['input'][:60]}]"
    message = KINDS.get(fault["type"]) or fault["msg"].replace("Input should", "should")
    if fault["type"] == "literal_error":
        message = message.replace("False, True", "false, true")
    return f"{where}: {key} {message}, not {_shown(fault['input'])[:60]}"


TAKEN = ("packs", "reproduce")  # folders below `root` that are no experiment's

# what pydantic calls a type, in words
KINDS = {
    "tuple_type": "should be a list, such as [1, 2]",
    "list_type": "should be a list, such as [1, 2]",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "string_type": "should be text",
    "bool_type": "should be true or false",
    "model_type": "should be a section with keys of its own",
    "model_attributes_type": "should be a section with keys of its own",
    "dict_type": "should be a section with keys of its own",
    "none_required": "should be null",
    "string_too_short": "should not be empty",
    "too_short": "should name at least one",
    "too_long": "should have two numbers, such as [0.5, 0.9]",  # only pairs have a largest length
}


def _shown(value: object) -> str:
    """Returns a short form of a value: aliases can make a small YAML file's content as large as memory."""
    if value is None or isinstance(value, bool | int | float | str):
        return json.dumps(value)
    value = [*value] if isinstance(value, tuple) else value  # a list of YAML
    short = reprlib.Repr()
    short.maxdict = short.maxlist = short.maxtuple = 6
    short.maxlevel = 2
    return short.repr(value)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Loads a configuration file with overrides. The experiment is named after the file unless `name` is set.

    Raises a one-line UserError for any mistake in either.
    """
    path = Path(path)
    content = _read_extended(path)
    content.setdefault("name", path.stem)
    return _validated(content, overrides, path)


def derive(config: Config, overrides: Sequence[str]) -> Config:
    """Returns a configuration with further overrides. Raises UserError as `load` does."""
    return _validated(config.model_dump(mode="json"), overrides, Path(f"{config.name}, derived"))


def _validated(content: dict, overrides: Sequence[str], path: Path) -> Config:
    for text in overrides:
        _override(content, text)
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise UserError(_explain(error, str(path))) from None
    if not plain(config.name) or config.name in TAKEN:
        fault = "is the name of a folder with another use" if config.name in TAKEN else "is not a plain folder name"
        raise UserError(f"{path}: the experiment's name, {config.name!r}, {fault}; set another with name=mine")
    check(config, path)
    return config


DERIVED = ("diffusion", "drawer")


def main() -> None:
    """Prints one value of a configuration for the Makefile: that of a key, or one derived from several (DERIVED)."""
    import argparse

    parser = argparse.ArgumentParser(description="Checks a configuration; prints it, or one of its values.")
    parser.add_argument("--config", required=True, type=os.path.expanduser, metavar="FILE")
    parser.add_argument("--print", metavar="section.key", default="")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args()
    try:
        config = load(arguments.config, arguments.overrides)
        value = config.model_dump(mode="json") | {name: getattr(config, name) for name in DERIVED if arguments.print}
        for part in filter(None, arguments.print.split(".")):
            value = value[part]
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    except (KeyError, TypeError):
        parser.exit(2, f"error: no key {arguments.print}\n")
    if isinstance(value, dict):
        print(yaml.safe_dump(value, sort_keys=False).rstrip("\n."))
    else:
        print(*value if isinstance(value, list) else [value])


if __name__ == "__main__":
    main()
