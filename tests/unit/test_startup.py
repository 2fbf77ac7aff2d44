"""What is imported when: `--help` waits for no heavy library, and public names load when they are used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from typing import Any

import pytest
from support import REPO, environment

import awtpn
import shards

HEAVY = [
    *("torch", "av", "h5py", "transformers", "matplotlib", "jsonargparse", "deepspeed", "accelerate"),
    *("aiohttp", "wandb", "mlflow"),
]
# One process, since imports cannot be undone. Each line of its output is what is loaded by then.
PROBE = f"""
import contextlib, io, json, os, sys

def loaded():
    print(json.dumps([name for name in {HEAVY} if name in sys.modules]))

os.environ.pop("MKL_CBWR", None)
import awtpn.model.compute.matrix_products
awtpn.model.compute.matrix_products._processor = lambda: "AuthenticAMD"
sys.modules.pop("awtpn")
import awtpn, shards
print(json.dumps(os.environ.get("MKL_CBWR")))
from awtpn.cli import main
import launch.train, launch.evaluate, launch.cross_validate, launch.ablate

def answered(*words):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main(words)

for words in (["--help"], ["trian"], ["pack", "--help"], ["extract", "--fromat", "x"], ["evaluate", "--help"],
              ["evaluate"], ["cross-validate", "--help"], ["ablate", "--jobs", "x"],
              ["compare-models", "--help"], ["serve", "--help"], ["serve", "gone/a/b"]):
    answered(*words)
import awtpn.config.schema
from awtpn import ModelConfig
from shards import Manifest, Sample
loaded()
answered("train", "--help")
answered("train", "--train.epoch", "3")
answered("cross-validate", "--sedes", "1")
loaded()
from shards import Ragged
loaded()
"""


def test_help_waits_for_no_heavy_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=REPO, env=environment(), check=True
    )
    variable, commands, training, batch = map(json.loads, done.stdout.splitlines())
    assert variable == "AUTO,STRICT", "asked for before torch can be loaded"
    assert commands == []
    assert training == ["jsonargparse"]
    assert "torch" in batch, "the probe sees what is loaded"


@pytest.mark.parametrize("package", [awtpn, shards], ids=["awtpn", "shards"])
def test_public_names_are_there(package: Any) -> None:
    tree = ast.parse((REPO / package.__name__ / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    for_checkers = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_checkers == package._MODULE_OF, "type checkers see what there is"
    assert sorted(package.__all__) == sorted(package._MODULE_OF)
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__module__ == package._MODULE_OF[name]
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing
