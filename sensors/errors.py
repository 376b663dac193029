"""The one error a user's input can raise: it says where, what came, what was expected, and how to fix it."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something a user brought (file, recipe, action, clip) is not usable.

    `where` names the file or object, `field` the part of it. The command line prints the message without a traceback
    and exits with status 2; every other exception is a defect of ours and keeps its traceback.
    """

    def __init__(self, where: object, field: str, came: object, expected: object, fix: str = ""):
        self.where, self.field, self.came, self.expected, self.fix = str(where), field, str(came), str(expected), fix
        message = f"{where}: {field}: came {came}, expected {expected}"
        super().__init__(f"{message}. {fix}" if fix else message)

    def __reduce__(self):
        return (type(self), (self.where, self.field, self.came, self.expected, self.fix))


class BrokenFile(InputError):
    """A recorded file that can't be read though its tables speak of it; whoever has others may do without."""


def unknown_name(where: object, field: str, came: object, names: Iterable[str]) -> InputError:
    """The error for a name that is none of these; it asks whether the nearest was meant."""
    names = list(names)
    return InputError(where, field, came, f"one of {', '.join(names)}", nearest(came, names))


def nearest(came: object, names: Iterable[str], prefix: str = "") -> str:
    """The question whether the nearest of these names was meant, "" if none is near."""
    near = difflib.get_close_matches(str(came), list(names), 1)
    return f"Did you mean {prefix}{near[0]}?" if near else ""
