"""The reference pages generated from the code: ``make docs`` writes them, a test fails when they are old."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import click
from clr_client import cli, settings
from clr_client.doctor import CHECKS

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

_TROUBLE_HEAD = """\
# Something does not work

<!-- Generated from client/src/clr_client/doctor by `make docs`; edits here are lost. -->

`clr doctor` looks at everything that goes wrong at set-up, in the order of this page, and says what to do. It changes
nothing, can be asked at any time, and needs neither good settings nor a running client:

```sh
docker-compose -f docker-compose.client.yaml run --rm clr-client doctor    # before the first start
docker exec clr-client clr doctor                                          # afterwards; the web site is looked at too
```

Each line begins with *ok*, *warning* (it works; there is something to know), *problem* or *skipped* (something before
it has to be in order first, or it cannot be told), and what to do stands below it. Begin with the first problem: others
often come from it. The exit code is 0, or 4 when there are problems; `clr doctor --json` is for programs.

The commonest: a [key](#login) that the server does not know, a wrong [port](#port), a server whose
[host key](#host-key) changed, a [source](#listing) that is not mounted, a disk without [room](#space).

The server says at its start which keys it accepts and why not the others, whether its library is empty or cannot be
read, and its fingerprints: `docker logs clr-server`. What a run refused or held:
[refused-or-held.md](refused-or-held.md).
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


def troubleshooting_page() -> str:
    """The Markdown of ``docs/how-to/troubleshooting.md``."""
    parts = [_TROUBLE_HEAD]
    for check in CHECKS:
        scope = " For each server." if check.of_server else ""
        parts.append(f"\n## {check.name}\n\n{check.question}{scope}\n")
        if not all(trouble.remedy for trouble in check.troubles):
            parts.append(f"\nWhere nothing else is said: {check.remedy}.\n")
        parts.append("\n| It says | What to do |\n|---|---|\n")
        for trouble in check.troubles:
            cells = (_template(trouble.text), _template(trouble.remedy) or "see above")
            parts.append("| " + " | ".join(_cell(cell) for cell in cells) + " |\n")
    return "".join(parts)


def pages() -> dict[Path, str]:
    """Each generated page's path and the text that it should hold."""
    return {
        FOLDER / "settings.md": settings_page(),
        FOLDER / "commands.md": commands_page(),
        FOLDER.parent / "how-to" / "troubleshooting.md": troubleshooting_page(),
    }


def _template(text: str) -> str:
    """What stands for itself as it is, and in italics what stands for something else."""
    return re.sub(r"\{(\w+)[^}]*\}", lambda match: f"*{match[1].replace('_', ' ')}*", text.replace("*", "\\*"))


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
        print(f"wrote docs/{path.relative_to(FOLDER.parent)}")


if __name__ == "__main__":
    main()
