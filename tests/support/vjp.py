"""The oracle of the derivative rules: central differences of the original model in float64 by `onnx.reference`.

A `Case` is one small model in ONNX text, written with `double`; the same text with `float` or `float16` is the model
that a runtime gets. `tests/rules/test_rules.py` runs the `CASES` tables of the modules beside it.
"""

import math
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


class Erf(OpRun):
    """`onnx.reference` computes Erf in float32."""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """`onnx.reference` runs the function body, whose Erf is float32."""

    def _run(self, x: np.ndarray, approximate: str = "none") -> tuple[np.ndarray]:
        if approximate == "none":
            return (x * np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), otypes=[x.dtype])(x),)
        return (0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),)


def windows(x: np.ndarray, a: dict[str, Any]) -> np.ndarray:
    """(N, C, *output, taps): the elements of each pooling window in row-major order, nan for padding."""
    n, size, kernel = x.ndim - 2, x.shape[2:], a["kernel_shape"]
    s, d = a["strides"] or [1] * n, a["dilations"] or [1] * n
    reach = [d[i] * (kernel[i] - 1) for i in range(n)]
    begin, end = ([0] * n, [0] * n) if not a["pads"] else (a["pads"][:n], a["pads"][n:])
    if a["auto_pad"] in ("SAME_UPPER", "SAME_LOWER"):
        out = [-(-size[i] // s[i]) for i in range(n)]
        total = [max((out[i] - 1) * s[i] + reach[i] + 1 - size[i], 0) for i in range(n)]
        begin = [t // 2 if a["auto_pad"] == "SAME_UPPER" else -(-t // 2) for t in total]
    else:
        span = [size[i] + begin[i] + end[i] - reach[i] - 1 for i in range(n)]
        out = [(-(-span[i] // s[i]) if a["ceil_mode"] else span[i] // s[i]) + 1 for i in range(n)]
        out = [out[i] - ((out[i] - 1) * s[i] >= size[i] + begin[i]) for i in range(n)]
    far = [max(0, (out[i] - 1) * s[i] + reach[i] + 1 - size[i] - begin[i]) for i in range(n)]
    padded = np.pad(x, [(0, 0), (0, 0), *zip(begin, far, strict=True)], constant_values=np.nan)
    taps = [
        padded[(..., *(slice(t * d[i], t * d[i] + (out[i] - 1) * s[i] + 1, s[i]) for i, t in enumerate(tap)))]
        for tap in np.ndindex(*kernel)
    ]
    return np.stack(taps, -1)


class MaxPool(OpRun):
    """The Indices of `onnx.reference` are wrong for stride 1, its SAME_LOWER is SAME_UPPER; this is the definition."""

    def _run(
        self, x, auto_pad=None, ceil_mode=0, dilations=None, kernel_shape=None, pads=None, storage_order=0, strides=None
    ):
        attributes = {k: v for k, v in locals().items() if k not in ("self", "x")}
        y = windows(x, attributes)
        positions = windows(np.arange(x.size, dtype=np.float64).reshape(x.shape), attributes)
        indices = np.take_along_axis(positions, np.nanargmax(y, -1)[..., None], -1)[..., 0].astype(np.int64)
        return (np.nanmax(y, -1), indices)[: len(self.onnx_node.output)]


class LpPool(OpRun):
    """`onnx.reference` fails for `ceil_mode`."""

    def _run(self, x, auto_pad=None, ceil_mode=0, dilations=None, kernel_shape=None, p=2, pads=None, strides=None):
        attributes = {k: v for k, v in locals().items() if k not in ("self", "x", "p")}
        return (np.nansum(np.abs(windows(x, attributes)) ** p, -1) ** (1.0 / p),)


class GlobalLpPool(OpRun):
    """`onnx.reference` has none."""

    def _run(self, x, p=2):
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1.0 / p),)


class ConvTranspose(OpRun):
    """`onnx.reference` fails for groups of unequal channel numbers and for `output_shape`; this is the definition."""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=1, kernel_shape=None,
             output_padding=None, output_shape=None, pads=None, strides=None):  # fmt: skip
        n = x.ndim - 2
        s, d, extra = strides or [1] * n, dilations or [1] * n, output_padding or [0] * n
        kernel, size = w.shape[2:], x.shape[2:]
        full = [s[i] * (size[i] - 1) + extra[i] + d[i] * (kernel[i] - 1) + 1 for i in range(n)]
        begin, end = (pads or [0] * 2 * n)[:n], (pads or [0] * 2 * n)[n:]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER") or output_shape:
            wanted = output_shape or [size[i] * s[i] for i in range(n)]
            total = [f - v for f, v in zip(full, wanted, strict=True)]
            half = [t // 2 for t in total]
            rest = [t - h for t, h in zip(total, half, strict=True)]
            begin, end = (half, rest) if auto_pad == "SAME_UPPER" else (rest, half)
        y = np.zeros((x.shape[0], group, w.shape[1], *full), x.dtype)
        x, w = x.reshape(x.shape[0], group, -1, *size), w.reshape(group, -1, *w.shape[1:])
        for tap in np.ndindex(*kernel):
            at = [slice(t * d[i], t * d[i] + s[i] * (size[i] - 1) + 1, s[i]) for i, t in enumerate(tap)]
            y[(..., *at)] += np.einsum("ngc...,gcm->ngm...", x, w[(slice(None),) * 3 + tap])
        y = y.reshape(y.shape[0], -1, *full)[
            (..., *(slice(p, f - e) for p, f, e in zip(begin, full, end, strict=True)))
        ]
        return (y if b is None else y + b.reshape(-1, *[1] * n),)


class GlobalMaxPool(OpRun):
    """`onnx.reference` reduces the wrong axes unless x has four."""

    def _run(self, x):
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class LRN(OpRun):
    """`onnx.reference` leaves out the last neighbour and wants four axes."""

    def _run(self, x, alpha=None, beta=None, bias=None, size=None):
        squares = np.zeros_like(x)
        for c in range(x.shape[1]):
            low, high = c - (size - 1) // 2, c + size // 2
            squares[:, c] = (x[:, max(low, 0) : high + 1] ** 2).sum(axis=1)
        return (x / (bias + alpha / size * squares) ** beta,)


class Pad(OpRun):
    """`onnx.reference` refuses negative pads."""

    def _run(self, x, pads, value=None, axes=None, mode="constant"):
        along = range(x.ndim) if axes is None else [int(a) for a in axes]
        for axis, (before, after) in zip(along, np.reshape(pads, (2, -1)).T, strict=True):
            kept = [slice(None)] * x.ndim
            kept[axis] = slice(max(-before, 0), x.shape[axis] + min(after, 0))
            width = [(0, 0)] * x.ndim
            width[axis] = (max(before, 0), max(after, 0))
            filled = {"constant_values": 0 if value is None else value} if mode == "constant" else {}
            x = np.pad(x[tuple(kept)], width, mode=mode, **filled)
        return (x,)


DEFINITIONS = (ConvTranspose, Erf, Gelu, GlobalLpPool, GlobalMaxPool, LRN, LpPool, MaxPool, Pad)


@dataclass(frozen=True)
class Case:
    """One model `(inputs) => (output) { body }`, and where its derivative is compared.

    output: inferred where it is left out, which operators of other domains do not allow.
    kind: the operator under test, as keyed in RULES. domain: values of float inputs, all distinct and equally spaced;
    a mapping gives it per input. feeds: values of the other inputs. fixed: inputs that become initializers.
    polynomial: of degree 4 at most along any line, so that differences with step 1 are exact. since: first opset with
    this form. expands: the operator has no rule of its own, its function body is differentiated.
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
    model: ModelProto, wrt: list[str], cotangent: tuple[int, ...], y: str = "y", dtype: int = TensorProto.DOUBLE
) -> tuple[ModelProto, dict[str, str]]:
    """The model with J^T u appended for an input `u` of the shape `cotangent`, and the gradients' names."""
    graph = Graph(model)
    op = Builder(graph, dtype)
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
) -> None:
    """<u, J v> by differences of the original model equals <J^T u, v> of the rewritten one, for every input alone."""
    rng = np.random.default_rng(11)
    (primal,) = run(model, feeds, [y], new_ops)
    assert primal.dtype == np.float64
    u = rng.normal(size=primal.shape)
    rewritten, names = gradients(model, wrt, primal.shape, y)
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
    check_vjp(model, case.values(model), wrt_of(case, model), tolerance=tolerance, step=step, new_ops=case.new_ops)


def wrt_of(case: Case, model: ModelProto) -> list[str]:
    """The inputs to differentiate for: every float input, unless the case says otherwise."""
    floats = [i.name for i in model.graph.input if i.type.tensor_type.elem_type in FLOATS]
    return list(case.wrt if case.wrt is not None else floats)


def gradient_at(inputs: str, body: str, runtime: bool = False, **feeds: Any) -> list[list[Any]]:
    """d(sum y) / d(every float input) at the given values as nested lists, for comparison with values by hand."""
    case = Case("", inputs, body, feeds={k: np.asarray(v) for k, v in feeds.items()})
    model = case.model(20, "float" if runtime else "double")
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
    exact_model, exact_names = gradients(double, wrt, primal.shape)
    model, names = gradients(single, wrt, primal.shape, dtype=TensorProto.FLOAT)
    runtime = session(model)
    declared = {i.name for i in runtime.get_inputs()}
    given = {k: v for k, v in {**case.values(single), "u": u.astype(np.float32)}.items() if k in declared}
    exact = run(exact_model, {**feeds, "u": u}, list(exact_names.values()), case.new_ops)
    for name, have, want in zip(names, runtime.run(list(names.values()), given), exact, strict=True):
        assert have.dtype == np.float32
        assert have.shape == want.shape
        error = np.abs(have - want).max() / np.abs(want).max()
        assert error <= tolerance, f"{name}: relative error {error}"
