"""Bad input: the one exception a user sees, and the helper that finds the name they meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AssayError(Exception):
    """Something the user gave cannot be used; the message is one line that names it and says what to do.

    The command line prints the message on stderr and exits with status 2; nothing stored is touched.
    """


def unknown(what: str, name: object, valid: Iterable[str]) -> AssayError:
    """Build the error for a name that does not exist: it names the culprit and the nearest valid name."""
    options = sorted(valid)
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.4)
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif options:
        hint = f"there is {', '.join(repr(option) for option in options[:12])}"
    else:
        hint = "there is none"
    return AssayError(f"unknown {what} {name!r}; {hint}")
