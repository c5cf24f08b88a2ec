"""Every node test case that ONNX ships, written by others, whose operator has a rule or a proven function body.

Each case is widened to float64, its gradient for every float input is compared with a central difference along a
seeded direction, and its integer inputs become constants. `pytest -s` prints operators covered, cases passed, and
cases skipped by reason.
"""

import re
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcam.autodiff import differentiate
from onnxcam.autodiff.decisions import decide
from onnxcam.autodiff.registry import RULES
from onnxcam.errors import UnsupportedError
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph, opset_of
from support.definitions import DEFINITIONS

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
LARGEST = 20_000  # elements of an input; the reference evaluator takes seconds for more
TOLERANCE, STEP = 1e-6, 1e-4

# Why a case says nothing about a derivative; every reason that occurs must be one of these.
NO_FLOATS = "no float tensor goes in or comes out"
STAIRCASE = "a staircase, rounded to few bits: straight-through, proven in tests/rules"
RANDOM = "random"
EMPTY = "empty tensors"
LARGE = "too large for the reference evaluator"
FLOAT32 = "the reference evaluator mixes in float32"
MASKED = "a row of attention in which everything is masked: 0/0 in the function body's derivative"
UNDEFINED = "not finite around the point"
KINK = "a kink"
REFUSED = "a form that is refused with a reason"

STAIRCASES = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
              "ConvInteger", "MatMulInteger"}  # fmt: skip
INTEGERS_ONLY = {"Trilu"}  # all of ONNX's cases have integers, which are widened too
FLOAT32_CASES = r"test_mvn|test_causal_conv_with_state_(silu|swish).*"
MASKED_CASES = (
    r"test_attention_(causal_boolmask_nan_robustness|.*fullymasked.*|24_qk_matmul_output_mode3_softmax_precision"
    r"|4d_causal_padded_kv_bf16|4d_causal_nonpad_negative_offset_structural_empty|local_window_gqa_rank4_mask)"
)
# Rules whose cases all lie in the skips above, or for which ONNX ships no case; tests/rules proves them.
UNTESTED = {*STAIRCASES, "MeanVarianceNormalization", "SimplifiedLayerNormalization", "GlobalLpPool"}


@dataclass(frozen=True)
class Result:
    name: str
    op: str
    skipped: str = ""
    failed: str = ""


def evaluate(model: ModelProto, feeds: dict[str, Any], names: list[str]) -> list[Any]:
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model, new_ops=list(DEFINITIONS)).run(names, feeds))


def widen(graph: GraphProto) -> None:
    """Every float type, weight and constant in float64, where a schema does not insist on float32."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in graph.initializer:
        widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "stash_type", "softmax_precision") and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
            if attribute.type == AttributeProto.TENSOR:
                widen_tensor(attribute.t)
            elif attribute.name in ("value_float", "value_floats"):
                values = attribute.f if attribute.name == "value_float" else attribute.floats
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(np.asarray(values, float))))


def widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def only_float32(node: onnx.NodeProto, opset: int, name: str) -> bool:
    """Whether the schema gives this input the type float32 and no other (Resize's scales)."""
    schema = onnx.defs.get_schema(node.op_type, opset)
    return any(
        given == name and i < len(schema.inputs) and set(schema.inputs[i].types) == {"tensor(float)"}
        for i, given in enumerate(node.input)
    )


def differentiable(node: onnx.NodeProto) -> list[str]:
    """The inputs that the operator's rule gives a gradient."""
    rule = RULES.get(node.op_type)
    positions = range(len(node.input)) if rule is None or rule.wrt is None else rule.wrt
    return [node.input[i] for i in positions if i < len(node.input) and node.input[i]]


def prepared(case: Any) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """The case in float64 at opset >= 18, and the inputs to differentiate for; all others become constants."""
    model = ModelProto()
    model.CopyFrom(case.model)
    node = model.graph.node[0]
    singles = {i.name for i in model.graph.input if only_float32(node, opset_of(model), i.name)}
    widen(model.graph)
    wanted = differentiable(node)
    feeds: dict[str, np.ndarray] = {}
    for declared, value in zip(list(model.graph.input), case.data_sets[0][0], strict=True):
        value = numpy_helper.to_array(value) if isinstance(value, TensorProto) else value
        if value is None:
            continue
        if isinstance(value, list):
            raise LookupError
        array = np.asarray(value)
        if node.op_type in INTEGERS_ONLY and declared.name == node.input[0]:
            array = array.astype(float)
            declared.type.tensor_type.elem_type = model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
        if (array.dtype.kind == "f" or array.dtype.name == "bfloat16") and declared.name not in singles:
            array = array.astype(np.float64)
            if node.op_type in ("Cast", "CastLike", "Mod"):  # ONNX puts inf and nan among their values
                array = np.where(np.isfinite(array), array, 0.75)
            if declared.name in wanted:
                feeds[declared.name] = array
                continue
        model.graph.input.remove(declared)
        model.graph.initializer.append(numpy_helper.from_array(array, declared.name))
    if opset_of(model) < 18:
        model = onnx.version_converter.convert_version(model, 18)
    return model, feeds


def compared(model: ModelProto, feeds: dict[str, np.ndarray], outputs: list[str], rng: np.random.Generator) -> str:
    """ "" where every gradient agrees; else a skip reason or what disagrees."""
    names = list(feeds)
    primal = dict(zip(outputs, evaluate(model, feeds, outputs), strict=True))
    graph = Graph(model, shapes={k: v.shape for k, v in feeds.items()})
    for output in outputs:
        y = np.asarray(primal[output])
        u = rng.standard_normal(y.shape)
        op = Builder(graph, TensorProto.DOUBLE)
        try:
            found = {k: g for k, g in differentiate(graph, op, output, names, cotangent="seed").items() if g}
        except UnsupportedError:
            if output == outputs[0]:
                raise
            continue  # statistics beside the result, which only training reads
        seed = tensor_info("seed", TensorProto.DOUBLE, y.shape)
        rewritten = op.model([tensor_info(g, TensorProto.DOUBLE, None) for g in found.values()], [seed])
        arrays = evaluate(rewritten, feeds | {"seed": u}, list(found.values())) if found else []
        gradients = dict(zip(found, arrays, strict=True))
        for name in names:
            v = rng.uniform(-1, 1, feeds[name].shape)
            dx = gradients.get(name, np.zeros_like(v))
            if dx.shape != v.shape:
                return f"the gradient of {name} has shape {dx.shape}, not {v.shape}"

            def moved(t: float, name: str = name, v: np.ndarray = v, output: str = output) -> np.ndarray:
                return np.asarray(evaluate(model, feeds | {name: feeds[name] + t * v}, [output])[0], np.float64)

            near, far = (u * (moved(h) - moved(-h)) / (2 * h) for h in (STEP / 2, STEP))
            slopes = (4 * near - far) / 3
            expected, have = slopes.sum(), (dx * v).sum()
            if not np.isfinite(expected):
                return UNDEFINED
            if not abs(have - expected) <= TOLERANCE * max(np.abs(slopes).sum(), np.abs(dx * v).sum()):
                left, right = ((u * (moved(s * STEP) - y) / (s * STEP)).sum() for s in (-1, 1))
                steady = abs(near.sum() - far.sum()) <= 0.1 * abs(far.sum())
                bent = not steady or abs(left - right) > 1e-2 * max(abs(left), abs(right))
                return KINK if bent else f"{name} -> {output}: {have}, but differences say {expected}"
    return ""


def judge(case: Any) -> Result:
    node = case.model.graph.node[0]
    result = Result(case.name, node.op_type)

    def skipped(reason: str) -> Result:
        return Result(case.name, node.op_type, skipped=reason)

    if node.op_type in STAIRCASES:
        return skipped(STAIRCASE)
    if node.op_type == "Dropout" and "training" in case.name:
        return skipped(RANDOM)
    if re.fullmatch(FLOAT32_CASES, case.name):
        return skipped(FLOAT32)
    if re.fullmatch(MASKED_CASES, case.name):
        return skipped(MASKED)
    arrays = [a for a in (*case.data_sets[0][0], *case.data_sets[0][1]) if isinstance(a, np.ndarray)]
    if any(a.size == 0 for a in arrays):
        return skipped(EMPTY)
    if any(a.size > LARGEST for a in arrays):
        return skipped(LARGE)
    try:
        model, feeds = prepared(case)
    except LookupError:
        return skipped(NO_FLOATS)
    values = evaluate(model, feeds, [o.name for o in model.graph.output])
    types = {o.name: np.asarray(v).dtype for o, v in zip(model.graph.output, values, strict=True)
             if isinstance(v, np.ndarray | np.generic)}  # fmt: skip
    outputs = [name for name, dtype in types.items() if dtype == np.float64]
    if node.op_type in ("Cast", "CastLike") and not outputs:
        return skipped(STAIRCASE)
    if not feeds or not outputs:
        return skipped(NO_FLOATS)
    rng = np.random.default_rng(len(case.name))
    try:
        verdict = compared(model, feeds, outputs, rng)
        if verdict and verdict != UNDEFINED:  # many cases sit on kinks and ties: a small step off, all must agree
            away = {k: v + 0.02 * rng.standard_normal(v.shape) for k, v in feeds.items()}
            verdict = compared(model, away, outputs, rng)
    except UnsupportedError as error:
        return skipped(f"{REFUSED}: {error.message.partition(': ')[2]}")
    except Exception as error:  # whatever breaks is a failure of this case, not the end of the run
        verdict = f"{type(error).__name__}: {error}"
    if verdict in (KINK, UNDEFINED):
        return skipped(verdict)
    return Result(case.name, node.op_type, failed=verdict) if verdict else result


@pytest.fixture(scope="module")
def results() -> list[Result]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = [c for c in collect_testcases(None) if len(c.model.graph.node) == 1]
        chosen = [c for c in cases if not c.model.graph.node[0].domain
                  and decide(c.model.graph.node[0].op_type).decision in ("rule", "expanded")]  # fmt: skip
        return [judge(c) for c in chosen]


def test_no_gradient_disagrees_with_numerical_differentiation(results: list[Result]) -> None:
    passed = Counter(r.op for r in results if not r.skipped and not r.failed)
    reasons = defaultdict(list)
    for r in results:
        if r.skipped:
            reasons[r.skipped].append(r.name)
    print(f"\n{len(passed)} operators covered, {sum(passed.values())} cases passed, skipped:")
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        print(f"  {len(names):4} {reason} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    assert {r.name: r.failed[:150] for r in results if r.failed} == {}
    known = {NO_FLOATS, STAIRCASE, RANDOM, EMPTY, LARGE, FLOAT32, MASKED, UNDEFINED, KINK}
    assert all(reason in known or reason.startswith(REFUSED) for reason in reasons)


def test_every_differentiable_operator_is_covered(results: list[Result]) -> None:
    passed = {r.op for r in results if not r.skipped and not r.failed}
    wanted = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    wanted = {name for name in wanted if decide(name).decision in ("rule", "expanded")}
    assert wanted - passed == wanted & UNTESTED
    assert len(passed) == 117


def test_the_harness_notices_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from onnx.backend.test.case.node import collect_testcases

    (case,) = (c for c in collect_testcases("Softplus") if c.name == "test_softplus")
    assert judge(case).failed == ""
    wrong = replace(RULES["Softplus"], function=lambda op, node, dy: (op.Mul(dy, op.Tanh(node.inputs[0])),))
    monkeypatch.setitem(RULES, "Softplus", wrong)
    assert judge(case).failed
