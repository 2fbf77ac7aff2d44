"""Where ZeRO needs a compiler and there is none, one line says which package to install."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import ninja
import pytest
from torch.utils import cpp_extension

from awtpn.distributed.engines import deepspeed
from awtpn.distributed.engines.build_tools import check_build_tools


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is all of PATH."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def add(tool: Path) -> None:
    tool.touch()
    tool.chmod(0o755)


def test_each_tool_that_is_missing_is_named(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"a C\+\+ compiler, and there is no c\+\+: .*apt-get install g\+\+"):
        check_build_tools()
    add(tools / "c++")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tools))
    with pytest.raises(ValueError, match=r"no \S+/Python.h: install them \(apt-get install python3\.\d+-dev"):
        check_build_tools()
    (tools / "Python.h").touch()
    monkeypatch.setitem(sys.modules, "ninja", None)
    with pytest.raises(ValueError, match="pip install ninja"):
        check_build_tools()
    add(tools / "ninja")
    check_build_tools()
    monkeypatch.setenv("CXX", "clang++ -m64")
    with pytest.raises(ValueError, match=r"there is no clang\+\+ -m64: "):
        check_build_tools()
    add(tools / "clang++")
    check_build_tools()


def test_the_ninja_of_an_environment_that_is_not_activated_is_found(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not cpp_extension.is_ninja_available()
    add(tools / "c++")
    (tools / "bin").mkdir()
    shutil.copy("/bin/true", tools / "bin" / "ninja")
    monkeypatch.setattr(ninja, "BIN_DIR", str(tools / "bin"))
    check_build_tools()
    assert cpp_extension.is_ninja_available()


def test_the_op_is_not_compiled_without_a_compiler(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tools))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(ValueError, match=r"apt-get install g\+\+"):
        deepspeed.load_communication_op()
    assert "compiling" not in capfd.readouterr().err
