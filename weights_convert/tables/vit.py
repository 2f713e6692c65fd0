"""Vision transformers with DeiT's names: A-ViT, EViT."""

RULES = (
    (r"", "tokens"),
    (r"patch_embed\.proj", "tokens"),
    (r"(norm|head)", r"\1"),
    (r"blocks\.(\d+)\.(norm[12])", r"blocks_\1/\2"),
    (r"blocks\.(\d+)\.attn\.(qkv|proj)", r"blocks_\1/attn/\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])", r"blocks_\1/mlp/\2"),
)
