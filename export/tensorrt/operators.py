"""What TensorRT's documentation says about ONNX operators; the rules in `export.tensorrt.check` apply these tables.

Sources: "Supported ONNX Operators" of onnx-tensorrt and the ONNX operator support matrix of TensorRT.
"""

from onnx import TensorProto

MIN_OPSET = 16  # RoiAlign of earlier opsets is silently unaligned
MAX_TOPK = 3840
MAX_NMS_BOXES = 5000  # per image

UNSUPPORTED = frozenset(
    [
        "AffineGrid",
        "Bernoulli",
        "BitShift",
        "BitwiseAnd",
        "BitwiseNot",
        "BitwiseOr",
        "BitwiseXor",
        "BlackmanWindow",
        "CenterCropPad",
        "Col2Im",
        "Compress",
        "ConcatFromSequence",
        "ConvInteger",
        "DFT",
        "Det",
        "DynamicQuantizeLinear",
        "HammingWindow",
        "HannWindow",
        "ImageDecoder",
        "MatMulInteger",
        "MaxRoiPool",
        "MaxUnpool",
        "MelWeightMatrix",
        "Multinomial",
        "NegativeLogLikelihoodLoss",
        "Optional",
        "OptionalGetElement",
        "OptionalHasElement",
        "QLinearConv",
        "QLinearMatMul",
        "RegexFullMatch",
        "STFT",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SoftmaxCrossEntropyLoss",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
        "StringSplit",
        "TfIdfVectorizer",
        "Unique",
    ]
)

FLOAT32_ONLY = frozenset(
    [
        "Exp",
        "NonMaxSuppression",
        "Pow",
        "ReduceL2",
        "ReduceMean",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "RoiAlign",
        "Softmax",
        "TopK",
    ]
)
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
    "coordinate_transformation_mode": tuple(
        ["half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"]
    ),
    "keep_aspect_ratio_policy": ("stretch",),
}
"""The supported values of Resize's attributes; the first is ONNX's default."""

SUPPORTED_TYPES = frozenset(
    {
        TensorProto.UNDEFINED,  # unknown to shape inference, or not a tensor
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.INT64,
        TensorProto.INT32,
        TensorProto.INT8,
        TensorProto.INT4,
        TensorProto.UINT8,
        TensorProto.BOOL,
    }
)
"""DOUBLE is missing: TensorRT accepts it, but computes it in FLOAT."""
