"""What of a model is not to learn: a frozen parameter gets no gradient, no moments in the optimizer, no weight decay.

A pattern is the name of a parameter, as a checkpoint has it, or with a dot at its end all that stands below that name;
a * is any one part of it:

    encoder.                  all of the encoder
    backbone.layers.*.mlp.    what is behind the attention in every layer, with its router and the router's bias
    head.weight               this one
"""

import re
from collections.abc import Iterable, Sequence

from torch import nn

from sensors.errors import InputError, nearest


def freeze(model: nn.Module, patterns: Sequence[str], where: object) -> None:
    """Take the parameters that a pattern matches out of the training; a pattern that matches none is an InputError, and
    so is a list that leaves nothing."""
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        matches = _matcher(pattern).fullmatch
        found = [name for name in parameters if matches(name)]
        if not found:
            firsts = dict.fromkeys(name.partition(".")[0] + ("." if "." in name else "") for name in parameters)
            expected = f"a parameter's name, or what stands before some, such as {', '.join(firsts)}"
            raise InputError(where, "train.freeze", repr(pattern), expected, nearest(pattern, _patterns(parameters)))
        for name in found:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(where, "train.freeze", ", ".join(patterns), "a list that leaves something to learn")


def _matcher(pattern: str) -> re.Pattern:
    one_part = r"[^.]+".join(re.escape(piece) for piece in pattern.split("*"))
    return re.compile(one_part + (".+" if pattern.endswith(".") else ""))


def _patterns(names: Iterable[str]) -> list[str]:
    """All that could have been meant: names and what stands before them, also with * for the numbers of layers."""
    said = set()
    for name in names:
        parts = name.split(".")
        for known in (parts, ["*" if part.isdigit() else part for part in parts]):
            said |= {".".join(known[:k]) + "." for k in range(1, len(known))} | {".".join(known)}
    return sorted(said)
