"""Programs answer ``--help`` and refuse flags before they import what is heavy, and end in one line on Ctrl-C."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
COMMANDS = {
    **{script: [script] for script in SCRIPTS},
    **{name: ["-m", name] for name in ("models.export", "models.toy")},
}
# Scripts without a model import no library but for YAML; these read and write files only, so numpy is near.
LIGHT_COMMANDS = {
    "datasets.check": ["-m", "datasets.check"],
    "datasets.convert": ["-m", "datasets.convert", "folder"],
    "datasets.toy": ["-m", "datasets.toy"],
}
MODEL_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate")
# Fails an import of what is named in REFUSED, however it is asked for.
SITE = """
import os, sys
refused = os.environ["REFUSED"].split(",")
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            print(f"imported {name}", file=sys.stderr)
            os._exit(77)
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE)

    def run(command, *arguments, refused):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "REFUSED": ",".join(refused)}
        return subprocess.run(
            [sys.executable, *command, *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_refused_flags_import_nothing_heavy(run, name):
    refused = (*MODEL_LIBRARIES, "numpy", "cv2", "PIL", "av", "pycocotools")
    shown = run(COMMANDS[name], "--help", refused=refused)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "usage: " in shown.stdout
    wrong = run(COMMANDS[name], "--no_such_flag", refused=refused)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1


@pytest.mark.parametrize("name", LIGHT_COMMANDS)
def test_commands_without_a_model_never_import_torch_to_answer(run, name):
    shown = run(LIGHT_COMMANDS[name], "--help", refused=MODEL_LIBRARIES)
    assert (shown.returncode, shown.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_has_help_that_ends_without_a_full_stop(run, name):
    shown = run(COMMANDS[name], "--help", refused=MODEL_LIBRARIES)
    for block in shown.stdout.split("\n  -")[1:]:
        text = " ".join(block.split("\n\n")[0].split())
        assert " " in text, f"{text} has no help"
        assert not text.endswith("."), text


IMPORTING = {
    "main.py": ["--config", "configs/toy.yaml"],
    "inference_mevis.py": [],
    "inference_demo.py": ["--input_path", "x.mp4", "--text_prompts", "a dog"],
    "evaluate.py": ["--dataset", "mevis", "--pred", "x"],
}


@pytest.mark.parametrize(
    ("script", "module"),
    [
        *((script, "numpy") for script in IMPORTING),
        *((script, "torch") for script in IMPORTING if script != "evaluate.py"),
    ],
)
def test_ctrl_c_during_imports_ends_in_one_line(tmp_path, script, module):
    """The interrupt comes from inside an import, which swallows every exception as libraries sometimes do."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "                for _ in range(10**6): pass\n"
        "            except BaseException: raise RecursionError('of a library')\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    done = subprocess.run(
        [sys.executable, script, *IMPORTING[script]], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.strip() == f"{script}: interrupted"
