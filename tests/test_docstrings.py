"""Every public name says what it is: a sentence, shapes, units, errors and sources. Syntax trees are read, nothing is run.

What a method overrides speaks for it, too, as does a protocol of the same room that its class fulfils, and what a docstring
points to ("see `Controller.begin`", "the inverse of `state`", "raises as `forward`"):

- every module, class, function, method and property has a docstring; a constructor's may be its class's;
- what takes or returns arrays gives a shape, as `(B, S)` or in words ("of any shape"), and so does a field that is an array;
  of several arrays each is named, or there are as many shapes, but for a few names whose shape is the same everywhere;
- what raises an error, itself or through private helpers, names it; the words may be its class's;
- a parameter, field or result that is named as a physical quantity has a unit;
- a setting has a word beside it, or its class or that class's ancestor names it;
- a module that implements a paper's algorithm or a cited method says which: in its docstring, or in each name's.
"""

from __future__ import annotations

import ast
import builtins
import re
import runpy
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = runpy.run_path(str(ROOT / "docs" / "site.py"))
AT_ROOT = ("envs", "datasets")
NOT_API = ("cli", "report", "__main__")  # commands and what they print: `docs/cli.md` is their reference
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
Function = ast.FunctionDef | ast.AsyncFunctionDef

DIM = r"(?:\*?[A-Za-z_][\w.]*'?(?:\([^()]*\))?|\d+|\.\.\.)"
SUM = rf"{DIM}(?:(?: ?(?:[-+*/]|//) ?| or ){DIM})*"
IN_BACKTICKS = re.compile(rf"`(?:[^`]*[^`\w])?\((?:(?:{SUM}, ?)+(?:{SUM})?)?\)[^`]*`")  # `(B, T + 1, S)`, `x (B,)`, `()`
BARE = re.compile(rf"(?<![\w`])\(((?:{SUM}, ?)+(?:{SUM})?|\*event)\)")  # (N, m, T+1, S)
TUPLE = re.compile(rf"(?<!\w)\((?:(?:{SUM}, ?)+(?:{SUM})?|\*event)?\)")
IN_WORDS = re.compile(r"\b(?:any|same|its|their|whatever) (?:own )?shape|\bshapes? of\b")
CONVENTIONS = ("label", "labels", "level", "mask")  # shapes that `docs/api/index.md` gives once for all
ARRAYS = re.compile(r"\b(?:Tensor|ndarray|NDArray)\b")

PHYSICAL_ROOMS = ("envs", "datasets", "trajectories", "policy", "collect", "fields")
PHYSICAL = re.compile(
    r"(?:^|_)(?:dt|times?|timestep|radius|angles?|positions?|heights?|distance|speeds?|velocit(?:y|ies)|force|torque|gain|duration|"
    r"frequency|rotations?|turn|turned|mass)(?:_|$)"
)
UNIT = re.compile(
    r"(?<![\w`])(?:rad|radians?|m|metres?|mm|s|ms|seconds?|minutes?|N|Nm|Hz|kg|pixels?|px|turns?|steps?|degrees|no unit|"
    r"without a unit|units?|normalised|share|quaternions?|\(w, x, y, z\))(?!\w)"
)
SOURCE = re.compile(
    r"\b[Pp]apers? 00\d|\b[A-Z][\w'à-ÿ-]+(?:,? (?:and |& )?[A-Z][\w'à-ÿ-]+| et\s+al\.)*,? (?:19|20)\d\d\b|\bPaper: \""
)

ALGORITHMS = {  # modules that implement a paper's algorithm or a cited method, by room
    "energies": ("compose", "concept", "image", "image_conv", "joint", "latent", "sequence", "transition", "value_place"),
    "samplers": ("adapt", "ais", "anneal", "buffer", "diagnostics", "kernel", "langevin", "mcmc", "start", "tempering"),
    "training": ("losses", "objectives"),
    "nets": ("base", "encoder", "mixture", "resnet", "sequence", "vector_field"),
    "trajectories": (
        "baselines.diffusion",
        "baselines.ensemble",
        "baselines.feed_forward",
        "baselines.field",
        "baselines.flow",
        "baselines.gaussian",
        "baselines.mixture",
        "baselines.sequence",
        "clone",
        "controllers.behaviour",
        "controllers.gradient",
        "controllers.imagination",
        "controllers.predictive",
        "controllers.search",
        "controllers.shooting",
        "improved",
        "plan",
        "ratio",
        "residual",
        "scaling",
        "sequence_coordinates",
        "sequence_model",
        "sequence_plan",
        "tilted",
        "transition",
        "window",
    ),
    "images": (
        "adversary",
        "attacks",
        "baselines.svm",
        "baselines.vae",
        "classifier",
        "compose",
        "concept",
        "cross",
        "field",
        "joint",
        "noise_conditional",
        "pair",
        "pcd",
        "restore",
        "robustness",
    ),
    "generators": ("flow", "glow", "tilt", "tilt_fit", "vae"),
    "continual": ("contrastive", "masked", "measures", "replay", "softmax", "tasks", "vae"),
    "evaluation": (
        "c2st",
        "calibration",
        "frechet",
        "image_features",
        "image_scores",
        "onnx_features",
        "ood",
        "scores",
        "wasserstein",
    ),
    "policy": ("gaits", "ppo"),
    "datasets": ("dsprites", "interchange.diffusion_policy", "marginals", "sprites", "toy"),
}


INSIDE = {  # modules that no API page shows, by room: how something is done, promised to nobody
    "": ("locks", "seal"),
    "continual": ("grids", "steps"),
    "datasets": ("blocks", "bounds", "interchange.described", "interchange.target", "moments", "shards", "zarr_files"),
    "envs": ("physics",),
    "images": ("labels",),
    "samplers": ("adapt", "analytic", "blocks", "checks", "compiled", "kernel", "metropolis_block", "recognise"),
    "training": ("spread", "state"),
    "trajectories": ("stored", "tilted"),
}


@dataclass(frozen=True)
class Module:
    """A module's tree, and where the names that it imports come from."""

    name: str
    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> dict[str, tuple[str, str]]:
        nodes = [node for node in self.tree.body if isinstance(node, ast.ImportFrom)]
        return {alias.asname or alias.name: (node.module or "", alias.name) for node in nodes for alias in node.names}

    @cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in self.tree.body if isinstance(node, ast.ClassDef)}

    @cached_property
    def aliases(self) -> frozenset[str]:
        """Names that stand for arrays, such as `Pair = tuple[Tensor, Tensor]`, here or where they are imported from."""
        own = set()
        for node in self.tree.body:
            targets = (
                node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            )
            value = getattr(node, "value", None)
            if targets and value is not None and ARRAYS.search(plain(value)):
                is_kind = not any(isinstance(part, ast.Call) for part in ast.walk(value))
                own |= {target.id for target in targets if isinstance(target, ast.Name) and is_kind}
        taken = {n for n, (where, name) in self.imports.items() if where in modules() and name in modules()[where].aliases}
        return frozenset(own | taken)

    @cached_property
    def helpers(self) -> dict[str, Function]:
        """Private functions and methods, as they are called."""
        found = {node.name: node for node in self.tree.body if isinstance(node, FUNCTIONS) and node.name[0] == "_"}
        for each in self.classes.values():
            found |= {f"self.{name}": node for name, node in methods(each).items() if re.match(r"_(?!_)", name)}
        return found

    def holds_arrays(self, annotation: ast.AST | None) -> bool:
        text = "" if annotation is None else plain(annotation)
        return bool(ARRAYS.search(text) or self.aliases & set(re.findall(r"\w+", text)))


@dataclass(frozen=True)
class Name:
    """A public module, class, function or method, with the texts that speak for it."""

    module: Module
    full: str
    node: ast.AST
    own: str
    inherited: str = ""  # of what it overrides
    owner: str = ""  # of its class and of what that inherits from
    fields: dict[str, str] = field(default_factory=dict)  # of a class, with what is said beside each

    def __str__(self) -> str:
        return f"{self.module.path}:{getattr(self.node, 'lineno', 1)} {self.full}"

    @property
    def texts(self) -> str:
        """What it says, with what it points to."""
        said = f"{self.own}\n{self.inherited}"
        found = [said]
        for target in re.findall(r"(?:\b(?:see|See|as|As|of|then)|^) `([\w.]+)`", said):
            beside = f"{self.full.rpartition('.')[0]}.{target}"
            found += [
                n.own for n in by_end().get(target.rpartition(".")[2], []) if n.full == beside or pointed(n.full, target)
            ]
        return "\n".join(found)


def pointed(full: str, target: str) -> bool:
    return "." in target and full.endswith(f".{target}")


def plain(annotation: ast.AST) -> str:
    """The names in an annotation, without the functions in it, which are not arrays."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return annotation.value
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Callable", "Literal", "Annotated"):
        return ""
    inner = [plain(child) for child in ast.iter_child_nodes(annotation)]
    return " ".join([getattr(annotation, "id", getattr(annotation, "attr", "")), *inner]).strip()


def says_shape(text: str) -> bool:
    """Whether a text gives a shape; without backticks it takes a number, a dimension of one letter or `...` in it."""
    bare = any(re.search(r"(?<!\w)(?:[A-Z]'?|\d+)(?!\w)|\.\.\.|\*event", found) for found in BARE.findall(text))
    return bare or bool(IN_BACKTICKS.search(text) or IN_WORDS.search(text))


def doc(node: ast.AST) -> str:
    return ast.get_docstring(node) or "" if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) else ""


def methods(node: ast.ClassDef) -> dict[str, Function]:
    return {item.name: item for item in reversed(node.body) if isinstance(item, FUNCTIONS)}  # of a property, the getter


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__", "__post_init__")


@cache
def modules() -> dict[str, Module]:
    """The public modules by dotted name."""
    found = {}
    for folder, prefix in ((ROOT / "ebmtraj", "ebmtraj"), *((ROOT / name, f"ebmtraj.{name}") for name in AT_ROOT)):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if "__pycache__" in parts or (prefix == "ebmtraj" and parts[0] in (*AT_ROOT, *NOT_API)):
                continue
            name = ".".join([prefix, *(part for part in parts if part != "__init__")])
            found[name] = Module(name, str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    return found


def ancestors(module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    """A class's ancestors in this package and their modules, the nearest first."""
    for base in node.bases:
        name = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        where = module
        while name not in where.classes and where.imports.get(name, ("",))[0] in modules():
            source, name = where.imports[name]
            where = modules()[source]
        if name in where.classes:
            yield where, where.classes[name]
            yield from ancestors(where, where.classes[name])


@cache
def protocols(room: str) -> tuple[ast.ClassDef, ...]:
    """The protocols of a room, which its classes fulfil without naming them."""
    every = [node for m in modules().values() if room_of(m.name) == room for node in m.classes.values()]
    return tuple(node for node in every if "Protocol" in map(ast.unparse, node.bases) and set(methods(node)) - {"__init__"})


def room_of(name: str) -> str:
    return [*name.split("."), ""][1]


def names_of(module: Module) -> Iterator[Name]:
    yield Name(module, module.name, module.tree, doc(module.tree))
    for node in module.tree.body:
        if isinstance(node, FUNCTIONS) and is_public(node.name):
            yield Name(module, f"{module.name}.{node.name}", node, doc(node))
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            heirs = [each for _, each in ancestors(module, node)]
            own = {name for each in (node, *heirs) for name in methods(each)}
            heirs += [p for p in protocols(room_of(module.name)) if p is not node and own >= set(methods(p))]
            full, above = f"{module.name}.{node.name}", "\n".join(map(doc, heirs))
            yield Name(module, full, node, doc(node), above, fields=fields_of(module, node))
            for item in node.body:
                if isinstance(item, FUNCTIONS) and is_public(item.name):
                    over = "\n".join(doc(methods(each)[item.name]) for each in heirs if item.name in methods(each))
                    said = doc(item) or doc(methods(node)[item.name])
                    yield Name(module, f"{full}.{item.name}", item, said, over, f"{doc(node)}\n{above}")


def fields_of(module: Module, node: ast.ClassDef) -> dict[str, str]:
    """The annotated names in a class's body, with the comment beside each, which pages show."""
    beside = SITE["said_beside"](module.text, node.body)
    names = [item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
    return {name: beside.get(name, "") for name in names if is_public(name)}


@cache
def names() -> list[Name]:
    return [name for module in modules().values() for name in names_of(module)]


@cache
def by_end() -> dict[str, list[Name]]:
    found: dict[str, list[Name]] = {}
    for name in names():
        found.setdefault(name.full.rpartition(".")[2], []).append(name)
    return found


def lacks_docstring(name: Name) -> str | None:
    has = name.own or name.full.endswith((".__init__", ".__post_init__"))
    return None if has else "has no docstring"


def lacks_shape(name: Name) -> str | None:
    if isinstance(name.node, ast.ClassDef):
        kinds = {item.target.id: item.annotation for item in name.node.body if isinstance(item, ast.AnnAssign)}  # type: ignore[union-attr]
        arrays = [each for each in name.fields if name.module.holds_arrays(kinds[each])]
        missing = [e for e in arrays if not any(map(says_shape, (name.texts, name.fields[e], f"`{name.fields[e]}`")))]
        return f"says no shape of {', '.join(missing)}" if missing else None
    if not isinstance(name.node, FUNCTIONS):
        return None
    every = name.node.args
    given = [a for a in (*every.posonlyargs, *every.args, *every.kwonlyargs, every.vararg, every.kwarg) if a is not None]
    arrays = [a.arg for a in given if name.module.holds_arrays(a.annotation)]
    if not arrays and not name.module.holds_arrays(name.node.returns):
        return None
    texts = name.texts
    if name.full.rpartition(".")[2] in ("__init__", "__call__", "forward"):  # what a class is made of, or is as a function
        texts += name.owner
    if not says_shape(texts):
        return "says no shape"
    every_text = f"{texts}\n{name.owner}"
    own = [a for a in arrays if a not in CONVENTIONS]
    if IN_WORDS.search(every_text) or len(TUPLE.findall(every_text)) >= len(own):
        return None
    silent = [a for a in own if not re.search(rf"\b{a}\b", every_text)]
    return f"says no shape of {', '.join(silent)}" if silent else None


def lacks_error(name: Name) -> str | None:
    if not isinstance(name.node, FUNCTIONS):
        return None
    texts = f"{name.texts}\n{name.owner}"
    missing = [error for error in sorted(raised(name.module, name.node)) if error not in texts]
    return f"does not name {', '.join(missing)}, which it raises" if missing else None


def raised(module: Module, node: ast.AST, seen: frozenset[str] = frozenset()) -> set[str]:
    """The public errors that a body raises and does not catch, itself or through private helpers of its module."""
    found = set()
    for part, caught in handled(node):
        words: set[str] = set()
        if isinstance(part, ast.Raise) and part.exc is not None:
            word = ast.unparse(part.exc.func if isinstance(part.exc, ast.Call) else part.exc).rpartition(".")[2]
            words = {word} if word[0].isupper() and word != "NotImplementedError" else set()
        elif isinstance(part, ast.Call):
            callee = re.sub(r"^cls\.", "self.", ast.unparse(part.func))
            if callee in module.helpers and callee not in seen:
                words = raised(module, module.helpers[callee], seen | {callee})
        found |= {word for word in words if not any(catches(each, word) for each in caught)}
    return found


def handled(node: ast.AST, caught: tuple[str, ...] = ()) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    """Every node below, with the names of the errors that are caught around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.Try) and child in node.body:
            kinds = [kind for h in node.handlers for kind in (h.type.elts if isinstance(h.type, ast.Tuple) else [h.type])]
            inside = (*caught, *(ast.unparse(kind).rpartition(".")[2] for kind in kinds if kind is not None))
        else:
            inside = caught
        yield child, inside
        yield from handled(child, inside)


def catches(handler: str, error: str) -> bool:
    """Whether a handler of one error takes another, both by name."""
    kinds = [getattr(builtins, name, None) for name in (handler, error)]
    if isinstance(kinds[0], type) and isinstance(kinds[1], type):
        return issubclass(kinds[1], kinds[0])
    return handler in (error, "Exception") or (handler, error) == ("EbmtrajError", "DivergedError")


def lacks_unit(name: Name) -> str | None:
    texts = f"{name.texts}\n{name.owner}"
    if room_of(name.full) not in PHYSICAL_ROOMS:
        return None
    if isinstance(name.node, ast.ClassDef):
        said = {each: f"{texts}\n{beside}" for each, beside in name.fields.items()}
    elif isinstance(name.node, FUNCTIONS):
        given = [*name.node.args.posonlyargs, *name.node.args.args, *name.node.args.kwonlyargs]
        said = {a.arg: texts for a in given if a.annotation is None or plain(a.annotation) not in ("str", "int", "bool")}
        if name.node.returns is not None and re.search(rf"float|{ARRAYS.pattern}", ast.unparse(name.node.returns)):
            said[name.full.rpartition(".")[2]] = texts
    else:
        return None
    missing = [each for each, text in said.items() if PHYSICAL.search(each) and not UNIT.search(text)]
    return f"says no unit of {', '.join(missing)}" if missing else None


def lacks_source(name: Name) -> str | None:
    parts = name.module.name.split(".")
    listed = ".".join(parts[2:]) in ALGORITHMS.get(room_of(name.full), ())
    if not listed or name.full.count(".") != len(parts) or SOURCE.search(doc(name.module.tree)):
        return None
    return None if SOURCE.search(name.texts) else "names no source"


def lacks_word(name: Name) -> str | None:
    if not isinstance(name.node, ast.ClassDef) or not re.search(r"(?:Config|Recipe)$", name.node.name):
        return None
    bare = [each for each, beside in name.fields.items() if not beside and not re.search(rf"\b{each}\b", name.texts)]
    told = {
        each
        for where, node in ancestors(name.module, name.node)
        for each, beside in fields_of(where, node).items()
        if beside
    }
    missing = [each for each in bare if each not in told]
    return f"says nothing of {', '.join(missing)}" if missing else None


RULES: tuple[Callable[[Name], str | None], ...] = (
    lacks_docstring,
    lacks_shape,
    lacks_error,
    lacks_unit,
    lacks_source,
    lacks_word,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_public_name_says_what_it_is(rule: Callable[[Name], str | None]) -> None:
    assert len(names()) > 2000
    found = [f"{name} {said}" for name in names() if (said := rule(name)) is not None]
    assert not found, "\n".join(found)


def test_conventions_are_on_the_page() -> None:
    page = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    assert [name for name in CONVENTIONS if not re.search(rf"`{name}`[^.;]*`\(B?,?\)`|`{name}`[^.;]*broadcasts", page)] == []


def test_every_algorithm_listed_is_a_module() -> None:
    listed = [f"ebmtraj.{room}.{name}" for room, every in ALGORITHMS.items() for name in every]
    assert len(listed) > 80
    assert [name for name in listed if name not in modules()] == []


def test_the_pages_show_every_module_but_those_inside() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = re.findall(r"^::: ([\w.]+)$", pages, re.M)
    inside = [".".join(filter(None, ("ebmtraj", room, name))) for room, every in INSIDE.items() for name in every]
    packages = [name for name, module in modules().items() if module.path.endswith("__init__.py")]
    assert sorted(shown + inside) == sorted(set(modules()) - set(packages))


FAULTY = '''
    """A room."""
    class Config:
        """Settings; `steps` are of the chain."""
        steps: int = 1
        clip: float = 1.0
        # above 0
        rate: float = 1.0
    class Sampler(Base):
        """A chain."""
        start: Tensor  # where it begins
        speed: float
        def __init__(self, x: Tensor) -> None:
            self._check(x)
        def _check(self, x):
            raise EbmtrajError("no")
        def step(self, x: Tensor) -> Tensor:
            """One step, see energy(x)."""
            try:
                raise ValueError
            except ValueError:
                return x
        def run(self): ...
        def move(self, x: Tensor, force: Tensor) -> Tensor:
            """Of places x (B, S)."""
    def field(function: Callable[[Tensor], Tensor]) -> None:
        """Takes no array."""
'''


def test_the_rules_see_a_fault() -> None:
    module = Module("ebmtraj.trajectories.window", "window.py", textwrap.dedent(FAULTY))
    found = {(name.full.rpartition(".")[2], said) for name in names_of(module) for rule in RULES if (said := rule(name))}
    assert found == {
        ("Config", "says nothing of clip"),
        ("Config", "names no source"),
        ("Sampler", "says no shape of start"),
        ("Sampler", "says no unit of speed"),
        ("Sampler", "names no source"),
        ("field", "names no source"),
        ("__init__", "says no shape"),
        ("__init__", "does not name EbmtrajError, which it raises"),
        ("step", "says no shape"),
        ("run", "has no docstring"),
        ("move", "says no shape of force"),
        ("move", "says no unit of force"),
    }
    said = FAULTY.replace("where it begins", "(B, S) where it begins").replace("speed: float", "speed: float  # m/s")
    said = said.replace('"""A chain."""', '"""A chain of x `(B, S)`; raises `EbmtrajError`."""')
    said = (
        said.replace("energy(x).", "`energy`, (B, *event).")
        .replace("def run(self): ...", "")
        .replace("Of places x (B, S).", "`x` (B, S), `force` (B, F) in N.")
        .replace("A room.", "A room (Neal 2011).")
        .replace("clip: float = 1.0", "clip: float = 1.0  # bound")
    )
    mended = Module("ebmtraj.trajectories.window", "window.py", textwrap.dedent(said))
    assert [rule.__name__ for name in names_of(mended) for rule in RULES if rule(name)] == []


@pytest.mark.parametrize(
    ("text", "is_shape"),
    [
        ("`(B, T + 1, S)`", True),
        ("x (N, m, T+1, S)", True),
        ("`x (B,) -> ()`", True),
        ("of any shape", True),
        ("`read(path, name)`", False),
        ("(paper 000, section 5)", False),
        ("(as is, or not)", False),
        ("`exp(-E)`", False),
    ],
)
def test_what_is_a_shape(text: str, is_shape: bool) -> None:
    assert says_shape(text) is is_shape
