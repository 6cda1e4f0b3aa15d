"""Private names of libraries: each exists, and no other is in use."""

import argparse
import ast
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

from models.library import INSTANCE_NAMES, LIBRARY_NAMES

ROOT = Path(__file__).parents[2]
LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub", "argparse")
OF_INSTANCES = {name for names in INSTANCE_NAMES.values() for name in names}


@pytest.mark.parametrize("name", LIBRARY_NAMES, ids=lambda name: f"{name.module}.{name.name}")
def test_each_private_name_exists(name):
    assert name.exists(), (
        f"the installed {name.module.split('.')[0]} has no {name.name} in {name.module}, used for: {name.use}; "
        "change the code that uses it and this list"
    )


def test_a_name_that_is_gone_is_noticed():
    gone = LIBRARY_NAMES[0].__class__("torch.nn", "Module._no_such_thing", "nothing")
    assert not gone.exists()
    assert not gone.__class__("torch.no_such_module", "name", "nothing").exists()


INSTANCES = {
    "torch.nn.Module": torch.nn.Linear(1, 1),
    "torch.UntypedStorage": torch.empty(1).untyped_storage(),
    "argparse.ArgumentParser": argparse.ArgumentParser(),
    "diffusers WanCausalConv3d": WanCausalConv3d(1, 1, 1),
}


@pytest.mark.parametrize("kind", INSTANCE_NAMES)
def test_each_private_attribute_of_instances_exists(kind):
    assert [name for name in INSTANCE_NAMES[kind] if not hasattr(INSTANCES[kind], name)] == []


def product():
    return [path for package in ("util", "datasets", "models", "engine") for path in (ROOT / package).glob("**/*.py")]


def private_names_of(tree):
    """Underscored names that a file takes from a library or reads off an object other than its own."""
    own = {
        node.name if isinstance(node, ast.FunctionDef | ast.ClassDef) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        or (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in LIBRARIES:
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if part.startswith("_"))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr not in own:
            is_public = node.attr.startswith("__") or ast.unparse(node) == "os._exit"  # documented, both
            yield from () if is_public else (node.attr,)


def test_no_other_private_name_is_in_use():
    listed = {part for name in LIBRARY_NAMES for part in f"{name.module}.{name.name}".split(".")} | OF_INSTANCES
    for path in product():
        unlisted = set(private_names_of(ast.parse(path.read_text()))) - listed
        assert not unlisted, f"{path} uses {unlisted}: list it in models/library.py"


def test_no_listed_name_is_unused():
    text = "".join(path.read_text() for path in product() if path.name != "library.py")
    unused = [name.name for name in LIBRARY_NAMES if name.name.split(".")[-1] not in text]
    assert unused == []
