import onnx
import pytest
from onnx import parser, version_converter

from onnxcam.autodiff import differentiate
from onnxcam.autodiff.decisions import EXPANDED, REFUSED, decide, decisions
from onnxcam.autodiff.registry import RULES
from onnxcam.errors import UnsupportedOperatorError
from onnxcam.graph.build import Builder
from onnxcam.graph.index import Graph


def test_every_operator_of_every_version_has_exactly_one_decision() -> None:
    known = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    decided = [d.op for d in decisions() if d.domain == ""]
    assert known <= set(decided)
    assert len(decided) == len(set(decided))


def test_an_operator_nobody_decided_about_is_an_error() -> None:
    with pytest.raises(LookupError):
        decide("Brandnew")


def test_an_operator_with_two_decisions_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REFUSED, "Relu", "twice")
    with pytest.raises(LookupError):
        decide("Relu")


def test_every_decision_says_why_and_every_rule_its_formula_and_file() -> None:
    assert [d.op for d in decisions() if not d.reason] == []
    assert decide("Conv").source == "conv.py"
    assert decide("GridSample").source == "resize.py"
    assert decide("Sigmoid").reason == "y * (1 - y)."


def test_expanded_operators_have_a_body_and_no_rule() -> None:
    for kind in EXPANDED:
        schema = onnx.defs.get_schema(kind)
        assert schema.has_function or schema.has_context_dependent_function
    assert not EXPANDED & RULES.keys()


def test_a_refusal_tells_its_reason() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[4,2,3] x, float[1,20,3] w, float[1,20,5] r)
        => (float[4,1,2,5] y) { y = LSTM<hidden_size=5>(x, w, r) }"""
    )
    graph = Graph(model)
    with pytest.raises(UnsupportedOperatorError, match="a recurrent layer's derivative is a loop backwards in time"):
        differentiate(graph, Builder(graph), "y", ["x"])


def test_if_that_reads_the_input_only_in_its_branches_is_refused_and_not_silently_zero() -> None:
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { a = Mul(x, x) },
                    else_branch = e () => (float[2] b) { b = Neg(x) }> }"""
    )
    graph = Graph(model)
    with pytest.raises(UnsupportedOperatorError, match="constant condition"):
        differentiate(graph, Builder(graph), "y", ["x"])


@pytest.mark.parametrize(
    ("opset", "text", "successor"),
    [
        (9, "(float[1,1,2,2] x, float[4] s) => (float[1,1,4,4] y) { y = Upsample(x, s) }", "Resize"),
        (10, "(float[3] x, int64[2] i, float[2] v) => (float[3] y) { y = Scatter(x, i, v) }", "ScatterElements"),
    ],
)
def test_replaced_operators_are_gone_after_lifting(opset: int, text: str, successor: str) -> None:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    lifted = version_converter.convert_version(model, 18)
    assert successor in {n.op_type for n in lifted.graph.node}
    assert model.graph.node[0].op_type not in {n.op_type for n in lifted.graph.node}
