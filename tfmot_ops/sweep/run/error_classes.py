"""Error classes of failed cells, and the function that assigns a failed cell to a class.

A class matches by the type of the exception and the stage; patterns on the message are only for generic exceptions of
TensorFlow and tfmot, and each pattern names the package and version in which it was seen. An installed package can add
classes under the entry-point group `tfmot_ops.error_classes` (a list of `ErrorClass`). Added classes are matched before
the built-in classes, and replace a built-in class of the same name.
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
#: Error classes that a machine problem or a low limit may have caused; a cell with one of them is run again.
_OF_THE_MACHINE = frozenset({"timeout", "out_of_memory", "crash"})


@dataclass(frozen=True)
class ErrorClass:
    """One kind of failure.

    Attributes:
        name: name of the class in results.
        cause: what happened, in one sentence.
        remedy: what the reader should do.
        exceptions: class names of exceptions that always belong to this class.
        stages: stages in which a `CompatError` (a check of the cell failed) belongs to this class.
        patterns: (regular expression on the message; package, version and source file where the message was seen).
    """

    name: str
    cause: str
    remedy: str
    exceptions: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    patterns: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Compile the patterns, so that an invalid pattern is found when the class is defined.

        Raises:
            re.error: a pattern is not a valid regular expression.
        """
        for pattern, _ in self.patterns:
            re.compile(pattern)

    def matches(self, result: CompatResult) -> bool:
        """Whether a failed cell belongs to this class by its exception's class and its failed stage."""
        if result.error_type == "CompatError":
            return result.failed_stage in self.stages
        return result.error_type in self.exceptions

    def matches_text(self, result: CompatResult) -> bool:
        """Whether the message of a failed cell matches a pattern of this class."""
        return any(re.search(pattern, result.message) for pattern, _ in self.patterns)


#: The built-in classes, in the order in which they are matched.
ERROR_CLASSES = (
    ErrorClass(
        "timeout",
        "The cell ran longer than its time limit and was killed.",
        "Check the last stage in the cell's log; raise --time-limit if the architecture is only large.",
    ),
    ErrorClass(
        "out_of_memory",
        "The cell used more than its memory limit and was killed, or TensorFlow could not allocate memory.",
        "Raise --memory-limit on a larger machine, or give the architecture a smaller input.",
        exceptions=("MemoryError", "ResourceExhaustedError"),
        patterns=(("OOM when allocating tensor", "tensorflow 2.21, core/framework/op_kernel.cc"),),
    ),
    ErrorClass(
        "crash",
        "The cell's process was killed by a signal: native code aborted or accessed invalid memory.",
        "Run the repro under gdb, or with `python -X faulthandler`; report it to the package of the last frame.",
    ),
    ErrorClass(
        "sparsity_lost",
        "A kernel has fewer zeros than the recipe asks for.",
        "Check the quantiser of the layer in the message: it must keep the zeros of the pruned kernel.",
        exceptions=("SparsityLostError",),
    ),
    ErrorClass(
        "not_fully_int8",
        "The TFLite file contains float operations or type conversions inside the graph.",
        "Check the report of quantize for layers kept in float, and for tensors that should share one scale.",
        stages=(Stage.EXPORT,),
    ),
    ErrorClass(
        "disagreement",
        "The outputs of a rewritten model differ from those of the original.",
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
        "A layer cannot be pruned or quantised.",
        "Exclude it in the recipe's scope, or write it with standard layers.",
        exceptions=("UnsupportedModelError",),
        patterns=(
            ("Please initialize `Prune`", "tfmot 0.8.1, sparsity/keras/pruning_wrapper.py:172, 192"),
            (r"Layer .+ is not supported\. You can quantize", "tfmot 0.8.1, quantization/keras/quantize.py:442"),
        ),
    ),
    ErrorClass(
        "nested_model",
        "A nested model was not flattened.",
        "Normalise the model first: core.normalize flattens it.",
        patterns=(("Quantizing a keras Model inside another", "tfmot 0.8.1, quantization/keras/quantize.py:223"),),
    ),
    ErrorClass(
        "rank_mismatch",
        "A layer received a tensor with the wrong number of axes.",
        "Check the layer in the message; a rewrite removed or added an axis.",
        patterns=(
            (r"expected (min_|max_)?ndim=", "tf-keras 2.21, engine/input_spec.py:248, 266"),
            (r"[Ss]hape must be (at least )?rank", "tensorflow 2.21, core/framework/common_shape_fns"),
        ),
    ),
    ErrorClass(
        "unsupported_op",
        "TFLite has no equivalent of a TensorFlow operation in the model.",
        "Exclude the layer in the recipe's quantization.scope, or write it with operations that TFLite supports.",
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
        "No error class matches the failure.",
        "Read the cell's log, and add a class to the table when the reason is known.",
    ),
)


@cache
def _added() -> dict[str, ErrorClass]:
    """Name -> error class of installed packages; warns about a package that cannot be loaded."""
    found: dict[str, ErrorClass] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            classes = {error_class.name: error_class for error_class in entry.load()}
        except Exception as error:  # noqa: BLE001 - somebody else's package must not end a sweep
            warnings.warn(f"no error classes of {entry.value}: {type(error).__name__}: {error}", stacklevel=2)
        else:
            found = classes | found
    return found


@cache
def error_classes() -> dict[str, ErrorClass]:
    """Name -> class, those of installed packages first."""
    added = _added()
    return added | {kind.name: kind for kind in ERROR_CLASSES if kind.name not in added}


def classify(result: CompatResult) -> str:
    """Name of the error class of a failed cell that came with an exception."""
    known, added = error_classes(), _added()
    return (
        _first_match(added.values(), result)
        or _first_match((kind for name, kind in known.items() if name not in added), result)
        or _default_class(result)
    )


def _first_match(classes: Iterable[ErrorClass], result: CompatResult) -> str | None:
    known = list(classes)
    # A match of the message is more specific than the class `conversion` (the converter refused the model).
    text = next((kind.name for kind in known if kind.matches_text(result)), None)
    typed = next((kind.name for kind in known if kind.matches(result)), None)
    return text or typed if typed == "conversion" else typed or text


def _default_class(result: CompatResult) -> str:
    # Any other exception in the stage reload means that the saved model cannot be loaded.
    return "reload" if result.failed_stage is Stage.RELOAD else "unknown"


def reclassified(result: CompatResult) -> CompatResult:
    """A result with the error class of the current table; the class of a killed or crashed process stays."""
    died = result.error_type is None and result.error_class is not None
    if result.status is Status.OK or died:
        return result
    return result.model_copy(update={"error_class": classify(result)})


def is_lasting(result: CompatResult) -> bool:
    """Whether a result may be reused by a later sweep with the same inputs.

    A timeout, lack of memory or crash may be caused by the machine, or not occur with other limits.
    """
    return result.error_class not in _OF_THE_MACHINE
