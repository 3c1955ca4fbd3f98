"""Write docs/configuration.md from the config tree: every file, every setting with its default and its comment.

python docs/scripts/configuration.py           write the page
python docs/scripts/configuration.py --check   exit with 1 if the page is out of date
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "configuration.md"

# What each group decides, and the command that chooses NAME from it; groups that are missing here come last.
GROUPS = {
    "task": ("What the program does.", ""),
    "model": ("The language model.", "python run.py model=NAME"),
    "data": ("Passages with questions and reference answers.", "python run.py data=NAME"),
    "embed_source": ("What the model is fed in place of its token embeddings.", "python run.py embed_source=NAME"),
    "embed_transform": ("The repair between the source and the model.", "python run.py embed_transform=NAME"),
    "sweep": ("Presets: many configurations with one command.", "python run.py -m sweep=NAME"),
    "control": ("Controls that a sweep adds to its configurations. You never need to choose one.", ""),
    "encoder": ("The encoder of a passage.", "python train.py task=latent encoder=NAME"),
    "loss": ("The losses of an encoder and their schedule.", "python train.py task=latent loss=NAME"),
    "pairs": ("Preference data.", "python run.py task=pairs pairs=[NAME]"),
    "embedder": ("How a prompt becomes a vector.", "python run.py task=embed embedder=NAME"),
    "sampler": ("How often each prompt is drawn.", "python train.py sampler=NAME"),
    "kat": ("Files that the kat tasks share. These tasks include the group automatically.", ""),
    "tracker": ("Where metrics are logged.", "python run.py tracker=NAME"),
    "experiment": ("Recorded experiments: a name stands for a whole command line.", "python run.py experiment=NAME"),
}
UNDOCUMENTED = ("control", "experiment", "hydra")  # files of these groups set what other files define
INTERNAL = ("name", "label", "suffix", "dials")  # read by the program, and set by the settings above them

INTRODUCTION = """# Configuration

<!-- Written by docs/scripts/configuration.py from the files in conf/. Edit those files, not this page. -->

Every setting has one default, in a file of [conf/](../conf/). This page lists all files and settings.

- Give settings on the command line as `name=value`: `python run.py samples=20 seed=1`.
- Choose a file of a group by its name: `python run.py embed_transform=anchor_offset eps=0.1`.
- List values with commas and `-m` to run them all: `python run.py -m embed_transform=anchor_offset eps=0.01,0.05`.
- Print the resolved configuration without running it: `python run.py --cfg job`.

A default such as `${weights_file}` is the value of another setting. `null` means that no value is given. A setting with
an environment variable takes its value from there if the variable is set.
"""


@dataclass(frozen=True)
class Setting:
    """A setting of a config file: its full name, the default as text, and the comment; None without a comment."""

    name: str
    default: str
    comment: str | None


@dataclass(frozen=True)
class ConfigFile:
    """A config file: its path below conf/, the lines of its opening comment, and its settings.

    In the comment, a line that begins with `python ` is a command. An indented line `Score   .596` is an item of a
    list, and goes on in lines of deeper indentation.
    """

    path: str
    about: list[str]
    settings: list[Setting]

    @property
    def group(self) -> str:
        """Return the group, '' for a file at the root."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Return the name by which the file is chosen."""
        return self.path.rpartition("/")[2].removesuffix(".yaml")


def read(path: Path, conf: Path = CONF) -> ConfigFile:
    """Return a config file with its comments.

    Raises:
        ValueError: The file does not open with a comment, or it is not a mapping.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    header = re.match(r"# @package (\S+)", lines[0])
    package = header[1] if header else "_global_"
    about = []
    for line in lines[1:] if header else lines:
        if not line.startswith("#"):
            break
        about.append(line.removeprefix("#").removeprefix(" ").rstrip())
    place = str(path.relative_to(conf))
    root = yaml.compose(text)
    if not about or not (root is None or isinstance(root, yaml.MappingNode)):
        raise ValueError(f"conf/{place}: must open with a comment that explains the file, then hold a mapping")
    prefix = "" if package == "_global_" else package + "."
    settings = _settings(root, prefix, place.rpartition("/")[0], lines) if root is not None else []
    return ConfigFile(place, about, settings)


def _settings(node: yaml.MappingNode, prefix: str, group: str, lines: list[str]) -> list[Setting]:
    found: list[Setting] = []
    for key, value in node.value:
        name = prefix + key.value
        if name in ("defaults", "hydra", group) and not isinstance(value, yaml.MappingNode):
            continue
        if name == "hydra" or ("." in name and key.value in INTERNAL):
            continue
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        end = key.end_mark if block else value.end_mark
        comment = re.search(r"(?:^|\s)#\s*(.*)$", lines[end.line][end.column :])
        words = comment[1].strip() if comment else None
        if isinstance(value, yaml.MappingNode) and block and words is None:
            found += _settings(value, name + ".", group, lines)
        else:
            found.append(Setting(name, _default(value, lines), words))
    return found


def _default(value: yaml.Node, lines: list[str]) -> str:
    """Return a default as it stands in the file, or the number of its entries if it takes several lines."""
    start, end = value.start_mark, value.end_mark
    if isinstance(value, yaml.CollectionNode) and not value.flow_style:
        count = len(value.value)
        return f"{count} {'entry' if count == 1 else 'entries'}"
    return lines[start.line][start.column : end.column] if start.line == end.line else str(value.value)


def undocumented(files: list[ConfigFile]) -> list[str]:
    """Return the settings without a comment, each with its file."""
    return [
        f"conf/{file.path}: {setting.name} has no comment"
        for file in files
        if file.group.split("/")[0] not in UNDOCUMENTED
        for setting in file.settings
        if setting.comment is None
    ]


def tasks_of(entry: str) -> set[str]:
    """Return the tasks of run.py or train.py: the keys of the dictionaries in the file."""
    tree = ast.parse((ROOT / f"{entry}.py").read_text(encoding="utf-8"))
    keys = [key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys]
    return {str(key.value) for key in keys if isinstance(key, ast.Constant)}


def _escaped(words: str) -> str:
    for sign in "\\|*<":
        words = words.replace(sign, "\\" + sign)
    return words


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`"


ENVIRONMENT = re.compile(r"(?:\$\{oc\.decode:)?\$\{oc\.env:(\w+),([^{}]*)\}\}?")


def _row(setting: Setting) -> str:
    """Return the row of a setting; one that the environment can set is shown with its default and the variable."""
    default, comment = setting.default, setting.comment or ""
    if found := ENVIRONMENT.fullmatch(default):
        default, comment = found[2], f"{comment}; environment variable `{found[1]}`"
    return f"| {_code(setting.name)} | {_code(default)} | {_escaped(comment)} |"


def _table(settings: list[Setting]) -> list[str]:
    if not settings:
        return []
    return ["| setting | default | meaning |", "|---|---|---|", *map(_row, settings), ""]


ITEM = re.compile(r"( +)(\w[\w ]*?) {2,}(\S.*)")


def _opening(about: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the sentences, the commands and the list items of an opening comment."""
    words: list[str] = []
    commands: list[str] = []
    items: list[tuple[str, str]] = []
    for line in about:
        if line.startswith("python "):
            commands.append(line)
        elif found := ITEM.fullmatch(line):
            items.append((found[2], found[3]))
        elif line.startswith(" ") and items:
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
        else:
            words.append(line.strip())
    return words, commands, [f"- **{name}**: {_with_code(text)}" for name, text in items]


def _with_code(text: str) -> str:
    """Return the text of an item; a command at its beginning, up to several spaces, is code."""
    if not text.startswith("python "):
        return _escaped(text)
    command, _, rest = re.sub(r" {2,}", "\n", text).partition("\n")
    return f"{_code(command)} {_escaped(rest)}".rstrip()


def _section(file: ConfigFile, command: str, title: str) -> list[str]:
    """Return the part of the page for one file; a command in the opening comment comes before the group's own."""
    words, commands, items = _opening(file.about)
    commands = commands or ([command] if command and not items else [])
    shown = ["```bash", *commands, "```", ""] if commands else []
    settings = file.settings if file.group.split("/")[0] not in UNDOCUMENTED else []
    return [title, "", _escaped(" ".join(words)), "", *items, "", *shown, *_table(settings)]


def defaults_of(conf: Path) -> dict[str, list[str]]:
    """Return the default choices of each group, each with the entries and tasks that make it."""
    found: dict[str, dict[str, list[str]]] = {}
    for path in [conf / "run.yaml", conf / "train.yaml", *sorted((conf / "task").glob("*.yaml"))]:
        if not path.is_file():
            continue
        where = f"{path.stem}.py" if path.parent == conf else f"task={path.stem}"
        for item in (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", []):
            for group, choice in item.items() if isinstance(item, dict) else []:
                name = group.removeprefix("override ").strip("/")
                for one in choice if isinstance(choice, list) else [choice]:
                    found.setdefault(name, {}).setdefault(str(one), []).append(where)
    return {
        group: [f"`{choice}` ({', '.join(where)})" for choice, where in choices.items()]
        for group, choices in found.items()
    }


def page(conf: Path = CONF) -> str:
    """Return the whole page.

    Raises:
        ValueError: A file without an opening comment, or a setting without a comment.
    """
    files = [read(path, conf) for path in sorted(conf.rglob("*.yaml")) if path.name != "renamed.yaml"]
    if missing := undocumented(files):
        raise ValueError("\n".join(missing))
    parts = [INTRODUCTION]
    for file in (file for file in files if not file.group):
        parts += _section(file, "", f"## {file.name}.py")
    groups = sorted({file.group for file in files if file.group}, key=lambda g: (_place(g), g))
    trained, chosen = tasks_of("train"), defaults_of(conf)
    for group in groups:
        about, template = GROUPS.get(group, ("", f"python run.py {group}=NAME"))
        parts += [f"## {group}", "", *([about, ""] if about else [])]
        parts += [f"Default: {', '.join(chosen[group])}.", ""] if group in chosen else []
        for file in (file for file in files if file.group == group):
            command = template.replace("NAME", file.name)
            if group == "task":
                command = f"python {'train' if file.name in trained else 'run'}.py task={file.name}"
            parts += _section(file, command, f"### {group}={file.name}")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _place(group: str) -> int:
    return list(GROUPS).index(group) if group in GROUPS else len(GROUPS)


def main() -> int:
    """Write the page, or check it; return the exit status."""
    parser = argparse.ArgumentParser(description="Write docs/configuration.md from conf/.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    check = parser.parse_args().check
    try:
        text = page()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE.name} is out of date; run python docs/scripts/{Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
