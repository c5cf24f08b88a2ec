"""Rules of operators that resample or rearrange space."""

import math

from onnx import TensorProto

from onnxcam.autodiff.compose import composed
from onnxcam.autodiff.conv import Window
from onnxcam.autodiff.engine import Primal
from onnxcam.autodiff.registry import Cotangents, vjp
from onnxcam.graph.build import Builder

_RESIZE = ("antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "mode", "nearest_mode")


@vjp("Resize", wrt=(0,))
def resize(op: Builder, node: Primal, dy: str) -> Cotangents:
    """Resampling is linear and separable: along each axis y = x R, so dx = dy R^T.

    R (size, new size) is the same operator applied to an identity matrix, in the graph, so that it rounds and clips
    coordinates as the runtime's own forward pass does.
    """
    rank = node.rank(0)
    axes = [a % rank for a in node.attrs.get("axes") or range(rank)]
    sizes, new = node.static(0, axes), _static_output(node, axes)
    scales = _scales(node, sizes, new)
    roi = node.constant(1) if node.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize" else None
    if node.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize" and roi is None:
        raise node.unsupported("its region of interest is not constant")
    attrs = {name: node.attrs[name] for name in _RESIZE if name in node.attrs}
    dims = list(node.output_shape() or ())
    for i, axis in enumerate(axes):
        if scales is None and sizes[i] == new[i] and roi is None or scales is not None and scales[i] == 1 and roi is None:
            continue
        square = op.ConstantOfShape([sizes[i], sizes[i]], value=op.scalar(0.0))
        identity = op.Reshape(op.EyeLike(square, dtype=op.dtype), [1, 1, sizes[i], sizes[i]])
        window = None if roi is None else op.constant(_last_axis(roi, i, len(axes)))
        factors = None if scales is None else op.constant(_float32([1, 1, 1, scales[i]]))
        target = [1, 1, sizes[i], new[i]] if scales is None else None
        r = op.Reshape(op.Resize(identity, window, factors, target, **attrs), [sizes[i], new[i]])
        if axis == rank - 1:
            dy = op.MatMul(dy, op.Transpose(r, perm=[1, 0]))
        else:
            behind = dims[axis + 1 :]
            if not all(isinstance(d, int) for d in behind):
                raise node.unsupported(f"it needs fixed sizes behind axis {axis}, and its output is {tuple(dims)}")
            after = math.prod(int(d) for d in behind if isinstance(d, int))
            dy = op.MatMul(r, op.Reshape(dy, [-1, new[i], after]))
            dims[axis] = sizes[i]
            before = math.prod(dims[:axis]) if all(isinstance(d, int) for d in dims[:axis]) else None
            lead = dims[:axis] if before is not None else [-1, *dims[1:axis]] if axis else []
            dy = op.Reshape(dy, [*(d if isinstance(d, int) else 0 for d in lead), *dims[axis:]])
        dims[axis] = sizes[i]
    return (node.reshaped(dy),)
