"""Which handlers a source tree declares, read from its text: nothing of it is imported or run.

A handler is declared by the decorator `nodeless.function`, whose arguments have to be literals, since whoever deploys need not
have the function's dependencies:

    from nodeless import function

    @function(subject="events.git.push.>")
    def on_push(event): ...

Without a declaration, `--handler module:callable` names one, or the tree holds exactly one public callable.
"""

import ast
import re
from collections.abc import Mapping

from msgspec import Struct

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?")
"""A DNS label of at most 52 characters: pods and the consumer add a suffix (limit 63)."""


class DeployError(Exception):
    """What is to be deployed cannot be; the message says what was seen, what was expected and what to do."""


class Declared(Struct, frozen=True, kw_only=True):
    """One handler as its source declares it."""

    handler: str
    """`module:callable`."""
    name: str
    subjects: tuple[str, ...] = ()
    options: Mapping[str, object] = {}
    """Other literal arguments of the decorator, checked by whoever uses them."""
    line: int = 0


def function_name(text: str) -> str:
    """Return the Kubernetes name for a callable's or a file's name; raise `DeployError` where there is none."""
    name = text.lower().replace("_", "-").strip("-")
    check_function_name(name)
    return name


def check_function_name(name: str) -> None:
    if not _LABEL.fullmatch(name):
        raise DeployError(
            f"{name!r} cannot be a function's name: expected 1 to 52 of a-z, 0-9 and '-', with a letter or digit at "
            "both ends; choose one with --name"
        )


def module_of(path: str) -> str | None:
    """Return the importable name of a source path relative to the bundle's root, or None for what is no module."""
    if not path.endswith(".py"):
        return None
    parts = path.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts) if parts and all(part.isidentifier() for part in parts) else None


def declared_handlers(sources: Mapping[str, bytes]) -> list[Declared]:
    """Return the handlers declared with the decorator, in order of path and line.

    `sources` maps relative paths to file contents. Raises `DeployError` for a file that does not parse, an argument that
    is no literal, and two handlers with one name.
    """
    found: list[Declared] = []
    for path in sorted(sources):
        module = module_of(path)
        if module is None:
            continue
        tree = _parsed(path, sources[path])
        marks = _marks(tree)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                decorator = _decorator(node, marks)
                if decorator is not None:
                    found.append(_declared(path, module, node.name, decorator))
    by_name: dict[str, Declared] = {}
    for each in found:
        other = by_name.setdefault(each.name, each)
        if other is not each:
            raise DeployError(
                f"two handlers have the name {each.name!r}: {other.handler} (line {other.line}) and {each.handler} (line "
                f"{each.line}); a function has one handler: give one of them another name, @function(name=…)"
            )
    return found


def named_handler(sources: Mapping[str, bytes], handler: str) -> Declared:
    """Return the handler `module:callable`, with what its decorator says where it has one.

    Raises `DeployError` where the text is malformed or the tree holds no such module or top-level name.
    """
    module, separator, attribute = handler.partition(":")
    if not separator or not module or not attribute.isidentifier():
        raise DeployError(f"--handler {handler!r}: expected module:callable, such as app:on_push")
    paths = {module_of(path): path for path in sources}
    if module not in paths:
        known = ", ".join(sorted(name for name in paths if name)) or "none"
        raise DeployError(
            f"--handler {handler!r}: there is no module {module!r} in what is deployed; it holds: {known}"
        )
    path = paths[module]
    tree = _parsed(path, sources[path])
    names = {name: node for node in tree.body for name in _bound_names(node)}
    if attribute not in names:
        public = ", ".join(sorted(name for name in names if not name.startswith("_"))) or "nothing"
        raise DeployError(
            f"--handler {handler!r}: {path} defines no {attribute!r} at its top level; it defines: {public}"
        )
    node = names[attribute]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        decorator = _decorator(node, _marks(tree))
        if decorator is not None:
            return _declared(path, module, attribute, decorator)
    return Declared(handler=handler, name=function_name(attribute))


def only_handler(sources: Mapping[str, bytes]) -> Declared:
    """Return the one public top-level function of the tree; raise `DeployError`, with the choices, where it is not one."""
    candidates = [
        Declared(handler=f"{module}:{node.name}", name=node.name, line=node.lineno)
        for path in sorted(sources)
        if (module := module_of(path)) is not None
        for node in _parsed(path, sources[path]).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    ]
    if len(candidates) == 1:
        return named_handler(sources, candidates[0].handler)
    seen = ", ".join(each.handler for each in candidates) or "no public function"
    left_out = sorted(path for path in sources if path.endswith(".py") and module_of(path) is None)
    if left_out:
        seen += f" (and {', '.join(left_out[:3])}, which cannot be imported under such a name)"
    raise DeployError(
        f"which function is the handler? Seen: {seen}; name one with --handler module:callable, or mark it with "
        "@nodeless.function(subject=…)"
    )


def _parsed(path: str, source: bytes) -> ast.Module:
    try:
        return ast.parse(source, filename=path)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        raise DeployError(f"{path}{line}: this is not Python: {message}") from error


def _bound_names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.ImportFrom() | ast.Import():
            return [alias.asname or alias.name.split(".")[0] for alias in node.names]
    return []


def _marks(tree: ast.Module) -> frozenset[str]:
    """Return how the module may write the decorator, as its imports name it."""
    marks = {"function", "nodeless.function"}
    for node in tree.body:
        match node:
            case ast.ImportFrom(module="nodeless", level=0):
                marks |= {alias.asname for alias in node.names if alias.name == "function" and alias.asname}
            case ast.Import():
                marks |= {
                    f"{alias.asname}.function" for alias in node.names if alias.name == "nodeless" and alias.asname
                }
    return frozenset(marks)


def _decorator(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, marks: frozenset[str]) -> ast.Call | None:
    for decorator in node.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        if ast.unparse(target) in marks:
            return decorator if isinstance(decorator, ast.Call) else ast.Call(func=target, args=[], keywords=[])
    return None


def _declared(path: str, module: str, attribute: str, decorator: ast.Call) -> Declared:
    line = getattr(decorator, "lineno", 0)
    if decorator.args:
        raise DeployError(f"{path}, line {line}: @function takes keyword arguments only, such as subject=…")
    options: dict[str, object] = {}
    for keyword in decorator.keywords:
        try:
            options[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except ValueError as error:
            raise DeployError(
                f"{path}, line {line}: @function({keyword.arg}=…) is no literal; "
                "a deployment reads the source and does not run it: write the value out"
            ) from error
    name = options.pop("name", None)
    subject = options.pop("subject", ())
    subjects = (subject,) if isinstance(subject, str) else subject
    if not isinstance(subjects, tuple | list) or not all(isinstance(each, str) for each in subjects):
        raise DeployError(f"{path}, line {line}: @function(subject={subject!r}): expected a text or a list of texts")
    if name is not None:
        check_function_name(str(name))
    return Declared(
        handler=f"{module}:{attribute}",
        name=str(name) if name is not None else function_name(attribute),
        subjects=tuple(subjects),
        options=options,
        line=line,
    )
