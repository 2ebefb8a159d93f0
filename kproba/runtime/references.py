"""References to code, for tables that must not import the code.

An entry of a table (backbones, heads, loss terms, label rules) names its implementation
as "package.module:name". So the plan, which reads the tables at every Snakemake call,
imports no torch; a job resolves the reference when it needs the code.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

Reference = Callable[..., Any] | str


def resolve(reference: Reference) -> Callable[..., Any]:
    """The function or class that a reference names; a callable is returned as it is.

    Args:
        reference: "package.module:name", or a callable.

    Raises:
        TypeError: Neither a string nor a callable, or the name is not callable.
        ValueError: The string has another form.
        ImportError: There is no such module, or the module has no such name. Errors
            that the module itself raises while it is imported pass through, with a note
            that names the reference.
    """
    if callable(reference):
        return reference
    if not isinstance(reference, str):
        raise TypeError(
            f"Expected a callable or a reference 'module:name', but got {reference!r}."
        )
    module_name, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ValueError(
            f"Expected a reference of the form 'package.module:name', but got "
            f"{reference!r}."
        )
    try:
        module = import_module(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise ImportError(
                f"Expected a module {module_name} for the reference {reference!r}, but "
                f"there is no module {missing}."
            ) from error
        error.add_note(
            f"The error was raised during the import for the reference {reference!r}."
        )
        raise
    if not hasattr(module, name):
        raise ImportError(
            f"Expected {name!r} in {module_name} for the reference {reference!r}, but "
            f"the module has no such name."
        )
    found = getattr(module, name)
    if not callable(found):
        raise TypeError(
            f"Expected a function or class behind the reference {reference!r}, but "
            f"got {type(found).__name__}."
        )
    result: Callable[..., Any] = found
    return result
