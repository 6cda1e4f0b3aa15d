"""The rules of the house that a stranger could break without noticing."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("util", "datasets", "models", "engine")
# What each layer may import of ours; scripts may import all.
ALLOWED = {"util": {"util"}, "models": {"models", "util"}, "datasets": {"datasets", "util"}, "engine": set(PACKAGES)}


def modules(package):
    return sorted((ROOT / package).glob("**/*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down_only(package):
    for path in modules(package):
        ours = {name.split(".")[0] for name in imported(path)} & set(PACKAGES)
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize("name", ["models/flow.py"])
def test_the_maths_needs_torch_alone(name):
    assert {module.split(".")[0] for module in imported(ROOT / name)} <= {"torch", "itertools", "collections"}


def test_importing_any_module_prints_nothing_and_starts_nothing():
    names = [str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for p in PACKAGES for path in modules(p)]
    script = (
        f"import importlib, threading; [importlib.import_module(name) for name in {names!r}]\n"
        "assert threading.active_count() == 1"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_script_shows_its_help():
    for script in sorted(ROOT.glob("inference_*.py")):
        spec = importlib.util.spec_from_file_location(script.stem, script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert "--wan_path" in module.build_parser().format_help()


def test_no_machine_paths_and_nothing_loaded_unsafely():
    for path in [*ROOT.glob("*.py"), *(path for package in (*PACKAGES, "scripts") for path in modules(package))]:
        text = path.read_text()
        assert "weights_only=False" not in text, path
        assert str(Path.home()) not in text, path
        assert f"{ROOT.parent}/" not in text, path
