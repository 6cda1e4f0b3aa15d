"""The rules of the house that a stranger could break without noticing."""

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("util", "datasets", "models", "engine")
# What each layer may import of ours; scripts may import all.
ALLOWED = {"util": {"util"}, "models": {"models", "util"}, "datasets": {"datasets", "util"}, "engine": set(PACKAGES)}
# What each folder of engine/ may import of its neighbours: training -> inference -> scoring; demo stands apart.
ALLOWED_IN_ENGINE = {
    "scoring": {"scoring"},
    "inference": {"inference", "scoring"},
    "training": {"training", "inference", "scoring"},
    "demo": {"demo"},
}
# Scoring, checking and converting need no model, and workers start sooner without torch.
TORCH_FREE = (
    *("datasets/*.py", "datasets/check/*.py", "datasets/convert/*.py", "datasets/readers/*.py"),
    *("engine/scoring/*.py", "engine/inference/results_folder.py", "engine/inference/write_and_score.py"),
    "util/*.py",
)
NEEDS_TORCH = {
    "util/state_dicts.py",
    *("datasets/clip.py", "datasets/referring.py", "datasets/transforms.py"),
    *("util/device.py", "util/memory.py", "util/stopwatch.py", "util/weight_files.py"),
}
LONGEST_FUNCTION = 75  # lines
# Public names that have the same meaning in every file that defines them.
IN_EVERY_PROGRAM = {"main", "run", "build_parser", "config_for_weights"}
# Names that a library calls, and the lists of models/library.py, which are there for their test.
CALLED_FROM_OUTSIDE = {"find_class", "persistent_load", "LIBRARY_NAMES", "INSTANCE_NAMES"}


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


def modules(*packages):
    return [path for package in packages or PACKAGES for path in sorted((ROOT / package).glob("**/*.py"))]


def scripts():
    return sorted(ROOT.glob("*.py"))


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(node):
    """Names of the modules that a file imports, also inside functions; of ``from a import b`` both a and a.b."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"imports are absolute, line {child.lineno}"
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)


def imported_at_once(path):
    """What importing the file imports: no function bodies, nothing for type checkers alone."""
    for node in tree_of(path).body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from imported(node)


# -- imports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down_only(package):
    for path in modules(package):
        ours = {name.split(".")[0] for name in imported(tree_of(path))} & set(PACKAGES)
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize("folder", ALLOWED_IN_ENGINE)
def test_inside_engine_training_imports_inference_imports_scoring_and_demo_stands_apart(folder):
    for path in modules(f"engine/{folder}"):
        parts = [name.split(".") for name in imported(tree_of(path)) if name.startswith("engine.")]
        neighbours = {part[1] for part in parts} & set(ALLOWED_IN_ENGINE)
        assert neighbours <= ALLOWED_IN_ENGINE[folder], f"{path} imports {neighbours - ALLOWED_IN_ENGINE[folder]}"


def test_only_scripts_import_what_runs_a_program():
    runs = {f"engine.{folder}.run" for folder in ALLOWED_IN_ENGINE}
    for path in modules():
        assert not runs & set(imported(tree_of(path))), path


def test_no_module_of_engine_lies_outside_the_programs_but_what_they_share():
    shared = {path.name for path in (ROOT / "engine").glob("*.py")}
    users = {name: set() for name in shared - {"__init__.py"}}
    for path in modules("engine"):
        for name in imported(tree_of(path)):
            parts = name.split(".")
            if parts[0] == "engine" and len(parts) > 1 and f"{parts[1]}.py" in users:
                users[f"{parts[1]}.py"].add(path.relative_to(ROOT / "engine").parts[0])
    for name, folders in users.items():
        assert len(folders) > 1, f"engine/{name} serves {folders} alone; move it there"


@pytest.mark.parametrize("name", ["models/flow.py"])
def test_the_maths_needs_torch_alone(name):
    packages = {module.split(".")[0] for module in imported(tree_of(ROOT / name))}
    assert packages <= {"torch", "itertools", "collections"}


def test_no_circle_of_imports():
    ours = {name_of(path): path for path in modules()}
    open_, done = [], set()

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name in done:
            return
        open_.append(name)
        for other in imported_at_once(ours[name]):
            if other in ours and other != name:
                visit(other)
        done.add(open_.pop())

    for name in ours:
        visit(name)


def torch_free_modules():
    paths = {path for pattern in TORCH_FREE for path in ROOT.glob(pattern)} - {ROOT / name for name in NEEDS_TORCH}
    return sorted(name_of(path) for path in paths)


def test_what_needs_no_model_imports_no_torch():
    script = (
        "import importlib, sys\n"
        f"for name in {torch_free_modules()!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'diffusers', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_list_of_modules_with_torch_is_no_longer_than_needed():
    for name in NEEDS_TORCH:
        packages = {module.split(".")[0] for module in imported_at_once(ROOT / name)}
        assert packages & {"torch"}, f"{name} imports no torch: take it off the list"


def test_importing_any_module_prints_nothing_and_starts_nothing():
    names = [name_of(path) for path in modules() if path.name != "__main__.py"]
    script = (
        f"import importlib, threading; [importlib.import_module(name) for name in {names!r}]\n"
        "assert threading.active_count() == 1"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# -- names -------------------------------------------------------------------------------------------------------


def definitions(path):
    """Public names of a file: functions, classes, constants; methods as ``.name``."""
    for node in tree_of(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign):
            yield node.target.id
        if isinstance(node, ast.ClassDef):
            yield from (f".{child.name}" for child in node.body if isinstance(child, ast.FunctionDef))


def is_public(name):
    return not name.removeprefix(".").startswith("_")


def product():
    return [*modules(), *modules("benchmarks"), *scripts()]


def test_every_public_name_has_a_caller_outside_the_tests():
    used = Counter()
    for path in product():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used[node.id] += 1
            elif isinstance(node, ast.Attribute):
                used[node.attr] += 1
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                used[node.value] += 1  # readers, which the registry names
    readme = set(re.findall(r"\w+", (ROOT / "README.md").read_text()))  # shows how to use it from Python
    for path in product():
        for name in filter(is_public, definitions(path)):
            bare = name.removeprefix(".")
            assert used[bare] or bare in readme | CALLED_FROM_OUTSIDE, f"{path}: nothing uses {bare}"


def test_a_function_or_class_is_defined_under_its_name_once():
    places = {}
    for path in modules():
        for node in tree_of(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and is_public(node.name):
                places.setdefault(node.name, []).append(name_of(path))
    twice = {name: where for name, where in places.items() if len(where) > 1 and name not in IN_EVERY_PROGRAM}
    assert not twice


def test_no_function_is_longer_than_a_screen():
    for path in product():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{path}: {node.name} has {length} lines"


def test_every_test_can_fail():
    """By an assert of its own, or in a helper that it calls."""
    functions = [
        node
        for path in sorted((ROOT / "tests").glob("**/*.py"))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef)
    ]
    asserting = {"raises", "fail", "assert_close", "assert_array_equal", "assert_allclose"}

    def asserts(function):
        calls = {
            getattr(node.func, "id", getattr(node.func, "attr", None))
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
        }
        return any(isinstance(node, ast.Assert) for node in ast.walk(function)) or calls & asserting

    for _ in range(3):  # helpers call helpers
        asserting |= {function.name for function in functions if asserts(function)}
    silent = [function.name for function in functions if function.name.startswith("test_") and not asserts(function)]
    assert silent == []


# -- safety ------------------------------------------------------------------------------------------------------


def test_no_machine_paths_and_nothing_loaded_unsafely():
    for path in [*scripts(), *modules(), *modules("scripts")]:
        text = path.read_text()
        assert "weights_only=False" not in text, path
        assert str(Path.home()) not in text, path
        assert f"{ROOT.parent}/" not in text, path
