"""Shallow-Deep Networks: VGG-16, ResNet-56, MobileNet, static or with internal classifiers (``output``)."""

_EXIT = (
    (r"layers\.(\d+)\.output", r"layers_\1_output"),
    (r"layers\.(\d+)\.output\.linear", r"layers_\1_output/linear"),
)

VGG_RULES = (
    *_EXIT,
    (r"layers\.13\.layers\.1", "layers_13"),
    (r"layers\.(\d+)\.layers\.0", r"layers_\1/conv"),
    (r"layers\.(\d+)\.layers\.1", r"layers_\1/bn"),
    (r"end_layers\.([02])", r"end_layers_\1"),
)

_STEM_AND_HEAD = (
    (r"init_conv\.0", "conv1"),
    (r"init_conv\.1", "bn1"),
    (r"end_layers\.2", "fc"),
)

RESNET_RULES = (
    *_EXIT,
    *_STEM_AND_HEAD,
    (r"layers\.(\d+)\.layers\.0\.0", r"layers_\1/conv1"),
    (r"layers\.(\d+)\.layers\.0\.1", r"layers_\1/bn1"),
    (r"layers\.(\d+)\.layers\.0\.3", r"layers_\1/conv2"),
    (r"layers\.(\d+)\.layers\.0\.4", r"layers_\1/bn2"),
    (r"layers\.(\d+)\.layers\.1\.0", r"layers_\1_downsample/conv"),
    (r"layers\.(\d+)\.layers\.1\.1", r"layers_\1_downsample/bn"),
)

MOBILENET_RULES = (
    *_EXIT,
    *_STEM_AND_HEAD,
    (r"layers\.(\d+)\.layers\.0", r"layers_\1/depthwise"),
    (r"layers\.(\d+)\.layers\.1", r"layers_\1/bn1"),
    (r"layers\.(\d+)\.layers\.3", r"layers_\1/pointwise"),
    (r"layers\.(\d+)\.layers\.4", r"layers_\1/bn2"),
)
