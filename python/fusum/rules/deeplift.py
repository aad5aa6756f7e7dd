"""DeepLift's table."""

from __future__ import annotations

from . import composed, elementwise, normalise, pools, straight
from .intercept import Table
from .names import operators

LINEAR = operators("linear")
BILINEAR = operators("bilinear")

HANDLERS = {
    **dict.fromkeys(BILINEAR, straight.product),
    # The last three lack the pointwise tag in some versions of torch.
    **dict.fromkeys(["exp", "sigmoid", "hardswish", "_prelu_kernel", "leaky_relu"], elementwise.elementwise),
    "relu": elementwise.relu,
    "mul": elementwise.multiply,
    "multiply": elementwise.multiply,
    "div": elementwise.divide,
    "where": elementwise.where,
    "masked_fill": elementwise.masked_fill,
    "rrelu_with_noise": elementwise.rrelu,
    "glu": elementwise.glu,
    "log_sigmoid_forward": elementwise.log_sigmoid,
    **dict.fromkeys(["_softmax", "_safe_softmax"], normalise.softmax),
    "_log_softmax": normalise.log_softmax,
    "logsumexp": normalise.logsumexp,
    "native_layer_norm": normalise.layer_norm,
    "rms_norm": normalise.rms_norm,
    "native_group_norm": normalise.group_norm,
    **dict.fromkeys(["batch_norm", "native_batch_norm", "cudnn_batch_norm"], normalise.batch_norm),
    "instance_norm": normalise.instance_norm,
    **dict.fromkeys(["max_pool2d_with_indices", "max_pool3d_with_indices"], pools.max_pool),
    **dict.fromkeys(["adaptive_max_pool2d", "adaptive_max_pool3d"], pools.max_pool),
    **dict.fromkeys(["max", "min"], pools.max_dim),
    **dict.fromkeys(["amax", "amin"], pools.extreme),
    **dict.fromkeys(["maximum", "minimum"], pools.of_two),
    "scaled_dot_product_attention": composed.attention,
    "_scaled_dot_product_flash_attention_for_cpu": composed.flash_attention,
    **dict.fromkeys(["lstm", "gru", "rnn_tanh", "rnn_relu"], composed.recurrent),
    **dict.fromkeys(["lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"], composed.cell),
}

TABLE = Table(LINEAR, HANDLERS, straight.line, one=BILINEAR, elementwise=elementwise.elementwise, relu=1)
