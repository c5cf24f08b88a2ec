import ast
import re
from pathlib import Path

from onnxcam import _core, errors

STUB = Path(errors.__file__).with_name("_core.pyi")


def stub_functions() -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.FunctionDef)}


def plain_type(annotation: str) -> str:
    """The stub's name of a type as pybind11 writes it in the first line of a docstring."""
    for pybind, stub in [
        ("typing.SupportsFloat | typing.SupportsIndex", "float"),
        ("typing.SupportsInt | typing.SupportsIndex", "int"),
        ("numpy.typing.NDArray[numpy.", "NDArray[np."),
    ]:
        annotation = annotation.replace(pybind, stub)
    return annotation


def test_the_stub_lists_exactly_the_functions_of_the_module():
    assert set(stub_functions()) == {name for name in dir(_core) if callable(getattr(_core, name))}


def test_the_stub_has_the_parameters_defaults_and_results_of_the_module():
    for name, function in stub_functions().items():
        signature = ast.parse("def " + getattr(_core, name).__doc__.splitlines()[0] + ": ...").body[0]
        # An array argument is any ndarray to pybind11, which leaves the dtype to the check in the binding.
        expected = re.sub(r"NDArray\[np\.\w+\](?=.*->)", "numpy.ndarray", ast.unparse(function))
        assert plain_type(ast.unparse(signature)).replace("\n    ...", "") == expected.replace("\n    ...", "")
