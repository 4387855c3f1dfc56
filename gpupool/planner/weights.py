"""config.json -> the parts of a model's weights, counted. Pure; any process.

Sources: transformers' modeling_*.py for the shapes, vLLM's linear and vocabulary layers for what
tensor parallelism divides, DeepSeek-V2 (arXiv 2405.04434, section 2.1) for latent attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.planner.families import Family, has_bias
from gpupool.planner.fields import Fields
from gpupool.planner.model import Attention, Part, Split


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that everything below is made of."""

    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate: int
    expert_width: int  # of one expert
    shared_width: int  # of all shared experts together; 0: none
    vocab: int

    @property
    def kv_width(self) -> int:
        """Values of all key heads."""
        return self.num_kv_heads * self.head_size

    @property
    def q_width(self) -> int:
        """Values of all query heads."""
        return self.num_heads * self.head_size


def read_shape(fields: Fields, family: str) -> Shape:
    """The sizes by the names that all families have in common."""
    hidden, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    default = 256 if family.startswith("gemma") else max(hidden // num_heads, 1)
    if family == "gpt_oss":
        default = 64
    wide = 4 * hidden if family in ("gpt2", "falcon", "phi") else None
    intermediate = fields.size("intermediate_size", wide)
    expert_width = fields.count("moe_intermediate_size") or intermediate
    shared_width = fields.count("shared_expert_intermediate_size")
    return Shape(
        hidden=hidden,
        num_layers=fields.size("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(fields, family, num_heads),
        head_size=fields.count("head_dim") or default,
        intermediate=intermediate,
        expert_width=expert_width,
        shared_width=shared_width or fields.count("n_shared_experts") * expert_width,
        vocab=fields.size("vocab_size"),
    )


def _num_kv_heads(fields: Fields, family: str, num_heads: int) -> int:
    if family == "falcon" and not fields.flag("new_decoder_architecture"):
        return 1 if fields.flag("multi_query", True) else num_heads
    return fields.count("num_key_value_heads") or num_heads


def attention_parts(fields: Fields, family: Family, shape: Shape) -> list[Part]:
    """Queries, keys, values and the way back, of all layers."""
    if fields.count("kv_lora_rank"):
        return _latent_parts(fields, shape)
    layers, hidden = shape.num_layers, shape.hidden
    has_qkv, has_out = has_bias(fields, family.qkv_bias), has_bias(fields, family.out_bias)
    queries, keys = hidden * shape.q_width, 2 * hidden * shape.kv_width
    small = shape.q_width * has_qkv + shape.num_heads * family.has_sinks
    norms = 2 * shape.head_size if family.has_head_norms else 0
    if family.has_wide_norms:
        norms = shape.q_width + shape.kv_width
    return [
        Part("attention", 2 * queries * layers, Split.EVEN, is_linear=True),
        Part("keys and values", keys * layers, Split.KV, is_linear=True),
        Part("query biases", small * layers, Split.EVEN),
        Part("key and value biases", 2 * shape.kv_width * has_qkv * layers, Split.KV),
        Part("attention norms", (norms + hidden * has_out) * layers, Split.WHOLE),
    ]


def _latent_parts(fields: Fields, shape: Shape) -> list[Part]:
    """Keys and values come from one latent; what makes it is on every GPU."""
    layers, hidden, heads = shape.num_layers, shape.hidden, shape.num_heads
    latent, rope = fields.size("kv_lora_rank"), fields.size("qk_rope_head_dim")
    nope, value = fields.size("qk_nope_head_dim"), fields.size("v_head_dim")
    rank = fields.count("q_lora_rank")
    queries = heads * (nope + rope)
    down = hidden * (latent + rope) + hidden * rank
    up = latent * heads * (nope + value) + (rank or hidden) * queries + heads * value * hidden
    return [
        Part("attention", up * layers, Split.EVEN, is_linear=True),
        Part("latents", down * layers, Split.WHOLE, is_linear=True),
        Part("attention norms", (latent + rank) * layers, Split.WHOLE),
    ]


def feed_forward_parts(fields: Fields, family: Family, shape: Shape) -> list[Part]:
    """Dense layers, experts, shared experts and routers, of all layers."""
    num_experts, hidden = fields.count("num_experts"), shape.hidden
    has = has_bias(fields, family.mlp_bias)
    num_sparse = _num_sparse(fields, shape.num_layers) if num_experts else 0
    width = shape.expert_width
    shared_gate = hidden if fields.count("shared_expert_intermediate_size") else 0
    num_dense = shape.num_layers - num_sparse
    routed = _matrices(family, hidden, width) * num_experts
    biases = _biases(family, hidden, width) * has * num_experts * num_sparse
    router = (hidden + family.router_bias) * num_experts
    router += num_experts if fields.text("topk_method") == "noaux_tc" else 0
    dense = _matrices(family, hidden, shape.intermediate) * num_dense
    parts = [
        Part("feed-forward", dense, Split.EVEN, is_linear=True),
        Part("biases", _biases(family, hidden, shape.intermediate) * has * num_dense, Split.EVEN),
        Part("experts", routed * num_sparse, Split.EVEN, is_linear=True),
        Part("expert biases", biases, Split.EVEN),
        Part(
            "shared experts",
            _matrices(family, hidden, shape.shared_width) * num_sparse,
            Split.EVEN,
            is_linear=True,
        ),
        Part("routers", (router + shared_gate) * num_sparse, Split.WHOLE),
    ]
    return [part for part in parts if part.num_parameters]


def _num_sparse(fields: Fields, num_layers: int) -> int:
    """Layers with experts: not the first ones of DeepSeek, not those that Qwen names."""
    first = fields.count("first_k_dense_replace")
    step = fields.count("decoder_sparse_step") or fields.count("moe_layer_freq") or 1
    offset = 1 if fields.count("decoder_sparse_step") else 0
    named = fields.get("mlp_only_layers")
    dense = named if isinstance(named, list) else []
    return sum(1 for i in range(first, num_layers) if (i + offset) % step == 0 and i not in dense)


def _matrices(family: Family, hidden: int, width: int) -> int:
    return (3 if family.is_gated else 2) * hidden * width


def _biases(family: Family, hidden: int, width: int) -> int:
    return (2 if family.is_gated else 1) * width + hidden


def vocabulary_parts(fields: Fields, family: Family, shape: Shape) -> list[Part]:
    """The embedding, the head if it is one of its own, and the table of positions."""
    width = fields.count("word_embed_proj_dim") or shape.hidden
    rows = shape.vocab * width
    parts = [Part("embedding", rows, Split.VOCABULARY)]
    if not is_tied(fields, family):
        parts.append(Part("head", rows + shape.vocab * family.head_bias, Split.VOCABULARY))
    if family.has_positions:
        positions = fields.size("max_position_embeddings") + family.extra_positions
        parts.append(Part("positions", positions * shape.hidden, Split.WHOLE))
    if width != shape.hidden:
        parts.append(Part("projections", 2 * width * shape.hidden, Split.WHOLE))
    return parts


def is_tied(fields: Fields, family: Family) -> bool:
    """Whether the head is the embedding itself."""
    return fields.flag("tie_word_embeddings", family.is_tied)


def norm_part(family: Family, shape: Shape, num_norms: int) -> Part:
    """Every norm of the hidden size, the last one too."""
    one = shape.hidden * (2 if family.has_norm_bias else 1)
    return Part("norms", one * (num_norms * shape.num_layers + 1), Split.WHOLE)


def attentions(fields: Fields, shape: Shape, layer_windows: list[int | None]) -> list[Attention]:
    """What each layer keeps of a token."""
    if latent := fields.count("kv_lora_rank"):
        size = latent + fields.size("qk_rope_head_dim")
        return [Attention(1, size, 0, window, is_latent=True) for window in layer_windows]
    heads, size = shape.num_kv_heads, shape.head_size
    return [Attention(heads, size, size, window) for window in layer_windows]
