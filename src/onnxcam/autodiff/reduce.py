"""Rules of reductions. Axes come as an input or an attribute, whichever the operator's version has."""

import math

import numpy as np

from onnxcam.autodiff.elementwise import mask
from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.graph.build import Builder


def kept(op: Builder, node: Primal, value: str) -> str:
    """`value`, shaped like the node's output, with the reduced axes back as 1, to broadcast against the input."""
    if node.attrs["keepdims"]:
        return value
    if node.has(1):
        return str(op.Unsqueeze(value, node.inputs[1]))
    axes = node.attrs.get("axes")
    return str(op.Unsqueeze(value, list(axes))) if axes else value


def copies(node: Primal) -> bool:
    """No axes and `noop_with_empty_axes`: the operator reduces nothing."""
    axes = node.constant(1) if node.has(1) else np.asarray(node.attrs.get("axes", []))
    return bool(node.attrs.get("noop_with_empty_axes")) and axes is not None and axes.size == 0


@vjp("ReduceSum", wrt=(0,))
def reduce_sum(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy, spread over the reduced axes."""
    return (dy if copies(node) else node.expanded(kept(op, node, dy)),)


@vjp("ReduceMean", wrt=(0,))
def reduce_mean(op: Builder, node: Primal, dy: str) -> Cotangents:
    """dx = dy / (number of elements), spread over the reduced axes."""
    if copies(node):
        return (dy,)
    axes, rank = (node.constant(1) if node.has(1) else np.asarray(node.attrs.get("axes", []))), node.rank()
    known = () if axes is None else (int(a) % rank for a in axes.ravel())
    return (node.expanded(op.Div(kept(op, node, dy), _count(op, node)), axes=known),)


def _count(op: Builder, node: Primal) -> str:
    axes, shape = (node.constant(1) if node.has(1) else np.asarray(node.attrs.get("axes", []))), node.shape(0)
    if axes is not None and shape is not None:
        dims = [shape[int(a)] for a in axes.ravel()] if axes.size else list(shape)
        if all(isinstance(d, int) for d in dims):
            return op.floats(math.prod(int(d) for d in dims if isinstance(d, int)))
    return str(op.Cast(op.Div(op.Size(node.inputs[0]), op.Size(node.outputs[0])), to=op.dtype))


@vjp("ReduceMax", "ReduceMin", wrt=(0,))
def reduce_extremum(op: Builder, node: Primal, dy: str) -> Cotangents:
    """The extremum takes dy; ties share it equally, as PyTorch's `amax`."""
    if copies(node):
        return (dy,)
    wins = mask(op, op.Equal(node.inputs[0], kept(op, node, node.outputs[0])))
    ties = op.ReduceSum(wins, node.inputs[1] if node.has(1) else node.attrs.get("axes"), keepdims=1)
    return (op.Mul(wins, op.Div(kept(op, node, dy), ties)),)
