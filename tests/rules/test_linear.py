from support.vjp import Case


def gemm(c: str, attributes: str, **options: object) -> Case:
    shapes = {"transA=1": "double[4,3] a", "transB=1": "double[5,4] b"}
    a = next((s for k, s in shapes.items() if k == "transA=1" and k in attributes), "double[3,4] a")
    b = next((s for k, s in shapes.items() if k == "transB=1" and k in attributes), "double[4,5] b")
    given = f"{a}, {b}" + (f", {c} c" if c else "")
    body = f"y = Gemm<alpha=0.75, beta=1.5{attributes}>(a, b{', c' if c else ''})"
    return Case("Gemm", given, body, polynomial=True, **options)


CASES = [
    *(gemm("double[3,5]", t) for t in ("", ", transA=1", ", transB=1", ", transA=1, transB=1")),
    *(
        gemm(c, ", transB=1")
        for c in ("", "double[5]", "double[3,1]", "double[1,5]", "double[1]", "double", "double[1,1]")
    ),
    gemm("double[5]", ", transB=1", fixed=("b", "c")),
    Case("Gemm", "double[N,4] a, double[4,5] b, double[N,5] c", "y = Gemm(a, b, c)", polynomial=True),
    *(
        Case("MatMul", f"double[{a}] a, double[{b}] b", "y = MatMul(a, b)", polynomial=True)
        for a, b in [
            ("4", "4"),
            ("4", "4,3"),
            ("5,4", "4"),
            ("5,4", "4,3"),
            ("2,5,4", "4,3"),
            ("5,4", "2,4,3"),
            ("2,5,4", "2,4,3"),
            ("2,5,4", "1,4,3"),
            ("1,5,4", "2,4,3"),
            ("3,1,5,4", "2,4,3"),
            ("4", "2,4,3"),
            ("2,5,4", "4"),
            ("4", "3,2,4,1"),
            ("3,2,1,4", "4"),
            ("N,5,4", "4,3"),
            ("N,5,4", "N,4,3"),
            ("N,5,4", "1,4,3"),
            ("N,H,C", "C,W"),
            ("N,H,C", "1,C,W"),
        ]
    ),
]
