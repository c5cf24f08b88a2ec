"""Rules of matrix products."""

from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.graph.build import Builder


@vjp("Gemm", broadcast=(2,))
def gemm(op: Builder, node: Primal, dy: str) -> Cotangents:
    """Y = alpha A' B' + beta C: dA' = alpha dY B'^T, dB' = alpha A'^T dY, dC = beta dY."""
    a, b = node.inputs[:2]
    alpha, t_a, t_b = node.attrs["alpha"], node.attrs["transA"], node.attrs["transB"]
    da = db = dc = None
    if node.live(0) and dy in op.one_hots and alpha == 1 and not t_a:
        da = rows_at(op, b, op.one_hots[dy], transposed=not t_b)
    elif node.live(0):
        da = op.Gemm(b, dy, alpha=alpha, transA=t_b, transB=1) if t_a else op.Gemm(dy, b, alpha=alpha, transB=1 - t_b)
    if node.live(1):
        db = op.Gemm(dy, a, alpha=alpha, transA=1, transB=t_a) if t_b else op.Gemm(a, dy, alpha=alpha, transA=1 - t_a)
    if node.live(2):
        dc = op.Mul(dy, float(node.attrs["beta"]))
    return (da, db, dc)[: len(node.inputs)]


@vjp("MatMul")
def matmul(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dA = dY B^T, dB = A^T dY, summed over broadcast batch axes; vectors are matrices of one row or column."""
    (a, b), (rank_a, rank_b) = node.inputs, (node.rank(0), node.rank(1))
    batch = (node.output_shape() or ())[: max(rank_a, rank_b, 2) - 2]
    if rank_a == 1:
        a, dy = op.Unsqueeze(a, [0]), op.Unsqueeze(dy, [-1 if rank_b == 1 else -2])
    if rank_b == 1:
        b, dy = op.Unsqueeze(b, [1]), op.Unsqueeze(dy, [-1])
    da = db = None
    if node.live(0) and dy in op.one_hots and rank_a == rank_b == 2:
        da = rows_at(op, b, op.one_hots[dy], transposed=True)
    elif node.live(0):
        da = op.MatMul(dy, _swapped(op, b, max(rank_b, 2)))
        if rank_a == 1:
            da = node.reshaped(op.ReduceSum(da, list(range(len(batch))), keepdims=0) if batch else da, 0)
        else:
            da = node.sum_to(da, (*batch, *(node.shape(0) or ())[-2:]), 0)
    if node.live(1):
        db = op.MatMul(_swapped(op, a, max(rank_a, 2)), dy)
        if rank_b == 1:
            db = node.reshaped(op.ReduceSum(db, list(range(len(batch))), keepdims=0) if batch else db, 1)
        else:
            db = node.sum_to(db, (*batch, *(node.shape(1) or ())[-2:]), 1)
    return (da, db)


def rows_at(op: Builder, matrix: str, index: str, transposed: bool = False) -> str:
    """One-hot rows times a matrix (C, ...), or (K, C) transposed: its rows at `index`, without reading the others.

    Of a quantised matrix only these are dequantised.
    """
    axis, made = int(transposed), op.graph.producer(matrix)
    if made is not None and made.kind == "DequantizeLinear" and not made.attrs.get("block_size"):
        q, *parameters = made.inputs
        scaled = made.attrs.get("axis", 1) % len(op.graph.shape(q) or (0, 0))
        if scaled == axis and op.graph.shape(parameters[0]) not in ((), (1,)):
            parameters = [op.Gather(p, index, axis=0) for p in parameters]
        rows = op.DequantizeLinear(op.Gather(q, index, axis=axis), *parameters, axis=scaled)
    else:
        rows = op.Gather(matrix, index, axis=axis)
    return str(op.Transpose(rows, perm=[1, 0]) if transposed else rows)


def _swapped(op: Builder, value: str, rank: int) -> str:
    return str(op.Transpose(value, perm=[*range(rank - 2), rank - 1, rank - 2]))
