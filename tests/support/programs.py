"""The server's programs in Python, as modules."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from typing import TYPE_CHECKING

import pytest

from support.server import SERVER

if TYPE_CHECKING:
    from types import ModuleType


def load_program(name: str) -> ModuleType:
    """Import one of the server's Python programs, which have no suffix."""
    loader = SourceFileLoader(name.replace("-", "_"), str(SERVER / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(SERVER), *sys.path])
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.setitem(sys.modules, loader.name, module)  # dataclasses look their module up
        loader.exec_module(module)
    return module
