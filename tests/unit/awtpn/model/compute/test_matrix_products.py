"""Matrix products repeat bit for bit where the math library can be asked for it; elsewhere it is said."""

from __future__ import annotations

import os

import pytest
import torch
from support import SAME, same_bits_or_close

from awtpn.distributed import doctor
from awtpn.model.compute import matrix_products
from awtpn.model.compute.matrix_products import (
    REPEATABLE,
    VARIABLE,
    largest_difference,
    request_repeatable_products,
)

EPYC = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel name\t: AMD EPYC\n"
XEON = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\n"


def test_products_repeat_where_the_library_was_asked_for_it() -> None:
    """The tests' own process: tests/conftest.py imports awtpn before torch."""
    if os.environ.get(VARIABLE) != REPEATABLE or not torch.backends.mkl.is_available():
        pytest.skip(f"not an AMD processor, or {VARIABLE} was set by hand, or torch has no MKL")
    assert largest_difference() == 0.0


def test_every_amd_process_asks_for_it() -> None:
    if not any(vendor in matrix_products._processor() for vendor in matrix_products.AMD):
        pytest.skip("the processor is not AMD's")
    assert VARIABLE in os.environ


def test_the_difference_is_that_of_the_last_bits() -> None:
    assert 0.0 <= largest_difference() < SAME / 10


@pytest.mark.parametrize(
    ("environment", "modules", "processor", "asks"),
    [
        ({}, {"os"}, EPYC, True),
        ({}, {"os"}, XEON, False),
        ({}, {"os", "torch"}, EPYC, False),
        ({VARIABLE: "COMPATIBLE"}, {"os"}, EPYC, False),
        ({VARIABLE: ""}, {"os"}, EPYC, False),
    ],
    ids=["AMD", "Intel", "torch is loaded", "set by the user", "unset by the user"],
)
def test_the_environment_is_changed_only_where_it_helps_and_nobody_else_decided(
    environment: dict[str, str], modules: set[str], processor: str, asks: bool
) -> None:
    before = dict(environment)
    assert request_repeatable_products(environment, modules, processor) is asks
    assert environment == (before | {VARIABLE: REPEATABLE} if asks else before)


def test_an_address_that_matters_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a library whose products depend on where an operand begins."""
    whole = matrix_products._products

    def differing(a: torch.Tensor, b: torch.Tensor, at_a: int, at_b: int) -> list[torch.Tensor]:
        products = list(whole(a, b, at_a, at_b))
        return [x * (1 + 1e-6) if at_b == 40 and x.dtype == torch.float32 else x for x in products]

    monkeypatch.setattr(matrix_products, "_products", differing)
    assert largest_difference() == pytest.approx(1e-6, rel=0.2)


@pytest.mark.parametrize("difference", [0.0, 3e-7])
def test_the_doctor_says_whether_products_repeat(
    difference: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix_products, "largest_difference", lambda: difference)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert doctor.doctor_main(None, [], None)
    said = capsys.readouterr().out
    if difference:
        assert "matrix products repeat bit for bit: no (differ by up to 3e-07 relative when memory" in said
        assert f"set {VARIABLE}={REPEATABLE} in the environment of every rank" in said
    else:
        assert "matrix products repeat bit for bit: yes\n" in said
        assert VARIABLE not in said


@pytest.mark.parametrize("repeat", [True, False])
def test_tests_compare_bits_only_where_products_repeat(repeat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.products_repeat", lambda: repeat)
    exact, near, far = (torch.tensor([100.0, 1.0 + gap]) for gap in (0.0, 1e-6, 1e-2))
    assert same_bits_or_close(exact, exact.clone())
    assert same_bits_or_close(exact, near) is not repeat
    assert not same_bits_or_close(exact, far)
    assert not same_bits_or_close(exact, exact.double())
    lines = [{"step": 3, "loss": loss, "left out": None, "label": "sad"} for loss in (0.5, 0.5 + 1e-7, 0.6)]
    assert same_bits_or_close(lines[:1], [dict(lines[0])])
    assert same_bits_or_close(lines[:1], lines[1:2]) is not repeat
    assert not same_bits_or_close(lines[:1], lines[2:])
    assert not same_bits_or_close(lines[:1], lines[:2])
    for other in ({"step": 4}, {"loss": None}, {"label": "calm"}):
        assert not same_bits_or_close(lines[0], lines[0] | other)
    broken = torch.tensor([float("nan")])
    assert not same_bits_or_close(broken, broken)
