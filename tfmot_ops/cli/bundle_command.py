"""The command `tfmot-ops bundle`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tfmot_ops.errors import ArtifactError, SpecError
from tfmot_ops.system import files

#: Largest TFLite file that is read, in bytes: flatbuffers have offsets of 31 bits.
_LARGEST = 2**31 - 1


def bundle(  # noqa: PLR0917 - typer reads the options from the signature, nobody calls it
    file: Annotated[Path, typer.Argument(help="TFLite file, as `tfmot-ops optimize` writes it.", metavar="FILE")],
    target: Annotated[
        str, typer.Option(help="Device: a name that `tfmot-ops list targets` prints, or a .yaml or .json file.")
    ] = "cortex_m",
    dataset: Annotated[
        str | None,
        typer.Option(help="Data set whose test samples are the test vectors.", show_default="random numbers"),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=1000, help="Number of test vectors.")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the split or of the random numbers.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the bundle.", metavar="DIR")] = Path("bundle"),
    as_json: Annotated[bool, typer.Option("--json", help="Figures and files as JSON.")] = False,
) -> None:
    """Write C++ source, test vectors and cost of a file for a device.

    The C++ source has the file as an array and the operations that TFLite Micro has to register. Before anything is
    written, the file is checked against the target: its operations and its limits.
    """
    from tfmot_ops import core, targets
    from tfmot_ops.core.tflite.interpreter import raw_inputs
    from tfmot_ops.core.tflite.profile import layers_by_operation
    from tfmot_ops.targets.bundle import Vectors
    from tfmot_ops.targets.bundle import bundle as files_of
    from tfmot_ops.targets.kernels import run_reference

    device = targets.resolve_target(target)
    targets.require_tools(device)
    data = _read(file)
    operations = layers_by_operation(data)
    targets.require_operations(device, operations)
    inputs = raw_inputs(data, _inputs(data, dataset, samples, seed))
    measured = {"arena_bytes": float(core.arena_bytes(data)), "latency_ms": core.latency_ms(data).median}
    figures, _ = targets.cost_on(device, data, measured, inputs)
    targets.require_within_limits(device, figures)
    made = files_of(
        data, device, sorted(operations), figures, Vectors(inputs, run_reference(data, inputs, device.name))
    )
    files.check_writable(output)
    for name, content in made.items():
        files.write(output / name, content)
    if as_json:
        document = {"target": device.name, "figures": figures, "files": [str(output.resolve() / name) for name in made]}
        typer.echo(json.dumps(document, indent=2))
        return
    for name, figure in figures.items():
        typer.echo(f"{name}: {figure:,.10g}")
    typer.echo(f"bundle: {output.resolve()} ({', '.join(made)})")


def _read(file: Path) -> bytes:
    try:
        return files.read_limited(file, _LARGEST)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"the TFLite file {file} cannot be read",
            required="a TFLite file",
            received=getattr(error, "strerror", None) or str(error),
            remedy="give the path that `tfmot-ops optimize` prints behind `TFLite:`",
        ) from error


def _inputs(data: bytes, dataset: str | None, samples: int, seed: int) -> Any:
    """Float samples in the order of the file's inputs."""
    import numpy as np

    from tfmot_ops.core.tflite.interpreter import dequantized, input_names, make_interpreter

    if dataset is not None:
        from tfmot_ops.data.splits import load_dataset

        columns = load_dataset(dataset, seed).x_test
        if isinstance(columns, Mapping):
            missing = [name for name in input_names(data) if name not in columns]
            if missing:
                raise SpecError(
                    "the data set does not fit the file",
                    required=f"inputs {', '.join(input_names(data))}",
                    received=", ".join(columns),
                    remedy="give the data set with which the file was made",
                )
            return [columns[name][:samples] for name in input_names(data)]
        return columns[:samples]
    rng = np.random.default_rng(seed)
    drawn = []
    for detail in make_interpreter(data).get_input_details():
        shape, dtype = (samples, *detail["shape"][1:]), np.dtype(detail["dtype"])
        if not np.issubdtype(dtype, np.integer):
            drawn.append(rng.random(shape, dtype=np.float32))
        elif detail["quantization"][0] == 0.0:  # indices into a table of unknown size
            drawn.append(np.zeros(shape, dtype))
        else:
            limits = np.iinfo(dtype)
            raw = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
            drawn.append(dequantized(raw, detail))
    return drawn
