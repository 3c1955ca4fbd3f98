"""Things of one kind by name, to which plugins add their own. Main entries: `Registry`, `dials_of()`."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from latentwire.harness.errors import UserError
from latentwire.harness.results import JsonObject, config_hash

T = TypeVar("T")


class Labelled(Protocol):
    """A class whose configurations have a name."""

    label: ClassVar[str]  # pattern of the name, with dials in braces: "anchor_eps{eps}"


L = TypeVar("L", bound=Labelled)

OWN_PACKAGES = ("latentwire", "kat")  # covered by the version of this project in every identity
ALL: list[Registry[Any]] = []  # every registry whose module is imported, for `plugins.load_plugins`


class Registry(Generic[T]):
    """Things of one kind by name, in the order in which they were registered.

    Args:
        kind: Word for one thing, for messages: "transform".
        setting: Setting that chooses a thing, for messages: "embed_transform".
        node: Returns the config of a thing that has no file in conf/, from its name and the thing. None for a kind
            that has no config group.

    Attributes:
        things: The things by name.
    """

    def __init__(self, kind: str, setting: str, node: Callable[[str, T], JsonObject] | None = None) -> None:
        self.kind, self.setting, self.node = kind, setting, node
        self.things: dict[str, T] = {}
        ALL.append(self)

    def add(self, name: str, thing: T) -> None:
        """Register a thing. The same thing may be registered again, as when its module is imported a second time.

        Raises:
            UserError: Another thing has this name, or the name is not an identifier.
        """
        if not name.isidentifier():
            raise UserError(f"{self.kind} {name!r}: not a name; use letters, digits and _, such as my_{self.kind}")
        known = self.things.get(name)
        if known is not None and _origin(known) != _origin(thing):
            raise UserError(
                f"{self.kind} {name}: {' and '.join(_origin(one) for one in (known, thing))} both register this name; "
                "rename one"
            )
        self.things[name] = thing

    def __getitem__(self, name: str) -> T:
        """Return a thing.

        Raises:
            UserError: No thing has this name. The message lists the valid ones.
        """
        if name not in self.things:
            raise UserError(f"{self.setting}={name}: unknown; use one of {', '.join(self.things)}{self.plugin_hint()}")
        return self.things[name]

    def plugin_hint(self) -> str:
        """Return the remedy for an unknown name when no plugin has added to this registry, else ""."""
        own = all(_origin(thing).split(".")[0] in OWN_PACKAGES for thing in self.things.values())
        return ", or add plugins=[MODULE] that registers it" if own else ""

    def name_of(self, thing: object) -> str | None:
        """Return the name of a registered thing, or None."""
        return next((name for name, one in self.things.items() if one is thing), None)

    def __contains__(self, name: object) -> bool:
        """Return whether a thing has this name."""
        return name in self.things

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self.things)

    def __len__(self) -> int:
        """Return the number of things."""
        return len(self.things)

    def items(self) -> list[tuple[str, T]]:
        """Return the names with their things."""
        return list(self.things.items())

    def source_digest(self, name: str) -> str | None:
        """Return the digest of the module that defines a thing, or None for a thing of this project.

        The digest belongs into the identity of a result: after a change of the module the result is computed again.
        """
        return source_digest(_definition(self[name]))

    def plugin_sources(self, names: Iterable[str]) -> dict[str, str]:
        """Return the digests of the named things that plugins define, as {"embed_transform=norm_clip": digest}."""
        digests = {f"{self.setting}={name}": self.source_digest(name) for name in names}
        return {choice: digest for choice, digest in digests.items() if digest is not None}


class ClassRegistry(Registry[type[L]]):
    """Classes by name, whose configurations have names too."""

    def add_class(self, name: str, owner: type[L], label: str, unlabelled: Iterable[str] = ()) -> None:
        """Register a class and set its `label`.

        Args:
            name: Name of the class.
            owner: The class.
            label: Pattern of a configuration's name, with dials in braces: "anchor_eps{eps}".
            unlabelled: Dials that no name can show, such as paths. The label has every other dial.

        Raises:
            UserError: The name or the label is taken, the label lacks a dial, has a dial that the class lacks or a
                character that file names or chains cannot have, or the class has another name already.
        """
        what, dials = f"{self.kind} {name}", dials_of(owner)
        if not label or re.search(r"[^\w.-]", re.sub(r"{\w+}", "", label)):
            raise UserError(f"{what}: label={label!r} is not a name; use letters, digits, _, ., - and {{dial}}")
        shown = re.findall(r"{(\w+)}", label)
        for dial in shown:
            if dial not in dials:
                known = ", ".join(dials) or _no_dials(owner)
                raise UserError(f"{what}: label={label!r} has {{{dial}}}, but its dials are {known}; correct the label")
        for dial in dials.keys() - {*shown, *unlabelled}:
            raise UserError(
                f"{what}: label={label!r} lacks the dial {dial}, so configurations would share a name; write "
                f"label='{label}_{dial}{{{dial}}}', or unlabelled=({dial!r},) for a dial such as a path"
            )
        for other, thing in self.items():
            if other == name:
                continue
            if thing is owner:
                raise UserError(f"{what}: {owner.__qualname__} is registered as {other} already; register a subclass")
            if re.sub(r"{\w+}", "{}", thing.label) == re.sub(r"{\w+}", "{}", label):
                both = f"{thing.label!r} of {other} and {label!r} of {name}"
                raise UserError(f"{self.kind}: the labels {both} give the same names to configurations; change one")
        self.add(name, owner)
        owner.label = label


def _no_dials(owner: type) -> str:
    """Return "none", with the remedy if the constructor has settings that are not keyword-only."""
    known = inspect.signature(owner).parameters.values()
    plain = [one.name for one in known if one.kind is one.POSITIONAL_OR_KEYWORD and one.default is not one.empty]
    return f"none (write * before {plain[0]} in its __init__)" if plain else "none"


def _definition(thing: object) -> object:
    """Return the class or function that defines a thing; a record names it in its field `define`."""
    return getattr(thing, "define", thing)


def _origin(thing: object) -> str:
    """Return where a thing is defined: 'my_module.MyClass'."""
    definition = _definition(thing)
    return f"{getattr(definition, '__module__', '?')}.{getattr(definition, '__qualname__', definition)}"


def source_digest(definition: object) -> str | None:
    """Return the digest of the source that defines a class or function; None for this project's own.

    The digest covers the module and the modules that its import statements name, in turn. Installed packages, the
    standard library and this project are left out. A module that is imported by a computed name is not seen.

    Raises:
        UserError: The source cannot be read, so changes would go unnoticed.
    """
    name = str(getattr(definition, "__module__", ""))
    if name.split(".")[0] in OWN_PACKAGES:
        return None
    try:
        module = sys.modules[name]
        sources = {name: inspect.getsource(module)}
    except (OSError, TypeError, KeyError) as error:
        raise UserError(
            f"{name}: has no source that can be read ({error}), so changes would go unnoticed; put "
            f"{getattr(definition, '__qualname__', definition)} into a .py file"
        ) from error
    _add_imported(sources, sources[name], str(getattr(module, "__package__", None) or ""), name.split(".")[0])
    return config_hash(sources)


def _add_imported(sources: dict[str, str], source: str, package: str, own: str) -> None:
    """Add the sources of the user's modules that a source imports, by name.

    Args:
        sources: Sources by module; the new ones are added, and the known ones are not read again.
        source: Source of the importing module.
        package: Package of the importing module; "" without one.
        own: Top-level package of the plugin, whose modules count even if it is installed.
    """
    for name in _imported_names(source, package):
        spec = None if name in sources else _find_spec(name, own)
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            continue
        sources[name] = Path(spec.origin).read_bytes().decode("utf-8", "backslashreplace")
        if spec.origin.endswith(".py"):
            inner = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
            _add_imported(sources, sources[name], inner, own)


def _imported_names(source: str, package: str) -> list[str]:
    """Return the full names that the import statements of a source may import as modules, with their packages."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = [*above, *([node.module] if node.module else [])]
            found += [".".join([*base, alias.name]) for alias in node.names]
    return sorted({name.rsplit(".", depth)[0] for name in found for depth in range(name.count(".") + 1)})


def _find_spec(name: str, own: str) -> ModuleSpec | None:
    """Return where a module of the user is, without importing it; None for any other module and for no module."""
    top, *rest = name.split(".")
    if top in OWN_PACKAGES or top in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made without a file
        return None
    places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or [])]
    if top != own and any({"site-packages", "dist-packages"} & set(Path(place).parts) for place in places):
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        top = f"{top}.{part}"
        spec = PathFinder.find_spec(top, list(spec.submodule_search_locations))
    return spec


@dataclass(frozen=True)
class Dial:
    """A sweepable setting of a class: one of its keyword-only arguments.

    Attributes:
        name: Name of the argument.
        kind: Type of its values: int, float, str, or object for any other annotation.
        default: Default value; `inspect.Parameter.empty` without one.
    """

    name: str
    kind: type
    default: object

    def config_value(self) -> str:
        """Return the interpolation that reads the dial from the root of the config: '${float:${eps}}'."""
        at_root = f"${{{self.name}}}"
        return f"${{{self.kind.__name__}:{at_root}}}" if self.kind in (int, float) else at_root

    def read(self, text: str) -> object:
        """Return the value that a configuration's name gives as text.

        Raises:
            ValueError: The text is not a value of this dial.
        """
        if self.kind is not object:
            value: object = self.kind(text)
            return value
        try:
            return ast.literal_eval(text)  # None, True or a number
        except (ValueError, SyntaxError):
            return text


def dials_of(owner: type) -> dict[str, Dial]:
    """Return the dials of a class by name, in the order of its signature."""
    kinds: dict[str, type] = {"int": int, "float": float, "str": str}
    return {
        parameter.name: Dial(
            parameter.name,
            kinds.get(getattr(parameter.annotation, "__name__", str(parameter.annotation)), object),
            parameter.default,
        )
        for parameter in inspect.signature(owner).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


def check_dials(name: str, dials: Mapping[str, object], owner: type) -> None:
    """Check that dials match the keyword-only arguments of a class.

    Args:
        name: Name of the transform, source, encoder or arm, for the error message.
        dials: Dials and their values.
        owner: The class.

    Raises:
        UserError: A dial is unknown or missing.
    """
    expected = dials_of(owner)
    known = ", ".join(sorted(expected)) or "none"
    for dial in sorted(dials.keys() - expected.keys()):
        raise UserError(f"{dial}={dials[dial]}: {name} has no such dial (its dials: {known}); leave it out")
    missing = {dial for dial, one in expected.items() if one.default is inspect.Parameter.empty} - dials.keys()
    for dial in sorted(missing):
        raise UserError(f"{name} needs {dial} (its dials: {known}); give it a value")


def node_with_dials(group: str, name: str, owner: type, label: str, **further: str) -> JsonObject:
    """Return the config of a class whose dials stand at the root, as a file of conf/embed_transform would write it.

    Args:
        group: Config group: "embed_transform".
        name: Name of the thing.
        owner: Its class. Each dial needs a default, because no YAML gives one.
        label: Pattern of the configuration's name, with dials in braces: "norm_clip{limit}".
        further: Further entries of the group's node.

    Raises:
        UserError: A dial has no default.
    """
    dials = dials_of(owner)
    for dial in dials.values():
        if dial.default is inspect.Parameter.empty:
            raise UserError(
                f"{group}={name}: its dial {dial.name} has no default; write {dial.name}=VALUE in the signature of "
                f"{owner.__qualname__}, or add conf/{group}/{name}.yaml"
            )
    return {
        **{dial.name: dial.default for dial in dials.values()},
        group: {
            "name": name,
            "label": config_label(label),
            **further,
            "dials": {dial.name: dial.config_value() for dial in dials.values()},
        },
    }


def config_label(label: str) -> str:
    """Return a pattern with dials in braces as a config writes it: 'k{k}' -> 'k${.dials.k}'."""
    return label.replace("{", "${.dials.")
