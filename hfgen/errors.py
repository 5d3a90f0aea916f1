"""The one exception that users see as a single line: what was wrong, where it came from, what would
be valid.
"""


class HfgenError(Exception):
    """A mistake in what the user gave (recipe, data, folder, flag), or a limit of the machine.

    The command line prints its message on one line and exits with status 2; from Python it is
    raised as it is. The message names the value, where it came from and what would be valid.
    """


def one_of(name: str, value: object, valid: list[str] | tuple[str, ...]) -> HfgenError:
    """An error for a value outside a closed set, with the nearest valid one when there is a near
    one.
    """
    import difflib

    near = difflib.get_close_matches(str(value), list(valid), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return HfgenError(f"{name}: unknown value {value!r}; {hint}valid: {', '.join(sorted(valid))}")
