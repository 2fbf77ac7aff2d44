"""What DeepSpeed's communication op is compiled with: a C++ compiler, Python's headers and ninja.

DeepSpeed needs this op on machines without GPUs only. Without a tool, torch's error is a page of ninja's
output, on every rank.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sysconfig
from pathlib import Path

WHY = "DeepSpeed compiles a communication op on machines without GPUs, for which it needs"
OTHERWISE = "or train without DeepSpeed"


def check_build_tools() -> None:
    """Check that the op can be compiled.

    Raises:
        ValueError: a tool is missing; names the package to install.
    """
    compiler = os.environ.get("CXX", "c++")  # as torch chooses it
    if not shutil.which((shlex.split(compiler) or [""])[0]):
        raise ValueError(
            f"{WHY} a C++ compiler, and there is no {compiler}: install one (apt-get install g++, dnf "
            f"install gcc-c++ or conda install gxx), name yours by the variable CXX, {OTHERWISE}"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise ValueError(
            f"{WHY} Python's headers, and there is no {header}: install them (apt-get install "
            f"python{sysconfig.get_python_version()}-dev or dnf install python3-devel), {OTHERWISE}"
        )
    if not find_ninja():
        raise ValueError(f"{WHY} ninja: install it (pip install ninja), {OTHERWISE}")


def find_ninja() -> bool:
    """Whether there is a ninja; puts pip's on PATH, where it is not if its environment is not activated."""
    if shutil.which("ninja"):
        return True
    try:
        from ninja import BIN_DIR
    except ImportError:
        return False
    os.environ["PATH"] = os.pathsep.join(filter(None, (os.environ.get("PATH"), BIN_DIR)))
    return shutil.which("ninja") is not None
