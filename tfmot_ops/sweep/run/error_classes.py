"""Why cells fail: the error classes, as data, and the matching of a failed cell to one.

Exception types and stages decide first. Patterns are only for what TensorFlow and tfmot raise as bare text; each says
where and in which version it was seen. An installed package adds classes under the entry-point group
`tfmot_ops.error_classes` (a list of `ErrorClass`); they are asked before ours, and take the place of ours of the same
name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

from tfmot_ops.contract import CompatResult, Stage, Status

ENTRY_POINT_GROUP = "tfmot_ops.error_classes"
#: What a sick machine may have caused, or a limit that is higher now.
_OF_THE_MACHINE = frozenset({"timeout", "out_of_memory", "crash"})


@dataclass(frozen=True)
class ErrorClass:
    """One kind of failure.

    Attributes:
        name: as it stands in results.
        cause: what has happened, in a sentence.
        remedy: what to do about it.
        exceptions: class names of exceptions that always mean it.
        stages: stages in which `CompatError`, which says that a promise was not kept, means it.
        patterns: regular expression -> package, version and place where a message of this form was seen.
    """

    name: str
    cause: str
    remedy: str
    exceptions: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    patterns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a pattern that is none when it is written, not when a cell fails.

        Raises:
            re.error: a pattern is no regular expression.
        """
        for pattern, _ in self.patterns:
            re.compile(pattern)

    def matches(self, result: CompatResult) -> bool:
        """Whether a failed cell is of this kind, by its exception's class and stage."""
        if result.error_type == "CompatError":
            return result.failed_stage in self.stages
        return result.error_type in self.exceptions

    def matches_text(self, result: CompatResult) -> bool:
        """Whether the message has a form known from elsewhere."""
        return any(re.search(pattern, result.message) for pattern, _ in self.patterns)


#: In the order they are asked.
ERROR_CLASSES = (
    ErrorClass(
        "timeout",
        "The cell's process was ended, as it took longer than a cell may.",
        "Look at the last stage in its log; raise --time-limit if the architecture is only large.",
    ),
    ErrorClass(
        "out_of_memory",
        "The cell's process was ended at its memory limit, or TensorFlow could not allocate.",
        "Raise --memory-limit on a larger machine, or give the architecture a smaller input.",
        exceptions=("MemoryError", "ResourceExhaustedError"),
        patterns=(("OOM when allocating tensor", "tensorflow 2.21, core/framework/op_kernel.cc"),),
    ),
    ErrorClass(
        "crash",
        "The cell's process died by a signal: native code aborted or read memory that is not its own.",
        "Run the repro under gdb, or `python -X faulthandler`; report it to the package of the last frame.",
    ),
    ErrorClass(
        "sparsity_lost",
        "A kernel has fewer zeros than the recipe asks for.",
        "Find the layer the message names; its quantiser has to keep the mask.",
        exceptions=("SparsityLostError",),
    ),
    ErrorClass(
        "not_fully_int8",
        "The TFLite file holds float operations or conversions inside the graph.",
        "Look in the report of quantize for layers kept in float, and for ties that are missing.",
        stages=(Stage.EXPORT,),
    ),
    ErrorClass(
        "disagreement",
        "A rewritten model does not compute what the original does.",
        "Compare the graph before and after, layer by layer.",
        stages=(Stage.NORMALIZE, Stage.QUANTIZE, Stage.TRAIN, Stage.INVOKE, Stage.AGREE),
    ),
    ErrorClass(
        "reload",
        "A saved model cannot be read back, or gives different outputs.",
        "Check which layer's configuration or state the file lacks.",
        stages=(Stage.RELOAD,),
    ),
    ErrorClass(
        "unsupported_layer",
        "A layer has no form that can be pruned or quantised.",
        "Exclude it in the recipe's scope, or write it with standard layers.",
        exceptions=("UnsupportedModelError",),
        patterns=(
            ("Please initialize `Prune`", "tfmot 0.8.1, sparsity/keras/pruning_wrapper.py:172, 192"),
            (r"Layer .+ is not supported\. You can quantize", "tfmot 0.8.1, quantization/keras/quantize.py:442"),
        ),
    ),
    ErrorClass(
        "nested_model",
        "A model inside a model was not opened.",
        "Normalise the model first: core.normalize flattens it.",
        patterns=(("Quantizing a keras Model inside another", "tfmot 0.8.1, quantization/keras/quantize.py:223"),),
    ),
    ErrorClass(
        "rank_mismatch",
        "A layer was given a tensor with another number of axes than it takes.",
        "Look at the layer the message names; a rewrite dropped or added an axis.",
        patterns=(
            (r"expected (min_|max_)?ndim=", "tf-keras 2.21, engine/input_spec.py:248, 266"),
            (r"[Ss]hape must be (at least )?rank", "tensorflow 2.21, core/framework/common_shape_fns"),
        ),
    ),
    ErrorClass(
        "unsupported_op",
        "TFLite has no operation for something the model computes.",
        "Exclude the layer in the recipe's quantization.scope, or write it with operations that TFLite has.",
        patterns=(
            ("neither a custom op nor a flex op", "tensorflow 2.21, TFLite converter, tfl-legalize"),
            ("failed to legalize operation", "tensorflow 2.21, TFLite converter"),
            ("Didn't find op for builtin opcode", "ai-edge-litert 2.1, interpreter"),
        ),
    ),
    ErrorClass(
        "conversion",
        "The TFLite converter refused the model.",
        "Read the converter's own message in the cell's log.",
        exceptions=("ExportError", "ConverterError"),
    ),
    ErrorClass(
        "unknown",
        "Nothing in the table fits.",
        "Read the cell's log, and add a class to the table when the reason is known.",
    ),
)


@cache
def _added() -> dict[str, ErrorClass]:
    """Name -> class of installed packages; a package that cannot be loaded has none, and says so."""
    found: dict[str, ErrorClass] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            classes = {each.name: each for each in entry.load()}
        except Exception as error:  # noqa: BLE001 - somebody else's package must not end a sweep
            warnings.warn(f"no error classes of {entry.value}: {type(error).__name__}: {error}", stacklevel=2)
        else:
            found = classes | found
    return found


@cache
def error_classes() -> dict[str, ErrorClass]:
    """Name -> class, those of installed packages first."""
    added = _added()
    return added | {each.name: each for each in ERROR_CLASSES if each.name not in added}


def classify(result: CompatResult) -> str:
    """Name of the error class of a failed cell that came with an exception."""
    known, added = error_classes(), _added()
    return (
        _asked(added.values(), result)
        or _asked((each for name, each in known.items() if name not in added), result)
        or _left(result)
    )


def _asked(classes: Iterable[ErrorClass], result: CompatResult) -> str | None:
    known = list(classes)
    # A reason in the text says more than "the converter refused".
    text = next((each.name for each in known if each.matches_text(result)), None)
    typed = next((each.name for each in known if each.matches(result)), None)
    return text or typed if typed == "conversion" else typed or text


def _left(result: CompatResult) -> str:
    # Whatever cannot be read back is a matter of saving, whoever raises.
    return "reload" if result.failed_stage is Stage.RELOAD else "unknown"


def reclassified(result: CompatResult) -> CompatResult:
    """A result as the table has it now; what a process died of stays as it was seen."""
    died = result.error_type is None and result.error_class is not None
    if result.status is Status.OK or died:
        return result
    return result.model_copy(update={"error_class": classify(result)})


def is_lasting(result: CompatResult) -> bool:
    """Whether a result is the cell's own, and stands for the next run with the same inputs.

    A timeout, too little memory and a crash may be the machine's fault, or gone under other limits.
    """
    return result.error_class not in _OF_THE_MACHINE
