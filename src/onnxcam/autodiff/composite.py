"""Rules of reductions and normalisations that are short formulas of others, and of Einsum."""

import string

from onnxcam.autodiff.compose import composed
from onnxcam.autodiff.elementwise import mask
from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.norm import normalized_cotangent
from onnxcam.autodiff.reduce import copies, kept
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.graph.build import Builder


@vjp("ReduceL1", wrt=(0,))
def reduce_l1(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy * sign(x)."""
    return (dy if copies(node) else op.Mul(kept(op, node, dy), op.Sign(node.inputs[0])),)


@vjp("ReduceL2", wrt=(0,))
def reduce_l2(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy * x / y; 0 where y is 0."""
    if copies(node):
        return (dy,)
    y = kept(op, node, node.outputs[0])
    return (op.Mul(node.inputs[0], op.Div(kept(op, node, dy), op.Add(y, mask(op, op.Equal(y, 0.0))))),)


@vjp("ReduceSumSquare", wrt=(0,))
def reduce_sum_square(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = 2 * dy * x."""
    return (dy if copies(node) else op.Mul(op.Mul(kept(op, node, dy), 2.0), node.inputs[0]),)


@vjp("ReduceLogSum", wrt=(0,))
def reduce_log_sum(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy / sum(x), where sum(x) = exp(y)."""
    if copies(node):
        return (dy,)
    return (node.expanded(kept(op, node, op.Mul(dy, op.Exp(op.Neg(node.outputs[0]))))),)


@vjp("ReduceLogSumExp", wrt=(0,))
def reduce_log_sum_exp(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy * exp(x - y)."""
    if copies(node):
        return (dy,)
    return (op.Mul(kept(op, node, dy), op.Exp(op.Sub(node.inputs[0], kept(op, node, node.outputs[0])))),)


@vjp("ReduceProd", wrt=(0,))
def reduce_prod(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy * product of the others, which is 0 where another one is 0."""
    if copies(node):
        return (dy,)
    axes = node.inputs[1] if node.has(1) else node.attrs.get("axes")
    zero = mask(op, op.Equal(node.inputs[0], 0.0))
    x = op.Add(node.inputs[0], zero)
    others = op.Div(op.ReduceProd(x, axes, keepdims=1), x)
    alone = mask(op, op.Equal(op.ReduceSum(zero, axes, keepdims=1), zero))
    return (op.Mul(kept(op, node, dy), op.Mul(others, alone)),)


@vjp("RMSNormalization")
def rms_normalization(op: Builder, node: Primal, dy: str) -> Cotangents:
    """The vjp of n = x / sqrt(mean(x^2) + epsilon) from `axis` on with g = dy * scale; dscale = sum(dy * n)."""
    rank, x = node.rank(0), node.inputs[0]
    axes, epsilon = [*range(node.attrs["axis"] % rank, rank)], float(node.attrs["epsilon"])
    dscale = None
    if node.live(1):
        n = op.Div(x, op.Sqrt(op.Add(op.ReduceMean(op.Mul(x, x), axes, keepdims=1), epsilon)))
        dscale = node.sum_to(op.Mul(dy, n), node.shape(0), 1)
    return (normalized_cotangent(op, x, op.Mul(dy, node.inputs[1]), axes, epsilon, centred=False), dscale)


@composed("GroupNormalization")
def group_normalization(b: Builder, node: Primal) -> str:
    """Instance normalisation of (N, groups, rest); scale and bias per channel (opset 21) or per group (opset 18)."""
    x, scale, bias = node.inputs
    groups, rank = node.attrs["num_groups"], node.rank(0)
    ones, zeros = b.floats([1.0] * groups), b.floats([0.0] * groups)
    n = b.InstanceNormalization(b.Reshape(x, [0, groups, -1]), ones, zeros, epsilon=float(node.attrs["epsilon"]))
    if node.node.opset < 21:
        return str(b.Reshape(b.Add(b.Mul(n, b.Unsqueeze(scale, [1])), b.Unsqueeze(bias, [1])), b.Shape(x)))
    n, axes = b.Reshape(n, b.Shape(x)), [*range(1, rank - 1)]
    return str(b.Add(b.Mul(n, b.Unsqueeze(scale, axes)), b.Unsqueeze(bias, axes)))


@composed("LpNormalization")
def lp_normalization(b: Builder, node: Primal) -> str:
    """x / (its p-norm along the axis); 0 where the norm is 0."""
    x, axis = node.inputs[0], [node.attrs["axis"]]
    norm = (b.ReduceL1 if node.attrs["p"] == 1 else b.ReduceL2)(x, axis, keepdims=1)
    return str(b.Div(x, b.Add(norm, mask(b, b.Equal(norm, 0.0)))))


@composed("MeanVarianceNormalization")
def mean_variance_normalization(b: Builder, node: Primal) -> str:
    """(x - mean) / (standard deviation + 1e-9); the operator's function body subtracts squares, this does not."""
    axes = list(node.attrs["axes"])
    x = b.Sub(node.inputs[0], b.ReduceMean(node.inputs[0], axes, keepdims=1))
    return str(b.Div(x, b.Add(b.Sqrt(b.ReduceMean(b.Mul(x, x), axes, keepdims=1)), 1e-9)))


@vjp("Einsum")
def einsum(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx_i is the einsum of dy and the other operands over x_i's indices, spread over those that only x_i has."""
    terms, out = _explicit(node)
    operands = list(node.inputs)
    count = len(terms)
    sizes: dict[str, int | str | None] = {}
    for i, term in enumerate(terms):
        for letter, size in zip(term, node.shape(i) or (), strict=True):
            sizes[letter] = size if sizes.get(letter, 1) == 1 else sizes[letter]
    spare = [c for c in string.ascii_letters if c not in "".join((*terms, out))]
    for i in range(count):  # an index repeated in one operand is a product with an identity matrix
        for letter in dict.fromkeys(terms[i]):
            while terms[i].count(letter) > 1:
                (n,) = node.static(i, [terms[i].index(letter)])
                twin = spare.pop()
                terms[i] = terms[i].replace(letter, twin, 1)
                sizes[twin] = n
                terms.append(twin + letter)
                operands.append(op.EyeLike(op.ConstantOfShape([n, n], value=op.scalar(0.0))))
    dxs: list[str | None] = []
    for i, term in enumerate(terms[:count]):
        if not node.live(i):
            dxs.append(None)
            continue
        others = [j for j in range(len(terms)) if j != i]
        known = set(out).union(*(terms[j] for j in others))
        reach = "".join(c for c in term if c in known)
        equation = ",".join([out, *(terms[j] for j in others)]) + "->" + reach
        dx = op.Einsum(dy, *(operands[j] for j in others), equation=equation)
        missing = [axis for axis, c in enumerate(term) if c not in known]
        if missing:
            dx = node.expanded(op.Unsqueeze(dx, missing), i)
        dxs.append(node.sum_to(dx, tuple(sizes[c] for c in term), i))
    return tuple(dxs)


def _explicit(node: Primal) -> tuple[list[str], str]:
    """One string of letters per operand and for the output: ellipses spelt out, the implicit output made explicit."""
    equation = node.attrs["equation"].replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    free = [c for c in string.ascii_uppercase + string.ascii_lowercase if c not in equation]
    ranks = [node.rank(i) - len(t.replace("...", "")) if "..." in t else 0 for i, t in enumerate(terms)]
    dots = "".join(free[: max(ranks, default=0)])
    terms = [t.replace("...", dots[len(dots) - r :]) for t, r in zip(terms, ranks, strict=True)]
    if not arrow:
        letters = "".join(terms)
        out = "..." + "".join(sorted(c for c in set(letters) - set(dots) if letters.count(c) == 1))
    return terms, out.replace("...", dots)
