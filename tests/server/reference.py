"""30 fixed prompts, and what a direct forward pass gives for them."""

from __future__ import annotations

from functools import cache

from tests import demo_model

Scores = list[tuple[list[int], list[float], list[int]]]

PROMPTS = [
    "The capital of France is Paris.",
    " leading space",
    "  two leading spaces",
    "\nA line first",
    "trailing newline\n",
    "tabs\tand\tspaces",
    "x",
    "7",
    "é",
    "Grüße aus München, schöne Straße",
    "Привет, как дела?",
    "日本語のテキストを処理します。",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "👩‍👩‍👧‍👦 family and 🏳️‍🌈 flag",
    "e\u0301 combining and \u00e9 composed",
    "zero\u200bwidth\u00a0and no-break",
    "∑ ∫ ∂ √ ≤ ≥ ≠ ∞",
    "def f(x):\n    return x ** 2\n\nprint(f(3))",
    '{"key": [1, 2.5, null, true]}',
    "SELECT * FROM users WHERE id = 1; -- comment",
    "<html><body class='a'>text</body></html>",
    "https://example.org/path?query=1&other=%20",
    "1234567890 0987654321 3.14159 -42 1e-9",
    "!!!???...,,,;;;:::",
    "qzxv wkjp zzqj xvbq plmk jhgf",
    "colorless green ideas sleep furiously table",
    "the the the the the the the the the the",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi there!<|im_end|>",
    "The quick brown fox jumps over the lazy dog. " * 100,
]


@cache
def scores() -> Scores:
    """Of each prompt: ids by the tokenizer; by one forward pass in fp32 the log-probability of
    each token after the first, and the best token at its place."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo_model.model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        own = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])
        expected.append((ids, own[:, 0].tolist(), logits.argmax(-1).tolist()))
    return expected
