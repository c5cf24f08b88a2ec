import numpy as np

from support.vjp import Case

IMAGE = "double[N,2,5,6] x"


def resize(target: str, attributes: str, x: str = "", **options: object) -> Case:
    kind, _, numbers = target.partition("=")
    x = x or (IMAGE if kind == "scales" or "axes" in attributes else IMAGE.replace("N", "2"))
    values = {"scales": f"Constant<value_floats={numbers}>", "sizes": f"Constant<value_ints={numbers}>"}[kind]
    inputs = "x, , t" if kind == "scales" else "x, , , t"
    return Case("Resize", x, f"t = {values}() y = Resize<{attributes}>({inputs})", polynomial=True, **options)


MODES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]

CASES = [
    *(
        resize(target, f'mode="{mode}", coordinate_transformation_mode="{coordinates}"',
               since=19 if coordinates == "half_pixel_symmetric" else 18,
               # ORT and onnx.reference define align_corners with a fractional size differently
               runtime=coordinates != "align_corners" or "scales" not in target)
        for mode in ("nearest", "linear", "cubic")
        for coordinates in MODES
        for target in ("sizes=[2,2,8,7]", "sizes=[2,2,3,4]", "scales=[1.0,1.0,1.7,0.6]")
    ),
    *(
        resize("sizes=[2,2,7,9]", f'mode="nearest", nearest_mode="{rounding}"')
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ),
    *(
        resize("sizes=[2,2,3,4]", f'mode="{mode}", antialias=1', runtime=False)
        for mode in ("linear", "cubic")
    ),
    resize("sizes=[2,2,3,9]", 'mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1'),
    resize("sizes=[8,7]", 'mode="linear", axes=[2,3]'),
    resize("sizes=[7,8]", 'mode="linear", axes=[3,2]', runtime=False),
    resize("sizes=[10,15]", 'mode="nearest", axes=[2,3], keep_aspect_ratio_policy="not_larger"'),
    resize("sizes=[8,12]", 'mode="nearest", axes=[2,3], keep_aspect_ratio_policy="not_smaller"', "double[1,2,4,4] x"),
    resize("sizes=[2,8,7,3]", 'mode="linear"', "double[2,5,6,3] x"),
    resize("sizes=[2,2,5]", 'mode="linear"', "double[2,2,3] x"),
    resize("sizes=[1,2,5,4,3]", 'mode="linear"', "double[1,2,3,4,2] x"),
    Case("Resize", "double[2,2,5,6] x, float[8] roi, int64[4] t",
         """y = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize",
                       extrapolation_value=3.0>(x, roi, , t)""",
         feeds={"roi": np.array([0, 0, 0.2, -0.2, 1, 1, 0.8, 1.1], np.float32), "t": np.array([2, 2, 4, 7])},
         fixed=("roi", "t"), wrt=("x",), polynomial=True, runtime=False),
    *(
        Case("DepthToSpace", "double[N,8,2,3] x", f'y = DepthToSpace<blocksize=2, mode="{mode}">(x)', polynomial=True)
        for mode in ("DCR", "CRD")
    ),
    Case("SpaceToDepth", "double[N,2,4,6] x", "y = SpaceToDepth<blocksize=2>(x)", polynomial=True),
    *(
        Case("Col2Im", f"double[2,{channels},{columns}] x",
             f"image = Constant<value_ints={image}>() block = Constant<value_ints={block}>() "
             f"y = Col2Im<{attributes}>(x, image, block)", polynomial=True)
        for channels, columns, image, block, attributes in [
            (12, 8, "[5,3]", "[2,2]", "strides=[1,1]"),
            (12, 9, "[5,5]", "[2,3]", "strides=[2,2], pads=[0,1,1,1]"),
            (6, 9, "[5,6]", "[2,3]", "dilations=[2,1], strides=[1,2], pads=[0,1,0,1]"),
            (8, 4, "[3,3,2]", "[2,2,2]", "strides=[1,1,1]"),
        ]
    ),
    *(
        Case("GridSample", "double[N,2,4,5] x, double[N,3,4,2] grid",
             f'y = GridSample<mode="{mode}", padding_mode="{padding}", align_corners={align}>(x, grid)',
             domain={"grid": (-1.13, 1.17)}, since=20, runtime=mode != "cubic",
             **({"wrt": ("x",)} if mode == "nearest" else {}))
        for mode in ("nearest", "linear", "cubic")
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
    ),
    *(
        Case("AffineGrid", f"double[2,{d},{d + 1}] theta",
             f"size = Constant<value_ints={size}>() y = AffineGrid<align_corners={align}>(theta, size)",
             polynomial=True, since=20, runtime=False)
        for d, size in ((2, "[2,3,4,5]"), (3, "[2,3,2,4,3]"))
        for align in (0, 1)
    ),
    *(
        Case("RoiAlign", "double[2,2,6,7] x, double[3,4] rois, int64[3] batch",
             f'y = RoiAlign<output_height=2, output_width=3, sampling_ratio={ratio}, spatial_scale=0.5,'
             f' coordinate_transformation_mode="{mode}">(x, rois, batch)',
             feeds={"rois": np.array([[0.6, 1.2, 9.0, 7.4], [3.0, 2.2, 13.4, 12.6], [4.0, 4.0, 4.9, 4.8]]),
                    "batch": np.array([0, 1, 1])}, wrt=("x",), polynomial=True)
        for ratio in (0, 1, 2)
        for mode in ("half_pixel", "output_half_pixel")
    ),
]  # fmt: skip
