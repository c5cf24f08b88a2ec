"""If nodes whose condition is known when the model is loaded: the branch that runs takes the node's place."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxcam.graph.index import Dim, Graph, is_small, stub, subgraphs


def without_known_branches(
    lean: ModelProto, weights: Mapping[str, TensorProto], shapes: Mapping[str, Sequence[Dim]] | None
) -> tuple[ModelProto, dict[str, TensorProto], int]:
    """`lean` and its weights with such Ifs replaced, those inside a branch too, and how many there were.

    A condition is known where it is a constant, or follows from the sizes that `shapes` binds. Values of a branch keep
    their names, unless another scope has them too: those are named after the node as well.
    """
    large, count = dict(weights), 0
    while any(_is_if(node) for node in lean.graph.node):
        graph = Graph(lean, weights=large, shapes=shapes)
        conditions = {n.outputs: graph.constant(n.inputs[0]) for n in graph.nodes if _is_if(n.proto)}
        known = {outputs: bool(c.item()) for outputs, c in conditions.items() if c is not None and c.size == 1}
        if not known:
            break
        count += len(known)
        lean = _replaced(lean, known, large)
    return lean, large, count


def _is_if(node: NodeProto) -> bool:
    return node.op_type == "If" and node.domain in ("", "ai.onnx")


def _replaced(lean: ModelProto, known: Mapping[tuple[str, ...], bool], large: dict[str, TensorProto]) -> ModelProto:
    """The branches of the known Ifs in their places; their large constants become stubs and are put into `large`."""
    made = ModelProto()
    made.CopyFrom(lean)
    values, names = Counter(_defined(made.graph, deep=True)), {node.name for node in made.graph.node}
    nodes: list[NodeProto] = []
    for node in made.graph.node:
        if tuple(node.output) not in known:
            nodes.append(node)
            continue
        runs = "then_branch" if known[tuple(node.output)] else "else_branch"
        branch = next(a.g for a in node.attribute if a.name == runs)
        nodes += _opened(node, branch, values, names)
        large |= {t.name: t for t in branch.initializer if not is_small(t)}
        made.graph.initializer.extend(t if is_small(t) else stub(t) for t in branch.initializer)
        made.graph.value_info.extend(branch.value_info)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def _opened(node: NodeProto, branch: GraphProto, values: Counter[str], names: set[str]) -> list[NodeProto]:
    """A branch's nodes, and its constants and declared types in place, by names that are new outside it."""
    prefix = node.name or next(o for o in node.output if o)
    renamed = {value: _free(f"{prefix}/{value}", values) for value in _defined(branch) if values[value] > 1}
    values.update(renamed.values())
    made = {o for inner in branch.node for o in inner.output}
    copies = []
    for outer, result in zip(node.output, branch.output, strict=True):
        if result.name in made and outer and renamed.get(result.name) not in node.output:
            renamed[result.name] = outer
        elif outer:  # a constant, or one value for two outputs
            copies.append((result.name, outer))
    for inner in branch.node:
        _rename(inner, renamed)
        while inner.name and inner.name in names:
            inner.name = f"{prefix}/{inner.name}"
        names.add(inner.name)
    for declared in (*branch.initializer, *branch.value_info):
        declared.name = renamed.get(declared.name, declared.name)
    return [*branch.node, *(helper.make_node("Identity", [renamed.get(v, v)], [o], name=o) for v, o in copies)]


def _defined(graph: GraphProto, deep: bool = False) -> Iterator[str]:
    """The names that a graph gives to values; deep: in its subgraphs too, once per scope."""
    yield from dict.fromkeys((*(i.name for i in graph.input), *(t.name for t in graph.initializer)))
    for node in graph.node:
        yield from filter(None, node.output)
        if deep:
            for subgraph in (g for a in node.attribute for g in subgraphs(a)):
                yield from _defined(subgraph, deep=True)


def _free(name: str, taken: Counter[str]) -> str:
    while taken[name]:
        name += "_"
    return name


def _rename(node: NodeProto, renamed: Mapping[str, str]) -> None:
    """Rename what a node reads and makes, also what its subgraphs capture."""
    for field in (node.input, node.output):
        field[:] = [renamed.get(name, name) for name in field]
    for graph in (g for a in node.attribute for g in subgraphs(a)):
        own = set(_defined(graph))
        captured = {old: new for old, new in renamed.items() if old not in own}
        for inner in graph.node:
            _rename(inner, captured)
        for result in graph.output:
            result.name = captured.get(result.name, result.name)
