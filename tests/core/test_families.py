"""A small member of each family of tf_keras.applications goes through the whole chain; its graphs are golden files.

Each is made by the family's own building functions, with less depth and width than a named member. Where these are no
parameters, a named member ends early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tensorflow_model_optimization.python.core.quantization.keras.quantize_layer import QuantizeLayer
from tf_keras.src.applications import (
    convnext,
    densenet,
    efficientnet,
    efficientnet_v2,
    inception_resnet_v2,
    inception_v3,
    mobilenet,
    mobilenet_v2,
    mobilenet_v3,
    nasnet,
    regnet,
    resnet,
    resnet_rs,
    vgg16,
    vgg19,
    xception,
)

from tfmot_ops import core
from tfmot_ops.contract import Status
from tfmot_ops.core import keras
from tfmot_ops.core.graph.ir import Node, Tensor, tensors
from tfmot_ops.core.graph.read import read_graph
from tfmot_ops.core.keras.seeds import set_seed
from tfmot_ops.core.keras.wrapped import inner_layer
from tfmot_ops.core.quantization.range_quantizers import FixedRangeQuantizer

pytestmark = pytest.mark.slow

L = keras.layers
RECIPE = core.recipes.decode("sparse50_wi8_ai8")


def _options(shape: Any) -> dict[str, Any]:
    return {"include_top": False, "weights": None, "input_shape": shape, "pooling": "avg"}


def _until(model: Any, layer: str) -> Any:
    """The model up to a layer, and the mean over the image."""
    return keras.Model(model.input, L.GlobalAveragePooling2D()(model.get_layer(layer).output))


def _convnext(shape: Any) -> Any:
    return convnext.ConvNeXt([1, 1, 1, 1], [8, 16, 24, 32], **_options(shape))


def _densenet(shape: Any) -> Any:
    return densenet.DenseNet([1, 1, 1, 1], **_options(shape))


def _efficientnet(shape: Any) -> Any:
    blocks = efficientnet.DEFAULT_BLOCKS_ARGS[:2]
    return efficientnet.EfficientNet(0.5, 1.0, 224, blocks_args=blocks, **_options(shape))


def _efficientnet_v2(shape: Any) -> Any:
    """A stage of fused blocks and one of separate ones with squeeze-excite."""
    stages = [efficientnet_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"][index] for index in (1, 3)]
    return efficientnet_v2.EfficientNetV2(0.5, 0.5, 224, blocks_args=stages, **_options(shape))


def _inception_resnet_v2(shape: Any) -> Any:
    # The module's functions take their layers from this name, which its constructor sets.
    inception_resnet_v2.layers = L
    x = inputs = L.Input(shape)
    x = inception_resnet_v2.conv2d_bn(x, 16, 3, strides=2, padding="valid")
    for kind, scale in (("block35", 0.17), ("block17", 0.1), ("block8", 0.2)):
        x = inception_resnet_v2.inception_resnet_block(x, scale, kind, 1)
        x = L.MaxPooling2D(3, 2)(x)
    return keras.Model(inputs, L.GlobalAveragePooling2D()(x))


def _nasnet(shape: Any) -> Any:
    """Both reductions of the stem and a normal cell, each of some forty layers."""
    # Fewer filters would leave kernels of one weight, of which no half can be pruned.
    net = nasnet.NASNet(penultimate_filters=192, num_blocks=1, stem_block_filters=8, **_options(shape))
    return _until(net, "normal_concat_0")


def _mobilenet(shape: Any) -> Any:
    return _until(mobilenet.MobileNet(alpha=0.25, **_options(shape)), "conv_pw_4_relu")


def _mobilenet_v2(shape: Any) -> Any:
    return _until(mobilenet_v2.MobileNetV2(alpha=0.35, **_options(shape)), "block_2_add")


def _mobilenet_v3(shape: Any) -> Any:
    def blocks(x: Any, kernel: int, activation: Any, se_ratio: float) -> Any:
        x = mobilenet_v3._inverted_res_block(x, 1, 16, 3, 2, se_ratio, mobilenet_v3.relu, 0)
        return mobilenet_v3._inverted_res_block(x, 4, 16, kernel, 1, se_ratio, activation, 1)

    return mobilenet_v3.MobileNetV3(blocks, 64, **_options(shape))


def _regnet(shape: Any) -> Any:
    return regnet.RegNet([1, 1, 2, 1], [16, 24, 32, 40], 8, "Y", 224, **_options(shape))


def _resnet(shape: Any) -> Any:
    def stacks(x: Any) -> Any:
        return resnet.stack1(resnet.stack1(x, 8, 2, stride1=1, name="conv2"), 16, 1, name="conv3")

    return resnet.ResNet(stacks, preact=False, use_bias=True, **_options(shape))


def _resnet_rs(shape: Any) -> Any:
    groups = [{"input_filters": 8, "num_repeats": 2}, {"input_filters": 16, "num_repeats": 1}]
    return resnet_rs.ResNetRS(50, block_args=groups, **_options(shape))


def _resnet_v2(shape: Any) -> Any:
    def stacks(x: Any) -> Any:
        return resnet.stack2(resnet.stack2(x, 8, 2, name="conv2"), 16, 2, stride1=1, name="conv3")

    return resnet.ResNet(stacks, preact=True, use_bias=True, **_options(shape))


@dataclass(frozen=True)
class Member(core.Architecture):
    """An architecture of the catalogue, small."""

    make: Callable[[Any], Any] = field(kw_only=True)

    def build(self, *, seed: int = 0) -> Any:
        set_seed(seed)
        # Automatic names would tell which models this process made before.
        keras.backend.reset_uids()
        return self.make(self.built_shape)


def _members() -> Iterator[Member]:
    """By the constructor that says the pixel range, with the smallest image that leaves something to convolve."""
    yield Member("ConvNeXtTiny", "convnext", 32, make=_convnext)
    yield Member("DenseNet121", "densenet", 32, make=_densenet)
    yield Member("EfficientNetB0", "efficientnet", 32, make=_efficientnet)
    yield Member("EfficientNetV2B0", "efficientnet_v2", 32, make=_efficientnet_v2)
    yield Member("InceptionResNetV2", "inception_resnet_v2", 32, make=_inception_resnet_v2)
    make = inception_v3.InceptionV3
    yield Member("InceptionV3", "inception_v3", 75, make=lambda shape: _until(make(**_options(shape)), "mixed0"))
    yield Member("MobileNet", "mobilenet", 32, make=_mobilenet)
    yield Member("MobileNetV2", "mobilenet_v2", 32, make=_mobilenet_v2)
    yield Member("MobileNetV3Small", "mobilenet_v3", 32, make=_mobilenet_v3)
    yield Member("NASNetMobile", "nasnet", 32, make=_nasnet)
    yield Member("RegNetY002", "regnet", 32, make=_regnet)
    yield Member("ResNet50", "resnet", 32, make=_resnet)
    yield Member("ResNetRS50", "resnet_rs", 32, make=_resnet_rs)
    yield Member("ResNet50V2", "resnet_v2", 32, make=_resnet_v2)
    yield Member("VGG16", "vgg16", 32, make=lambda shape: _until(vgg16.VGG16(**_options(shape)), "block3_pool"))
    yield Member("VGG19", "vgg19", 32, make=lambda shape: _until(vgg19.VGG19(**_options(shape)), "block3_pool"))
    yield Member("Xception", "xception", 71, make=lambda shape: _until(xception.Xception(**_options(shape)), "add_1"))


MEMBERS = {member.family: member for member in _members()}


def test_every_family_has_a_member() -> None:
    assert set(MEMBERS) == {architecture.family for architecture in core.catalogue().values()}


# One of each kind of block; the graphs of all families are below, and a sweep takes every architecture through it all.
@pytest.mark.parametrize("family", ["convnext", "densenet", "efficientnet_v2", "mobilenet_v3", "nasnet", "resnet"])
def test_whole_chain(family: str) -> None:
    _check(MEMBERS[family])


@pytest.mark.parametrize("family", ["efficientnet", "mobilenet_v3"])
def test_whole_chain_for_images_of_any_size(family: str) -> None:
    _check(replace(MEMBERS[family], open_size=True))


def _check(member: Member) -> None:
    result = core.check_architecture(member, RECIPE, against_ptq=False)
    assert result.status is Status.OK, f"{result.failed_stage}: {result.message}"
    found = result.metrics
    assert (found["int8_mac_fraction"], found["float_ops"], found["requantize_ops"]) == (1.0, 0.0, 0.0)
    # After strip, the train step and in the file a loss raises; here the recipe has pruned something at all.
    assert found["sparsity"] >= 0.49


@pytest.mark.parametrize("family", MEMBERS)
def test_graphs_are_as_ever(family: str, golden: Callable[[str, str], None]) -> None:
    model = MEMBERS[family].build()
    normal, (quantized, _) = core.normalize(model), core.quantize(model, RECIPE)
    golden(f"graphs/{family}.txt", f"# normalize\n{_dump(normal)}\n# quantize\n{_dump(quantized)}")


def _dump(model: Any) -> str:
    """The graph of a model, a line a call: path, class or function of TensorFlow, inputs, output shape, quantisers."""
    graph = read_graph(model)
    names = {tensor: graph.input_names[tensor] for tensor in graph.inputs()}
    lines = [f"{names[tensor]} = input: {_shape(tensor)}" for tensor in graph.inputs()]
    for node in graph.nodes:
        results = tensors(node.outputs)
        names |= {t: f"{node.path}#{index}" if index else node.path for index, t in enumerate(results)}
        kind = getattr(node.layer, "symbol", None) or type(inner_layer(node.layer)).__name__
        inputs = ", ".join(names[tensor] for tensor in node.inputs())
        shapes = ", ".join(_shape(tensor) for tensor in results)
        lines.append(f"{node.path} = {kind}({inputs}): {shapes}{''.join(f' | {part}' for part in _quantisers(node))}")
    lines.append("return " + ", ".join(names[tensor] for tensor in tensors(graph.outputs)))
    return "\n".join(lines) + "\n"


def _shape(tensor: Tensor) -> str:
    return "x".join("?" if size is None else str(size) for size in tensor.shape)


def _quantisers(node: Node) -> Iterator[str]:
    """What a wrapper puts on a call."""
    config = getattr(node.layer, "quantize_config", None)
    if isinstance(node.layer, QuantizeLayer):
        yield type(node.layer.quantizer).__name__
    if config is None:
        return
    if config.keep_float:
        yield "float"
    for name, quantizer in config.weights.items():
        yield f"{name} int8 {'per channel' if quantizer.per_channel else 'per tensor'}, {_zeros(quantizer)}"
    if isinstance(config.output, FixedRangeQuantizer):
        yield f"output {config.output.low} to {config.output.high}"
    elif config.output is not None:
        yield f"output {type(config.output).__name__}"


def _zeros(quantizer: Any) -> str:
    return f"zeros {quantizer.required_sparsity:g}" if quantizer.keep_sparsity else "no zeros held"
