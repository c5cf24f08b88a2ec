"""The oracle of the derivative rules: central differences of the original model in float64 by `onnx.reference`.

A `Case` is one small model in ONNX text, written with `double`; the same text with `float` or `float16` is the model
that a runtime gets. `tests/rules/test_rules.py` runs the `CASES` tables of the modules beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxcam.autodiff import differentiate
from onnxcam.graph.build import Builder, tensor_info
from onnxcam.graph.index import Graph
from support.definitions import DEFINITIONS

NEWEST = onnx.defs.onnx_opset_version()
CHANGES = {
    name: frozenset(s.since_version for s in schemas)
    for name, schemas in groupby(
        sorted((s for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""), key=lambda s: s.name),
        key=lambda s: s.name,
    )
}
SIZES = {"N": 2, "C": 3, "H": 5, "W": 4, "ONE": 1}  # what the symbols in declared shapes are bound to
FLOATS = (TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.FLOAT16)
Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One model `(inputs) => (output) { body }`, and where its derivative is compared.

    output: inferred where it is left out, which operators of other domains do not allow.
    kind: the operator under test, as keyed in RULES. domain: values of float inputs, all distinct and equally spaced;
    a mapping gives it per input. feeds: values of the other inputs. fixed: inputs that become initializers.
    polynomial: of degree 4 at most along any line, so that differences with step 1 are exact. since: first opset with
    this form. expands: the operator has no rule of its own, its function body is differentiated. blocks: as Builder's.
    """

    kind: str
    inputs: str
    body: str
    output: str = "double[] y"
    domain: tuple[float, float] | Mapping[str, tuple[float, float]] = (-1.9, 2.1)
    feeds: Feeds = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    polynomial: bool = False
    since: int = 18
    until: int = NEWEST
    expands: bool = False
    wrt: tuple[str, ...] | None = None
    runtime: bool = True
    blocks: bool = False
    new_ops: tuple[type[OpRun], ...] = ()

    @property
    def opsets(self) -> list[int]:
        """`since`, every later version at which the operator's schema changed, and the newest (for what is emitted)."""
        changes = CHANGES.get(self.kind, frozenset({1}))
        first = max(self.since, min(changes))
        return sorted({first, self.until, *(v for v in changes if first < v < self.until)})

    def model(self, opset: int, dtype: str = "double") -> ModelProto:
        text = f"""<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>
            g ({self.inputs}) => ({self.output}) {{ {self.body} }}"""
        model = parser.parse_model(text.replace("double", dtype))
        values = self.values(model)
        for name in self.fixed:
            declared = next(i for i in model.graph.input if i.name == name)
            model.graph.input.remove(declared)
            model.graph.initializer.append(numpy_helper.from_array(values[name], name))
        if not model.graph.output[0].type.tensor_type.HasField("shape"):
            model.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output[0])
        return model

    def values(self, model: ModelProto) -> dict[str, np.ndarray]:
        """Seeded values of every declared input, rounded to float16 so that they mean the same in every type."""
        rng = np.random.default_rng(7)
        values = dict(self.feeds)
        header = f'<ir_version: 10, opset_import: ["" : 18]> g ({self.inputs}) => () {{ }}'
        for declared in parser.parse_model(header).graph.input:
            name = declared.name
            if name not in values:
                dims = declared.type.tensor_type.shape.dim
                shape = [d.dim_value if d.HasField("dim_value") else SIZES[d.dim_param] for d in dims]
                low, high = self.domain.get(name, (-1.9, 2.1)) if isinstance(self.domain, Mapping) else self.domain
                n = int(np.prod(shape))
                spaced = low + (high - low) * (np.arange(n) + 0.5) / n
                values[name] = rng.permutation(spaced).reshape(shape).astype(np.float16).astype(np.float64)
        types = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
        return {k: v.astype(helper.tensor_dtype_to_np_dtype(types[k])) if v.dtype.kind == "f" and k in types else v
                for k, v in values.items()}  # fmt: skip


def run(model: ModelProto, feeds: Feeds, names: list[str], new_ops: tuple[type[OpRun], ...] = ()) -> list[np.ndarray]:
    """The named outputs by `onnx.reference`."""
    declared = {i.name for i in model.graph.input}
    evaluator = ReferenceEvaluator(model, new_ops=[*DEFINITIONS, *new_ops])
    return [np.asarray(r) for r in evaluator.run(names, {k: v for k, v in feeds.items() if k in declared})]


def gradients(
    model: ModelProto,
    wrt: list[str],
    cotangent: tuple[int, ...],
    y: str = "y",
    dtype: int = TensorProto.DOUBLE,
    blocks: bool = False,
) -> tuple[ModelProto, dict[str, str]]:
    """The model with J^T u appended for an input `u` of the shape `cotangent`, and the gradients' names."""
    graph = Graph(model)
    op = Builder(graph, dtype, blocks=blocks)
    grads = differentiate(graph, op, y, wrt, cotangent="u")
    assert all(grads.values()), f"no gradient reaches {[k for k, v in grads.items() if v is None]}"
    names = {k: str(v) for k, v in grads.items()}
    outputs = [tensor_info(v, dtype, graph.shape(k)) for k, v in names.items()]
    rewritten = op.model(outputs, [tensor_info("u", dtype, cotangent)])
    onnx.checker.check_model(rewritten, full_check=True)
    return rewritten, names


def directional(model: ModelProto, feeds: Feeds, v: Feeds, y: str, step: float, new_ops: Any = ()) -> np.ndarray:
    """J v by Richardson-extrapolated central differences: exact for polynomials of degree 4, else O(step^4)."""

    def difference(h: float) -> np.ndarray:
        ahead, behind = ({k: x + s * v[k] if k in v else x for k, x in feeds.items()} for s in (h, -h))
        return (run(model, ahead, [y], new_ops)[0] - run(model, behind, [y], new_ops)[0]) / (2.0 * h)

    return (4.0 * difference(step / 2.0) - difference(step)) / 3.0


def check_vjp(
    model: ModelProto,
    feeds: Feeds,
    wrt: list[str],
    y: str = "y",
    tolerance: float = 1e-8,
    step: float = 1e-3,
    new_ops: tuple[type[OpRun], ...] = (),
    blocks: bool = False,
) -> None:
    """<u, J v> by differences of the original model equals <J^T u, v> of the rewritten one, for every input alone."""
    rng = np.random.default_rng(11)
    (primal,) = run(model, feeds, [y], new_ops)
    assert primal.dtype == np.float64
    u = rng.normal(size=primal.shape)
    rewritten, names = gradients(model, wrt, primal.shape, y, blocks=blocks)
    same, *cotangents = run(rewritten, {**feeds, "u": u}, [y, *names.values()], new_ops)
    np.testing.assert_array_equal(same, primal)
    for name, dx in zip(names, cotangents, strict=True):
        assert dx.shape == feeds[name].shape, f"cotangent of {name}: {dx.shape}, primal {feeds[name].shape}"
        assert dx.dtype == np.float64
        v = rng.uniform(-1.0, 1.0, size=dx.shape)
        expected = (u * directional(model, feeds, {name: v}, y, step, new_ops)).sum()
        scale = np.abs(dx * v).sum()
        assert scale > 0.0, f"the cotangent of {name} is zero"
        assert abs((dx * v).sum() - expected) <= tolerance * scale, f"{name}: {(dx * v).sum()} but J v says {expected}"


def check_case(case: Case, opset: int) -> None:
    """`check_vjp` for one case at one opset."""
    model = case.model(opset)
    step, tolerance = (1.0, 1e-12) if case.polynomial else (1e-3, 1e-8)
    options = {"tolerance": tolerance, "step": step, "new_ops": case.new_ops, "blocks": case.blocks}
    check_vjp(model, case.values(model), wrt_of(case, model), **options)


def wrt_of(case: Case, model: ModelProto) -> list[str]:
    """The inputs to differentiate for: every float input, unless the case says otherwise."""
    floats = [i.name for i in model.graph.input if i.type.tensor_type.elem_type in FLOATS]
    return list(case.wrt if case.wrt is not None else floats)


def gradient_at(inputs: str, body: str, runtime: bool = False, opset: int = 20, **feeds: Any) -> list[list[Any]]:
    """d(sum y) / d(every float input) at the given values as nested lists, for comparison with values by hand."""
    case = Case("", inputs, body, feeds={k: np.asarray(v) for k, v in feeds.items()})
    model = case.model(opset, "float" if runtime else "double")
    wrt, given = wrt_of(case, model), case.values(model)
    graph = Graph(model)
    op = Builder(graph, TensorProto.FLOAT if runtime else TensorProto.DOUBLE)
    names = [str(g) for g in differentiate(graph, op, "y", wrt).values()]
    rewritten = op.model([tensor_info(g, op.dtype, graph.shape(k)) for g, k in zip(names, wrt, strict=True)])
    results = session(rewritten).run(names, given) if runtime else run(rewritten, given, names)
    return [r.tolist() for r in results]


def session(model: ModelProto) -> Any:
    """ONNX Runtime on one core."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def check_runtime(case: Case, opset: int, dtype: str = "float", tolerance: float = 1e-4) -> None:
    """The rewritten float32 (or float16) model in ONNX Runtime agrees with its float64 twin in `onnx.reference`."""
    double, single = case.model(opset), case.model(opset, dtype)
    wrt, feeds = wrt_of(case, double), case.values(double)
    (primal,) = run(double, feeds, ["y"], case.new_ops)
    u = np.random.default_rng(11).normal(size=primal.shape).astype(np.float32).astype(np.float64)
    exact_model, exact_names = gradients(double, wrt, primal.shape, blocks=case.blocks)
    model, names = gradients(single, wrt, primal.shape, dtype=TensorProto.FLOAT, blocks=case.blocks)
    runtime = session(model)
    declared = {i.name for i in runtime.get_inputs()}
    given = {k: v for k, v in {**case.values(single), "u": u.astype(np.float32)}.items() if k in declared}
    exact = run(exact_model, {**feeds, "u": u}, list(exact_names.values()), case.new_ops)
    for name, have, want in zip(names, runtime.run(list(names.values()), given), exact, strict=True):
        assert have.dtype == np.float32
        assert have.shape == want.shape
        error = np.abs(have - want).max() / np.abs(want).max()
        assert error <= tolerance, f"{name}: relative error {error}"
