"""The rules of normalisation, in modules by kind of layer. A rule is `(call, rewriter) -> new outputs, or None`."""

from tfmot_ops.core.graph.rules.activations import activation_layer, fused_activation, hard_swish, two_sided_relu
from tfmot_ops.core.graph.rules.arithmetic import arithmetic, function_as_layer
from tfmot_ops.core.graph.rules.attention import attention, einsum_dense, masked_softmax, multi_head_attention
from tfmot_ops.core.graph.rules.bands import cumulative_sum, local_response
from tfmot_ops.core.graph.rules.casts import redundant_cast
from tfmot_ops.core.graph.rules.convolutions import (
    dense_on_image,
    depthwise_of_groups,
    separable,
    time_distributed,
    transposed_over_one_axis,
)
from tfmot_ops.core.graph.rules.masks import masked_by_hand, masked_maximum, masked_product
from tfmot_ops.core.graph.rules.means import mean_over_size_one
from tfmot_ops.core.graph.rules.merges import average, merge_of_many, sum_function
from tfmot_ops.core.graph.rules.padding import pad_with_minus_infinity
from tfmot_ops.core.graph.rules.patches import patches
from tfmot_ops.core.graph.rules.pools import pool
from tfmot_ops.core.graph.rules.products import einsum, product
from tfmot_ops.core.graph.rules.recurrent import recurrent
from tfmot_ops.core.graph.rules.roots import division_by_root, inverse_root, learned_power, variance
from tfmot_ops.core.graph.rules.softmaxes import guarded_softmax, softmax_by_hand, softmax_of_inner_axis
from tfmot_ops.core.graph.rules.standardization import (
    cosine,
    normalization,
    normalization_of_axes,
    normalization_of_batch,
    preprocessing,
)
from tfmot_ops.core.graph.rules.statistics import reduction, unit_length
from tfmot_ops.core.graph.rules.volumes import pool_of_volume

#: In order of precedence: the first rule that does not return None replaces the call.
RULES = (
    redundant_cast,
    masked_by_hand,
    masked_maximum,
    softmax_by_hand,
    softmax_of_inner_axis,
    variance,
    division_by_root,
    inverse_root,
    mean_over_size_one,
    product,
    einsum,
    patches,
    pool,
    pool_of_volume,
    two_sided_relu,
    arithmetic,
    function_as_layer,
    sum_function,
    merge_of_many,
    pad_with_minus_infinity,
    preprocessing,
    separable,
    transposed_over_one_axis,
    time_distributed,
    einsum_dense,
    multi_head_attention,
    attention,
    masked_softmax,
    depthwise_of_groups,
    dense_on_image,
    fused_activation,
    activation_layer,
    hard_swish,
    normalization,
    average,
)

#: The same for QAT. PTQ and float files leave recurrent layers and statistics to the converter.
QAT_RULES = (
    recurrent,
    masked_product,
    guarded_softmax,
    reduction,
    unit_length,
    normalization_of_axes,
    normalization_of_batch,
    cosine,
    cumulative_sum,
    local_response,
    learned_power,
    *RULES,
)
