"""The runners, interpreters and images that a DAG run's parameters may choose by name.

A user who may trigger a DAG run must not be able to run arbitrary code on a worker. So the parameters hold names only;
environment variables of the deployment, read in the task's process, map a name to an interpreter or an image.
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
# A native template of Airflow turns text such as `1` or `None` into a number or None.
_NAME = re.compile(r"[a-z][A-Za-z0-9_.+-]*\Z")


def listed(variable: str) -> Mapping[str, str]:
    """The mapping in a variable of the deployment: name -> interpreter or image; empty if the variable is not set.

    Raises:
        SpecError: the variable is not a JSON object of strings.
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
        received=f"a text of {len(text)} characters that is not such an object",
        remedy="correct the variable where Airflow's tasks run",
    )


def look_up(variable: str, name: object) -> str:
    """The interpreter or image to which the deployment maps a name.

    Args:
        variable: environment variable with the mapping.
        name: from the parameters of a DAG run.

    Raises:
        SpecError: the deployment does not list this name, for example because it is a path or an image.
    """
    entries = listed(variable)
    if isinstance(name, str) and name in entries:
        return entries[name]
    raise SpecError(
        f"the deployment lists no such name in {variable}",
        required="one of " + ", ".join(map(quoted, entries)) if entries else "a listed name, but the list is empty",
        received=quoted(name),
        remedy=f"choose a listed name, or ask the deployment's administrator to add this name to {variable}",
    )


def check_parameter(name: object, deployed: str | None) -> None:
    """Refuse a runner that the parameters of a DAG run may not choose.

    Args:
        name: runner's name in the parameters.
        deployed: name of the deployment's runner; None if the deployment sets none, and any runner is allowed.

    Raises:
        SpecError: the name is neither the deployment's runner nor in TFMOT_OPS_ALLOWED_RUNNERS.
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
            remedy=f"leave the parameter `runner` empty, or ask the deployment's administrator to add the runner to "
            f"{ALLOWED_RUNNERS_VARIABLE}",
        )
