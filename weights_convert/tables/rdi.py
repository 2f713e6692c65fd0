"""RDI-Nets: a ResNet whose exits are sequences, named by their number."""

_BLOCK = r"group(\d)_layer(\d+)"

RULES = (
    (r"(conv1|bn1|fc)", r"\1"),
    (_BLOCK + r"\.(conv1|bn1|conv2|bn2)", r"group\1_layer\2/\3"),
    (_BLOCK + r"\.downsample\.0", r"group\1_layer\2_downsample/conv"),
    (_BLOCK + r"\.downsample\.1", r"group\1_layer\2_downsample/bn"),
    (r"branch_layer([12])\.1", r"branch_layer\1/conv1"),
    (r"branch_layer([12])\.2", r"branch_layer\1/bn1"),
    (r"branch_layer([12])\.5", r"branch_layer\1/conv2"),
    (r"branch_layer([12])\.6", r"branch_layer\1/bn2"),
    (r"branch_layer([34])\.1\.(conv1|bn1|conv2|bn2)", r"branch_layer\1/block/\2"),
    (r"branch_layer([12])\.9", r"branch_layer\1/linear"),
    (r"branch_layer([34])\.4", r"branch_layer\1/linear"),
    (r"branch_layer([56])\.2", r"branch_layer\1/linear"),
)
