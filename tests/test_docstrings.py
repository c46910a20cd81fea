"""Every public name says what it is: a sentence, shapes, units, errors and sources. Read from the syntax tree; nothing is imported."""

from __future__ import annotations

import ast
import builtins
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AT_ROOT = ("envs", "datasets")
PRIVATE_ROOMS = ("cli", "report", "__main__")  # commands and their pages: `docs/cli.md` is their reference
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

DIM = r"(?:\*?[A-Za-z_][\w.]*'?|\d+|\.\.\.)"
SUM = rf"{DIM}(?:(?: ?(?:[-+*/]|//) ?| or ){DIM})*"
IN_BACKTICKS = re.compile(rf"`(?:[^`]*[^`\w])?\((?:(?:{SUM}, ?)+(?:{SUM})?)?\)[^`]*`")  # `(B, T + 1, S)`, `(B,)`, `()`
BARE = re.compile(rf"(?<![\w`])\(((?:{SUM}, ?)+(?:{SUM})?|\*event)\)")  # (N, m, T+1, S)
IN_WORDS = re.compile(r"\b(?:any|same|its|their|whatever) (?:own )?shape|\bshape of\b")
ARRAYS = re.compile(r"\b(?:Tensor|ndarray|NDArray|PackedSequence)\b")
SILENT = {"NotImplementedError", "AssertionError", "StopIteration"}  # of abstract methods and iterators


def says_shape(text: str) -> bool:
    """Whether a text gives a shape; without backticks it takes a number, a dimension of one letter or `...` in it."""
    bare = any(re.search(r"(?<!\w)(?:[A-Z]\'?|\d+)(?!\w)|\.\.\.|\*event", found) for found in BARE.findall(text))
    return bare or bool(IN_BACKTICKS.search(text) or IN_WORDS.search(text))


@dataclass(frozen=True)
class Name:
    """A public function, method or class, with the texts that speak for it."""

    path: str
    line: int
    full: str
    node: ast.AST
    own: str
    inherited: str = ""  # of the method that it overrides
    owner: str = ""  # of its class
    ancestors: str = ""  # of that class's own ancestors
    comments: dict[str, str] = field(default_factory=dict)  # of a class's fields

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.full}"


def texts_of(name: Name) -> str:
    """What speaks for a name, with what it points to: "see `Controller.begin`", "the inverse of `state`", "raises as `forward`"."""
    texts = "\n".join([name.own, name.inherited])
    found = [texts]
    for target in re.findall(r"(?:\bsee|\bas|\bof|\bthen|^) `([\w.]+)`", texts):
        beside = f"{name.full.rpartition('.')[0]}.{target}"
        found += [n.own for n in names() if n.full == beside or (n.full.endswith(f".{target}") and "." in target)]
    return "\n".join(found)


@dataclass
class Module:
    """A module's tree, its comments by line, and where the names that it imports come from."""

    name: str
    path: Path
    tree: ast.Module
    comments: dict[int, str]
    imports: dict[str, tuple[str, str]]

    def classes(self) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}

    def aliases(self) -> set[str]:
        """Names of module level that stand for arrays, such as `Pair = tuple[Tensor, Tensor]`."""
        found = set()
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and not _calls(node.value) and ARRAYS.search(plain(node.value)):
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        return found


def plain(annotation: ast.AST) -> str:
    """An annotation without the functions in it, which are not arrays."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Callable", "Literal", "Annotated"):
        return ""
    inner = [plain(child) for child in ast.iter_child_nodes(annotation)]
    return " ".join([getattr(annotation, "id", getattr(annotation, "attr", "")), *inner])


def _calls(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Call) for part in ast.walk(node))


@cache
def modules() -> dict[str, Module]:
    """The public modules by dotted name."""
    found = {}
    for folder, prefix in ((ROOT / "ebmtraj", "ebmtraj"), *((ROOT / name, f"ebmtraj.{name}") for name in AT_ROOT)):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if "__pycache__" in parts or (prefix == "ebmtraj" and parts[0] in (*AT_ROOT, *PRIVATE_ROOMS)):
                continue
            name = ".".join([prefix, *(part for part in parts if part != "__init__")])
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text)
            comments = {
                token.start[0]: token.string.lstrip("# ")
                for token in tokenize.generate_tokens(io.StringIO(text).readline)
                if token.type == tokenize.COMMENT
            }
            imports = {
                alias.asname or alias.name: (node.module or "", alias.name)
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            found[name] = Module(name, path, tree, comments, imports)
    return found


def find_class(module: Module, name: str) -> tuple[Module, ast.ClassDef] | None:
    """The class that a name means in a module, of this package."""
    if name in module.classes():
        return module, module.classes()[name]
    source, original = module.imports.get(name, ("", ""))
    return find_class(modules()[source], original) if source in modules() else None


def bases(module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    """A class's ancestors in this package, the nearest first."""
    for base in node.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if (found := find_class(module, name)) is not None:
            yield found
            yield from bases(*found)


def doc(node: ast.AST) -> str:
    return ast.get_docstring(node) or "" if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) else ""


def methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    return {item.name: item for item in reversed(node.body) if isinstance(item, FUNCTIONS)}  # of a property, the getter


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__", "__post_init__")


@cache
def protocols(room: str) -> tuple[ast.ClassDef, ...]:
    """The protocols of a room, which its classes fulfil without naming them."""
    return tuple(
        node
        for module in modules().values()
        if module.name.split(".")[1:2] == [room]
        for node in module.classes().values()
        if "Protocol" in map(ast.unparse, node.bases) and {n for n in methods(node) if n != "__init__"}
    )


def contracts(module: Module, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
    """What a class inherits its methods' meaning from: its ancestors, and protocols of its room all of whose methods it has."""
    heirs = [base for _, base in bases(module, node)]
    yield from heirs
    own = {name for each in (node, *heirs) for name in methods(each)}
    yield from (p for p in protocols(module.name.split(".")[1]) if p is not node and own >= set(methods(p)))


@cache
def names() -> list[Name]:
    """Every public class, function and method of the public modules."""
    found = []
    for module in modules().values():
        path = str(module.path.relative_to(ROOT))
        for node in module.tree.body:
            if isinstance(node, FUNCTIONS) and is_public(node.name):
                found.append(Name(path, node.lineno, f"{module.name}.{node.name}", node, doc(node)))
            elif isinstance(node, ast.ClassDef) and is_public(node.name):
                comments = {}
                for i, item in enumerate(node.body):
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                        last = item.end_lineno or item.lineno
                        after = node.body[i + 1].lineno if i + 1 < len(node.body) else last + 2
                        below = [module.comments[n] for n in range(last + 1, after) if n in module.comments]
                        said = module.comments.get(last, module.comments.get(item.lineno, ""))
                        above = module.comments.get(item.lineno - 1, "")
                        comments[item.target.id] = " ".join([said or above, *(below if said else [])])
                heirs = list(contracts(module, node))
                full = f"{module.name}.{node.name}"
                above = "\n".join(doc(base) for base in heirs)
                found.append(Name(path, node.lineno, full, node, doc(node), above, comments=comments))
                for method in node.body:
                    name = method.name if isinstance(method, FUNCTIONS) else "_"
                    if is_public(name):
                        over = "\n".join(doc(methods(base)[name]) for base in heirs if name in methods(base))
                        found.append(
                            Name(
                                path,
                                method.lineno,
                                f"{full}.{name}",
                                method,
                                doc(method) or doc(methods(node)[name]),
                                over,
                                doc(node),
                            )
                        )
    return found


def arrays_of(module_aliases: set[str], node: ast.AST) -> bool:
    """Whether a function takes or returns arrays, by its annotations."""
    assert isinstance(node, FUNCTIONS)
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    texts = [plain(a.annotation) for a in given if a is not None and a.annotation is not None]
    texts += [plain(node.returns)] if node.returns is not None else []
    return any(ARRAYS.search(text) or module_aliases & set(re.findall(r"\w+", text)) for text in texts)


def lacks_docstring(name: Name) -> str | None:
    if name.own or name.full.endswith((".__init__", ".__post_init__")):
        return None
    return "has no docstring"


def lacks_shapes(name: Name) -> str | None:
    """An override speaks through what it overrides; a constructor and a call, through their class."""
    module = next(m for m in modules().values() if str(m.path.relative_to(ROOT)) == name.path)
    aliases = module.aliases()
    if isinstance(name.node, ast.ClassDef):
        missing = []
        for item in name.node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and is_public(item.target.id):
                kind = plain(item.annotation)
                if not (ARRAYS.search(kind) or aliases & set(re.findall(r"\w+", kind))):
                    continue
                said = name.comments.get(item.target.id, "")
                if not any(map(says_shape, (said, f"`{said}`", name.own + name.inherited))):
                    missing.append(item.target.id)
        return f"says no shape of {', '.join(missing)}" if missing else None
    if not arrays_of(aliases, name.node):
        return None
    texts = [texts_of(name)]
    if name.full.rpartition(".")[2] in ("__init__", "__call__", "forward"):
        texts.append(name.owner)
    return None if says_shape("\n".join(texts)) else "says no shape"


def raised(module: Module, node: ast.AST, seen: frozenset[str] = frozenset()) -> set[str]:
    """The errors that a body raises, itself or by private helpers of its module."""
    private = {}
    for item in module.tree.body:
        if isinstance(item, FUNCTIONS) and item.name.startswith("_"):
            private[item.name] = item
        if isinstance(item, ast.ClassDef):
            private |= {f"self.{n}": m for n, m in methods(item).items() if n.startswith("_") and not n.startswith("__")}
    found = set()
    for part, caught in handled(node):
        if isinstance(part, ast.Raise) and part.exc is not None:
            error = part.exc.func if isinstance(part.exc, ast.Call) else part.exc
            word = ast.unparse(error).rpartition(".")[2]
            if word[:1].isupper() and not any(catches(each, word) for each in caught):
                found.add(word)
        elif isinstance(part, ast.Call):
            callee = ast.unparse(part.func).replace("cls.", "self.")
            if callee in private and callee not in seen:
                inner = raised(module, private[callee], seen | {callee})
                found |= {word for word in inner if not any(catches(each, word) for each in caught)}
    return found - SILENT


def handled(node: ast.AST, caught: tuple[str, ...] = ()) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    """Every node below, with the names of the errors that are caught around it."""
    for child in ast.iter_child_nodes(node):
        yield child, caught
        if isinstance(child, ast.Try):
            names = [h.type for h in child.handlers]
            each = [e for n in names for e in (n.elts if isinstance(n, ast.Tuple) else [n]) if e is not None]
            inside = (*caught, *(ast.unparse(e).rpartition(".")[2] for e in each))
            for part in child.body:
                yield part, inside
                yield from handled(part, inside)
            for part in (*child.handlers, *child.orelse, *child.finalbody):
                yield part, caught
                yield from handled(part, caught)
        else:
            yield from handled(child, caught)


def catches(handler: str, error: str) -> bool:
    """Whether a handler of one error, by name, takes another."""
    kinds = [getattr(builtins, name, None) for name in (handler, error)]
    if all(isinstance(kind, type) for kind in kinds):
        return issubclass(kinds[1], kinds[0])  # type: ignore[arg-type]
    return handler in (error, "Exception") or (handler, error) == ("EbmtrajError", "DivergedError")


def lacks_errors(name: Name) -> str | None:
    """A class may speak for its methods, as an override's base may."""
    if isinstance(name.node, ast.ClassDef):
        return None
    module = next(m for m in modules().values() if str(m.path.relative_to(ROOT)) == name.path)
    texts = "\n".join([texts_of(name), name.owner, name.ancestors])
    missing = [error for error in sorted(raised(module, name.node)) if error not in texts]
    return f"does not name {', '.join(missing)}, which it raises" if missing else None


PHYSICAL_ROOMS = ("envs", "datasets", "trajectories", "policy", "collect", "fields")
PHYSICAL = set(
    "dt time times radius angle angles position positions height heights distance speed speeds velocity velocities force torque"
    " gain duration frequency rotation rotations turn turned mass".split()
)
UNIT = re.compile(
    r"(?<![\w`])(?:rad|radians?|m|metres?|mm|s|ms|seconds?|minutes?|N|Nm|Hz|kg|pixels?|px|turns?|(?:control )?steps?|degrees|no unit|"
    r"units?|normalised|fraction|share|quaternions?|\(w, x, y, z\))(?!\w)"
)


def lacks_units(name: Name) -> str | None:
    """Of a parameter or a field that is named like a physical quantity."""
    if name.full.split(".")[1] not in PHYSICAL_ROOMS:
        return None
    texts = "\n".join([name.own, name.inherited, name.owner])
    if isinstance(name.node, ast.ClassDef):
        said = {field: f"{texts}\n{comment}" for field, comment in name.comments.items()}
    else:
        assert isinstance(name.node, FUNCTIONS)
        given = [*name.node.args.posonlyargs, *name.node.args.args, *name.node.args.kwonlyargs]
        said = {
            argument.arg: texts
            for argument in given
            if ast.unparse(argument.annotation or argument) not in ("str", "int", "bool")
        }
        last = name.full.rpartition(".")[2]
        if name.node.returns is not None and re.search(rf"float|{ARRAYS.pattern}", ast.unparse(name.node.returns)):
            said[last] = texts
    missing = [each for each, text in said.items() if PHYSICAL & set(each.split("_")) and not UNIT.search(text)]
    return f"says no unit of {', '.join(missing)}" if missing else None
