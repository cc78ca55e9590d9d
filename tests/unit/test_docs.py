"""The documentation says what the code does."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
from clr_client import cli, errors, settings
from clr_client.store import Store
from support import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
ENTRYPOINT = (ROOT / "server" / "entrypoint.sh").read_text()

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def code(path: Path) -> Iterator[str]:
    """The lines and words of a page that are set as code."""
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", prose(path))


def anchors(path: Path) -> set[str]:
    """The fragments that a page's headings can be reached by, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def known_variables() -> set[str]:
    """Every variable that a page may name: the client's, their old names and files, the server's."""
    fields = dataclasses.fields(settings.Settings)
    names = {field.name.upper() for field in fields} | set(settings.ALIASES)
    names |= {f"{field.name.upper()}_FILE" for field in fields if field.metadata["secret"]}
    misspelt = {"SYNC_SHEDULE"}  # in an example of the warning
    return names | misspelt | set(re.findall(r"\$\{([A-Z_]+)[:-]", ENTRYPOINT))


def targets() -> dict[str, str]:
    """The Makefile's targets with their help."""
    return dict(re.findall(r"^([a-z]+):(?:.*?## (.+))?$", MAKEFILE, re.MULTILINE))


@page
def test_every_relative_link_leads_to_a_file_and_heading_that_exist(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, fragment = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), link
        assert not fragment or fragment in anchors(there), link


@page
def test_every_command_and_option_that_a_page_shows_exists(path: Path) -> None:
    for line in code(path):
        for name, rest in re.findall(r"(?:^|[\s/|])clr ([a-z]+)\b([^#|&]*)", line):
            command = cli.main.commands.get(name)
            assert command is not None, line
            options = {
                option
                for param in command.params
                if isinstance(param, click.Option)
                for option in (*param.opts, *param.secondary_opts)
            }
            assert set(re.findall(r"--[a-z-]+", rest)) <= options | {"--help"}, line


@page
def test_every_make_target_that_a_page_shows_exists(path: Path) -> None:
    shown = {name for line in code(path) for name in re.findall(r"(?:^|\s)make ([a-z]+)", line)}
    assert shown <= set(targets())


@page
def test_every_variable_that_a_page_names_is_one_of_ours(path: Path) -> None:
    pattern = r"\b(?:SYNC|SYNCER|TLS|LIBRARY|CLR|HTTPS?|SITE|METRICS|VERIFY)_[A-Z_]*[A-Z]\b"
    named = set(re.findall(pattern, path.read_text()))
    assert named <= known_variables()


@page
def test_every_file_of_the_repository_that_a_page_shows_exists(path: Path) -> None:
    pattern = r"(?:docker-compose\.\w+\.yaml|(?:tests|client/src)/[\w./-]*\w)"
    for shown in {word for line in code(path) for word in re.findall(pattern, line)}:
        assert (ROOT / shown).exists(), shown


@pytest.mark.parametrize("path", reference.pages(), ids=lambda path: path.name)
def test_a_generated_reference_page_is_what_the_code_says_now(path: Path) -> None:
    assert path.read_text() == reference.pages()[path], "run: make docs"


def test_every_setting_is_in_the_reference() -> None:
    text = (ROOT / "docs/reference/settings.md").read_text()
    for field in dataclasses.fields(settings.Settings):
        assert f"| `{field.name.upper()}` |" in text


def test_the_readme_shows_the_defaults_that_the_code_has() -> None:
    defaults = {field.name.upper(): field.metadata["default"] for field in dataclasses.fields(settings.Settings)}
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| (`[^`]+`)? *\|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    for names, default in rows:
        for name in re.findall(r"[A-Z_]+", names):
            assert defaults[name] == default.strip("`"), name


def test_the_readme_shows_the_settings_of_the_original() -> None:
    text = (ROOT / "README.md").read_text()
    for name in (
        *("TZ", "SYNC_PEER", "SYNC_PORT", "SYNC_SCHEDULE", "SYNC_DELAY", "SYNC_DELAY_MAX_SECONDS"),
        *("SYNC_MAX_BW", "TLS_NAME", "TLS_CUSTOM_CERT", "LIBRARY_NAME", "LIBRARY_BROWSE"),
    ):
        assert f"| `{name}` |" in text


def test_the_reference_of_the_server_has_its_settings_and_defaults() -> None:
    text = (ROOT / "docs/reference/server.md").read_text()
    for name, default in re.findall(r"=\$\{((?!CLR_)[A-Z_]+):-([^}]*)\}", ENTRYPOINT):
        shown = "same as" if default.startswith("$") else f"`{default}`"
        assert re.search(rf"^\| `{name}` \| {shown}", text, re.MULTILINE), name


def test_every_exit_code_of_an_error_is_in_the_reference() -> None:
    shown = re.findall(r"^\| (\d+) \|", (ROOT / "docs/reference/exit-codes.md").read_text(), re.MULTILINE)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.ClrError)}
    assert {0, 2, 6} | codes == {int(code) for code in shown}


def test_the_reference_of_the_library_volume_lists_what_is_there_and_nothing_else() -> None:
    text = (ROOT / "docs/reference/volume.md").read_text()
    listed = {path.split("/")[0] for path in re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)}
    store = Store(Path("/library"))
    paths = [value for value in vars(store).values() if isinstance(value, Path) and value != store.root]
    assert listed == {path.name for path in paths} | {".lock"}


def test_the_design_names_every_module_and_package_of_the_client_and_no_other() -> None:
    parts = (ROOT / "docs/design.md").read_text().split("```")[1].split("tests/ ")[0]
    source = ROOT / "client/src/clr_client"
    there = {path.name for path in source.glob("*.py") if not path.name.startswith("__")}
    there |= {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    named = set(re.findall(r"[a-z]+\.py|[a-z]+/(?= )", parts.partition("clr_client/\n")[2]))
    assert named == there


def test_every_make_target_has_a_line_of_help_and_is_phony() -> None:
    phony = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split()
    assert sorted(targets()) == sorted(phony)
    assert all(targets().values()), targets()
    assert {"help", "setup", "demo", "test", "lint", "images", "up", "down", "clean"} <= set(phony)


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "docs/changelog.md").read_text()
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert re.search(r"^## \[Unreleased\]$", text, re.MULTILINE)


def test_the_top_level_holds_nothing_visible_but_what_belongs_there() -> None:
    allowed = {"server", "client", "tests", "docs", "Makefile", "README.md", "LICENSE"}
    allowed |= {"docker-compose.server.yaml", "docker-compose.client.yaml"}
    assert {entry.name for entry in ROOT.iterdir() if not entry.name.startswith(".")} == allowed


def test_every_promise_names_tests_that_exist() -> None:
    text, _, _ = (ROOT / "docs" / "reference" / "guarantees.md").read_text().partition("## Not promised")
    promises = text.split("\n- ")[1:]
    assert len(promises) > 40
    for promise in promises:
        named = re.findall(r"`([a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`", promise)
        assert named, promise
        for file, name in named:
            assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), f"{file}::{name}"
