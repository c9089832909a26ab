"""Tables and limits from TensorRT's documentation of ONNX operators, which `export.tensorrt.check` applies.

Sources: "Supported ONNX Operators" of onnx-tensorrt and the ONNX operator support matrix of TensorRT.
"""

from onnx import TensorProto

MIN_OPSET = 16  # RoiAlign of earlier opsets is silently unaligned
MAX_TOPK = 3840
MAX_NMS_BOXES = 5000  # per image

UNSUPPORTED = {
    *("AffineGrid", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
    *("BlackmanWindow", "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det"),
    *("DynamicQuantizeLinear", "HammingWindow", "HannWindow", "ImageDecoder", "MatMulInteger", "MaxRoiPool"),
    *("MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional"),
    *("OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "RegexFullMatch", "STFT"),
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
    *("SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat", "StringNormalizer"),
    *("StringSplit", "TfIdfVectorizer", "Unique"),
}

FLOAT32_ONLY = {
    *("Exp", "NonMaxSuppression", "Pow", "ReduceL2", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
    *("RoiAlign", "Softmax", "TopK"),
}
"""Sums, powers and coordinates that overflow or round too coarsely in half precision."""

SHAPE_OPERANDS = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Tile": (1,),
    "TopK": (1,),
}
"""Indices of the inputs that decide the output's shape."""

AXES = {"CumSum": 1, "Pad": 3, "Slice": 3, "Squeeze": 1, "Unsqueeze": 1}
"""Index of the input that holds the axes; for Reduce*, it is 1."""

RESIZE_ATTRIBUTES = {
    "mode": ("nearest", "linear"),
    "coordinate_transformation_mode": (
        *("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"),
    ),
    "keep_aspect_ratio_policy": ("stretch",),
}
"""The supported values of Resize's attributes; the first is ONNX's default."""

_TYPE_NAMES = ("BFLOAT16", "BOOL", "FLOAT", "FLOAT16", "FLOAT8E4M3FN", "INT4", "INT8", "INT32", "INT64", "UINT8")
SUPPORTED_TYPES = {TensorProto.UNDEFINED, *map(TensorProto.DataType.Value, _TYPE_NAMES)}
"""UNDEFINED is the type of what is not a tensor, and of tensors whose type shape inference cannot tell.

DOUBLE is missing: TensorRT accepts it, but computes it in FLOAT.
"""
