"""The reference pages generated from the code: ``make docs`` writes them, a test fails when they are old."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import click
from clr_client import cli, settings

FOLDER = Path(__file__).parents[2] / "docs" / "reference"

_SETTINGS_HEAD = """\
# Settings of the client

<!-- Generated from client/src/clr_client/settings.py by `make docs`; edits here are lost. -->

Every setting is an environment variable. A value that cannot be used ends the start with one line: name,
value and what is allowed. A variable that begins like one of these (`SYNC_`, `TLS_`, `LIBRARY_`, …) and is none of
them is warned about, with the likely name. An empty value stands for the default.

The server has a few settings of its own: [server.md](server.md).
"""

_COMMANDS_HEAD = """\
# Commands of the client

<!-- Generated from client/src/clr_client/cli.py by `make docs`; edits here are lost. -->

In the container: `docker exec clr-client clr COMMAND`. In a checkout, after `make setup`:
`.venv/bin/clr COMMAND`. Every command reads its settings from the environment: [settings.md](settings.md).
What the exit codes mean: [exit-codes.md](exit-codes.md).
"""


def settings_page() -> str:
    """The Markdown of ``docs/reference/settings.md``."""
    parts = [_SETTINGS_HEAD]
    group = None
    for field in dataclasses.fields(settings.Settings):
        meta = field.metadata
        if meta["group"] != group:
            group = meta["group"]
            parts.append(f"\n## {group}\n\n| Variable | Default | Allowed | Meaning |\n|---|---|---|---|\n")
        default = f"`{meta['default']}`" if meta["default"] else "(empty)"
        text = meta["help"]
        if meta["secret"]:
            text += f" Or `{field.name.upper()}_FILE`: a file that holds it."
        cells = (f"`{field.name.upper()}`", default, meta["type"].allowed, text)
        parts.append("| " + " | ".join(_cell(cell) for cell in cells) + " |\n")
    parts.append("\n## Old names\n\n| Old | Now |\n|---|---|\n")
    parts.extend(f"| `{old}` | `{new}` |\n" for old, new in settings.ALIASES.items())
    return "".join(parts)


def commands_page() -> str:
    """The Markdown of ``docs/reference/commands.md``."""
    parts = [_COMMANDS_HEAD]
    for name, command in sorted(cli.main.commands.items()):
        parts.append(f"\n## clr {name}\n\n{_prose(command.help)}\n\n```\n{_usage(name, command)}\n```\n")
        rows = [row for row in (_option_row(param) for param in command.params) if row]
        if rows:
            parts.append("\n| Option | Meaning |\n|---|---|\n" + "".join(rows))
    return "".join(parts)


def pages() -> dict[Path, str]:
    """Each generated page's path and the text that it should hold."""
    return {FOLDER / "settings.md": settings_page(), FOLDER / "commands.md": commands_page()}


def _prose(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("\b\n", "").split("\f", maxsplit=1)[0].strip()


def _usage(name: str, command: click.Command) -> str:
    # click remembers the help option of the first context it sees
    names = cli.main.context_settings["help_option_names"]
    context = click.Context(
        command, info_name=f"clr {name}", terminal_width=1000, max_content_width=1000, help_option_names=names
    )
    return re.sub(r"\s+", " ", f"clr {name} " + " ".join(command.collect_usage_pieces(context))).strip()


def _option_row(param: click.Parameter) -> str:
    if not isinstance(param, click.Option) or param.hidden:
        return ""
    value = "" if param.is_flag else f" {param.metavar or param.type.name.upper()}"
    names = ", ".join(f"`{name}{value}`" for name in (*param.opts, *param.secondary_opts))
    required = " Required." if param.required else ""
    return f"| {_cell(names)} | {_cell(param.help or '')}{required} |\n"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote docs/reference/{path.name}")


if __name__ == "__main__":
    main()
