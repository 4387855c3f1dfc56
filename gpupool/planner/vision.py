"""Vision towers: a transformer of patches and what joins it to the language model. Pure.

Sources: transformers' modeling_siglip.py, modeling_clip.py, modeling_qwen2_5_vl.py,
modeling_qwen2_vl.py, modeling_pixtral.py.
"""

from __future__ import annotations

from gpupool.planner.fields import Fields
from gpupool.planner.model import Part, Split

GATED = ("qwen2_5_vl", "pixtral")
WITHOUT_BIASES = ("pixtral",)


def vision_parts(whole: Fields, text_hidden: int) -> list[Part]:
    """The tower and its projector; nothing for a model that only reads text."""
    vision = whole.inner("vision_config")
    if vision is None:
        return []
    kind = vision.text("model_type") or whole.text("model_type")
    is_qwen = whole.text("model_type").startswith("qwen2")
    # Qwen2-VL calls the tower's width embed_dim, and hidden_size what it gives out.
    hidden = vision.count("embed_dim") or vision.size("hidden_size")
    depth = vision.count("depth") or vision.size("num_hidden_layers")
    ratio = vision.count("mlp_ratio") or 4
    width = vision.size("intermediate_size", hidden * ratio)
    is_gated, has_biases = kind in GATED, kind not in WITHOUT_BIASES
    num_matrices = 3 if is_gated else 2
    one = 4 * hidden * hidden + num_matrices * hidden * width
    one += has_biases * (5 * hidden + (num_matrices - 1) * width)
    one += 2 * hidden if is_gated else 4 * hidden
    patch = vision.count("patch_size") or 14
    image = vision.count("image_size")
    num_patches = 0 if is_qwen or kind == "pixtral" else (image // patch) ** 2
    frames = vision.count("temporal_patch_size") or 1
    # A bias of the patches and a last norm.
    ends = 0 if is_qwen or kind == "pixtral" else 3
    table = (3 * patch * patch * frames + num_patches + ends) * hidden
    return [
        Part("vision tower", one * depth + table, Split.EVEN),
        Part("vision projector", _projector(whole, vision, hidden, text_hidden), Split.WHOLE),
    ]


def _projector(whole: Fields, vision: Fields, hidden: int, text_hidden: int) -> int:
    kind = whole.text("model_type")
    if kind.startswith("qwen2"):
        merged = hidden * (vision.count("spatial_merge_size") or 2) ** 2
        return hidden + merged * (merged + 1) + text_hidden * (merged + 1)
    if kind.startswith("gemma3"):
        return hidden * text_hidden + hidden
    return (hidden + text_hidden + 2) * text_hidden
