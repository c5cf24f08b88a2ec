"""Runs the `CASES` of every module beside this one, and holds the tables equal to the registry."""

import importlib
from pathlib import Path

import onnx
import pytest

from onnxcam.autodiff.registry import INDEPENDENT, MISTAGGED, NON_DIFFERENTIABLE, RULES
from support.vjp import Case, check_case, check_runtime

MODULES = [p.stem for p in sorted(Path(__file__).parent.glob("test_*.py")) if p.stem != Path(__file__).stem]
CASES: list[Case] = [case for m in MODULES for case in getattr(importlib.import_module(m), "CASES", [])]
# Rules that a module proves in a test of its own, where differences cannot.
PROVEN = {kind for m in MODULES for kind in getattr(importlib.import_module(m), "PROVEN", ())}


def identified(case: Case, opset: int) -> object:
    return pytest.param(case, opset, id=f"{case.inputs} | {case.body} @{opset}{' blocks' * case.blocks}")


@pytest.mark.parametrize(("case", "opset"), [identified(c, o) for c in CASES for o in c.opsets])
def test_vjp_equals_central_differences_of_the_original_model(case: Case, opset: int) -> None:
    check_case(case, opset)


@pytest.mark.parametrize(("case", "opset"), [identified(c, c.opsets[0]) for c in CASES if c.runtime])
def test_runtime_computes_the_same_gradient_in_float32(case: Case, opset: int) -> None:
    pytest.importorskip("onnxruntime")
    check_runtime(case, opset)


def test_every_rule_has_a_case_and_every_case_a_rule() -> None:
    assert {c.kind for c in CASES if not c.expands} | PROVEN == set(RULES)


def test_an_expanded_case_has_no_rule_of_its_own() -> None:
    assert not {c.kind for c in CASES if c.expands} & set(RULES)


def test_non_differentiable_operators_are_those_the_schemas_tag_wholly() -> None:
    no = onnx.defs.OpSchema.DifferentiationCategory.NonDifferentiable
    tagged = {
        s.name
        for s in onnx.defs.get_all_schemas()
        if s.domain == "" and all(p.differentiation_category == no for p in (*s.inputs, *s.outputs))
    }
    assert tagged - MISTAGGED == NON_DIFFERENTIABLE
    assert tagged >= MISTAGGED
    assert not INDEPENDENT & (NON_DIFFERENTIABLE | MISTAGGED | set(RULES))
