"""What the deployment lets a DAG run's parameters choose.

Who may trigger a DAG run may not thereby run code of their own on a worker: the parameters hold names, and what a name
stands for is in variables of the deployment, which are read where the tasks run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

from tfmot_ops.contract.refusal import quoted
from tfmot_ops.errors import SpecError
from tfmot_ops.system import environment

PYTHONS_VARIABLE = environment.FORECAST_PYTHONS.name
IMAGES_VARIABLE = environment.FORECAST_IMAGES.name
ALLOWED_RUNNERS_VARIABLE = environment.ALLOWED_RUNNERS.name
# Airflow's native templates make numbers and None of texts that look like them.
_NAME = re.compile(r"[a-z][A-Za-z0-9_.+-]*\Z")


def listed(variable: str) -> Mapping[str, str]:
    """Name -> what it stands for, as the deployment's variable has it; empty where it is not set.

    Raises:
        SpecError: the variable is no JSON object of strings.
    """
    text = os.environ.get(variable) or "{}"
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        entries = None
    if isinstance(entries, dict) and all(_NAME.match(name) and isinstance(entries[name], str) for name in entries):
        return entries
    raise SpecError(
        f"the deployment's variable {variable} cannot be read",
        required='a JSON object of strings, as in {"tf-2.22": "..."}, whose names begin with a lower-case letter',
        received=f"a text of {len(text)} characters that is none",
        remedy="correct the variable where Airflow's tasks run",
    )


def look_up(variable: str, name: object) -> str:
    """What a name stands for.

    Args:
        variable: that lists the names.
        name: from the parameters of a DAG run.

    Raises:
        SpecError: the deployment does not list this name; it may be a path or an image itself.
    """
    entries = listed(variable)
    if isinstance(name, str) and name in entries:
        return entries[name]
    raise SpecError(
        f"the deployment lists no such name in {variable}",
        required="one of " + ", ".join(map(quoted, entries)) if entries else "a name that is listed; none is",
        received=quoted(name),
        remedy=f"choose a listed name; who runs the deployment adds others to {variable}",
    )


def check_parameter(name: object, deployed: str | None) -> None:
    """Refuse a runner that the parameters of a DAG run may not choose.

    Args:
        name: from the parameters.
        deployed: name of the deployment's runner; None where it has chosen none, and any may be chosen.

    Raises:
        SpecError: neither the deployment's runner nor one that it allows besides.
    """
    text = environment.ALLOWED_RUNNERS.get() or ""
    if not text and deployed is None:
        return
    allowed = [deployed or "local", *filter(None, map(str.strip, text.split(",")))]
    if name not in allowed:
        raise SpecError(
            "the deployment does not let a DAG run choose this runner",
            required=" or ".join(dict.fromkeys(allowed)),
            received=quoted(name),
            remedy=f"leave the parameter `runner` empty; who runs the deployment adds others to "
            f"{ALLOWED_RUNNERS_VARIABLE}",
        )
