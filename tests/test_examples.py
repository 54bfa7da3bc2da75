"""Every command that README, pages and scripts show is one that the script accepts."""

import ast
import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from policy.results import REPOSITORY

_COMMAND = re.compile(r"^\s*(?:[A-Z_]+=\S+ )*python (scripts/\w+\.py)(.*)$", re.MULTILINE)


def texts() -> dict[str, str]:
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    found = {page.name: page.read_text() for page in pages}
    for script in sorted((REPOSITORY / "scripts").glob("*.py")):
        found[script.name] = ast.get_docstring(ast.parse(script.read_text())) or ""
    return found


def examples() -> list:
    found = []
    for name, text in texts().items():
        for script, rest in _COMMAND.findall(re.sub(r"\\+\n\s*", " ", text)):
            arguments = shlex.split(rest, comments=True)
            found.append(pytest.param(script, arguments, id=f"{name}: {' '.join([script, *arguments])}"))
    return found


@cache
def load(script: str):
    spec = importlib.util.spec_from_file_location(f"example_{Path(script).stem}", REPOSITORY / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("script", "arguments"), examples())
def test_examples_are_accepted(script, arguments, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    try:
        load(script).make_parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
