"""The shape of the code: which way imports point, who prints, what is documented."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import onnxcam

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "onnxcam"
MODULES = {
    ".".join(("onnxcam", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def imports(name: str) -> set[str]:
    """Absolute names of the modules that a module imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            assert node.module is not None
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found.update(name if name in MODULES or name == "onnxcam._core" else node.module for name in names)
    return found


# From the ground up. A module may import those of its own line and of the lines before.
LAYERS = [
    ["errors", "_core", "profiling", "jsontext", "npy"],
    ["picture", "output", "runtime", "pipeline"],
    ["preprocess"],
    ["render", "saliency", "sheet"],
    ["graph"],
    ["autodiff"],
    ["targets", "finish"],
    ["methods"],
    ["explained"],
    ["verify"],
    ["explanation", "check", "presets"],
    ["explainer"],
    ["demo", "metrics", "audit", "exported", "comparison", "preview", "strip"],
    ["report", "web", "detection", "ray"],
    ["cli", "_console"],
]
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}


def part(module: str) -> str:
    """The file or folder right below the package that a module belongs to."""
    return module.split(".")[1]


@pytest.mark.parametrize("name", [m for m in MODULES if m != "onnxcam"])
def test_imports_point_one_way(name: str) -> None:
    assert part(name) in RANK, f"{name}: give it a line in LAYERS"
    for target in imports(name):
        if target.startswith("onnxcam."):
            assert part(target) == part(name) or RANK[part(target)] <= RANK[part(name)], f"{name} imports {target}"


def test_no_module_imports_the_package_itself() -> None:
    """`from onnxcam import X` inside the package goes through the lazy names, round in circles."""
    assert [m for m in MODULES if "onnxcam" in imports(m)] == []


@pytest.mark.parametrize("leaf", ["onnxcam.runtime", "onnxcam.output", "onnxcam.picture"])
def test_leaves_know_nothing_of_the_package_but_its_errors_and_its_clock(leaf: str) -> None:
    assert {t for t in imports(leaf) if t.startswith("onnxcam")} <= {"onnxcam.errors", "onnxcam.profiling"}


def test_preprocessing_knows_pictures_errors_and_the_clock_only() -> None:
    assert {t for t in imports("onnxcam.preprocess") if t.startswith("onnxcam")} == {
        "onnxcam.errors",
        "onnxcam.jsontext",
        "onnxcam.picture",
        "onnxcam.profiling",
    }


def test_graph_and_autodiff_know_no_runtime_and_no_pictures() -> None:
    foreign = {"onnxruntime", "PIL", "rich", "onnxcam._core"}
    for name in MODULES:
        if part(name + ".") in ("graph", "autodiff"):
            assert not foreign & {t.partition(".")[0] if not t.startswith("onnxcam") else t for t in imports(name)}, (
                name
            )


def test_only_the_runtime_module_loads_sessions_of_onnxruntime() -> None:
    users = {m for m in MODULES if any(t.partition(".")[0] == "onnxruntime" for t in imports(m))}
    assert users <= {"onnxcam.runtime", "onnxcam.explainer"}  # the explainer records its version


def test_only_the_console_imports_rich() -> None:
    assert {m for m in MODULES if any(t.partition(".")[0] == "rich" for t in imports(m))} == {"onnxcam._console"}


@pytest.mark.parametrize("banned", ["torch", "tensorflow", "cv2", "matplotlib", "scipy", "onnxscript", "pickle"])
def test_the_product_does_without(banned: str) -> None:
    assert [m for m in MODULES if any(t.partition(".")[0] == banned for t in imports(m))] == []


def calls(tree: ast.AST, name: str) -> list[int]:
    return [
        n.lineno
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == name
    ]


@pytest.mark.parametrize("name", MODULES)
def test_libraries_do_not_print(name: str) -> None:
    assert calls(TREES[name], "print") == []
    streams = {
        n.attr
        for n in ast.walk(TREES[name])
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "sys"
    } & {"stdout", "stderr"}
    assert not streams or name in ("onnxcam.cli", "onnxcam._console")


# What raises anything at all: the runtime's own errors, the checker's and converter's, the reference's, and decoders'.
FOREIGN_ERRORS = {"onnxcam.runtime", "onnxcam.graph.load", "onnxcam.graph.index", "onnxcam.picture"}


def broad(tree: ast.AST) -> Iterator[ast.ExceptHandler]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            if any(k is None or (isinstance(k, ast.Name) and k.id in ("Exception", "BaseException")) for k in kinds):
                yield node


def reraises(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise)


# Asks a second opinion of `onnx.reference`, which raises whatever its operators raise; the answer says whose it is.
SWALLOWS = {"onnxcam.verify"}


@pytest.mark.parametrize("name", MODULES)
def test_nothing_is_caught_wholesale_but_errors_of_foreign_code_and_those_are_raised_again(name: str) -> None:
    for handler in broad(TREES[name]) if name not in SWALLOWS else ():
        where = f"{name}, line {handler.lineno}"
        assert reraises(handler), f"{where}: swallows every error"
        bare = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
        assert bare or name in FOREIGN_ERRORS, f"{where}: catches every error"


METHODS = {
    node.name: {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
    for tree in TREES.values()
    for node in tree.body
    if isinstance(node, ast.ClassDef)
}


def public(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and the public methods of those classes but overriding ones."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                inherited = {name for base in node.bases for name in METHODS.get(getattr(base, "id", ""), ())}
                for member in node.body:
                    if isinstance(member, ast.FunctionDef) and member.name not in inherited and member.name[0] != "_":
                        if any(isinstance(d, ast.Name) and d.id == "overload" for d in member.decorator_list):
                            continue
                        yield f"{node.name}.{member.name}", member


def obvious(node: ast.AST) -> bool:
    """At most two statements long, as a property that returns a field is."""
    return isinstance(node, ast.FunctionDef) and len(node.body) <= 2 and isinstance(node.body[-1], ast.Return)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_every_public_function_and_class_is_documented(name: str) -> None:
    tree = TREES[name]
    if name != "onnxcam":
        assert ast.get_docstring(tree), f"{name} has no docstring"
    missing = [n for n, node in public(tree) if not ast.get_docstring(node) and not obvious(node)]  # type: ignore[arg-type]
    assert missing == []


@pytest.mark.parametrize("name", MODULES)
def test_no_module_has_a_name_that_says_nothing(name: str) -> None:
    assert not {"utils", "helpers", "common", "misc"} & set(name.split("."))


def test_no_module_hides_a_public_name() -> None:
    """Importing `onnxcam.x` sets the attribute `x` of the package: a function `onnxcam.x` would be gone."""
    assert {m.removeprefix("onnxcam.") for m in MODULES} & set(onnxcam.__all__) == set()


def fresh(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return result.stdout.strip()


def test_importing_the_package_is_lazy() -> None:
    heavy = "{'numpy', 'onnx', 'PIL', 'rich', 'onnxruntime', 'google'}"
    assert fresh(f"import sys, onnxcam; dir(onnxcam); print(sorted({heavy} & sys.modules.keys()))") == "[]"


def test_nothing_but_running_a_model_needs_onnxruntime() -> None:
    code = (
        "import sys, onnxcam\n"
        "sys.modules['onnxruntime'] = None\n"
        "for name in onnxcam.__all__: getattr(onnxcam, name)\n"
        "from onnxcam.errors import OnnxCamError\n"
        "from onnxcam.runtime import onnxruntime\n"
        "try:\n    onnxruntime()\nexcept OnnxCamError as e:\n    print(e.exit_code, e.message, '|', e.hint)\n"
    )
    said = fresh(code)
    assert said.startswith("2 ONNX Runtime is not installed | ")
    assert "pip install onnxcam[cpu]" in said and "onnxcam[gpu]" in said


def test_every_public_name_is_there_and_an_unknown_one_is_not() -> None:
    assert all(getattr(onnxcam, name).__name__ == name for name in onnxcam.__all__)
    assert set(dir(onnxcam)) >= {*onnxcam.__all__, "__version__"}
    with pytest.raises(AttributeError, match="module 'onnxcam' has no attribute 'nothing'"):
        _ = onnxcam.nothing


def test_the_version_is_that_of_pyproject() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert onnxcam.__version__ == tomllib.load(file)["project"]["version"]


def test_every_error_has_a_documented_exit_code_of_its_kind() -> None:
    from onnxcam import errors
    from onnxcam.cli import EPILOG

    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.OnnxCamError)]
    assert {e.exit_code for e in kinds} == {1, 2, 3, 4, 5, 6}
    assert all(f"{e.exit_code} " in EPILOG for e in kinds)
    assert all(str(e("what", "do this")) == "what\n\nhint: do this" and str(e("what")) == "what" for e in kinds)
