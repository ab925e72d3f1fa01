"""Facts about PEFT that its config files leave unsaid. The API process cannot ask PEFT itself, which imports torch."""

from collections.abc import Mapping

_Q_V = ("q_proj", "v_proj")
_FUSED = ("query_key_value",)
DEFAULT_TARGETS: Mapping[str, tuple[str, ...]] = {
    "bloom": _FUSED,
    "btlm": ("c_proj", "c_attn"),
    "chatglm": _FUSED,
    "codegen": ("qkv_proj",),
    "falcon": _FUSED,
    "gemma": _Q_V,
    "gemma2": _Q_V,
    "gemma3_text": _Q_V,
    "gpt2": ("c_attn",),
    "gpt_bigcode": ("c_attn",),
    "gpt_neo": _Q_V,
    "gpt_neox": _FUSED,
    "gptj": _Q_V,
    "llama": _Q_V,
    "llama4": _Q_V,
    "mistral": _Q_V,
    "mixtral": _Q_V,
    "mpt": ("Wqkv",),
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "opt": _Q_V,
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "qwen2": _Q_V,
    "qwen3": _Q_V,
    "stablelm": _Q_V,
}
"""`model_type` of a decoder-only base -> what a config without `target_modules` means, as of peft 0.21."""
TASK_TYPES = frozenset({None, "CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
"""Tasks whose adapters PEFT loads on a language model and computes like any other; heads of theirs are in HEADS."""
HEADS = frozenset({"v_head", "score", "classifier", "qa_outputs"})
"""Modules beside the language model that trainers save: PEFT passes over their tensors where the base has no such module."""
