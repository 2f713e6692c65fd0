"""Vision transformers with DeiT's names: A-ViT, EViT, AdaViT (whose gates read the class token or ``norm1``)."""

RULES = (
    (r"", "tokens"),
    (r"patch_embed\.proj", "tokens"),
    (r"(norm|head)", r"\1"),
    (r"blocks\.(\d+)\.(norm[12])", r"blocks_\1/\2"),
    (r"blocks\.(\d+)\.attn\.(qkv|query|key|value|proj)", r"blocks_\1/attn/\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12])", r"blocks_\1/mlp/\2"),
    (r"blocks\.(\d+)\.attn\.token_select\.mlp_head", r"blocks_\1_token_select"),
    (r"blocks\.(\d+)\.(head|layer)_select\.mlp_head", r"blocks_\1_\2_select"),
)
