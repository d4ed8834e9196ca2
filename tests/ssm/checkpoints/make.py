"""Makes the checkpoints in this folder with `transformers`, and what it computes with them.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0
    python tests/ssm/checkpoints/make.py

are the versions with which the committed ones were made; each `reference.safetensors` has them in its metadata. Every
parameter is what `transformers` starts from plus N(0, 0.3^2): no zero or one hides an error, and the recurrence does so
much that each part of it can be seen in the logits.

Importing this module imports neither torch nor transformers.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIZES = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2}
NO_TOKENS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
# Biases, other sizes and an epsilon that is as large as what it is added to, in one of each kind.
OTHER = {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3, "layer_norm_epsilon": 1e-2, "expand": 3}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba-tied": ("Mamba", {"state_size": 5}),
    "mamba-untied": ("Mamba", {"state_size": 4, "tie_word_embeddings": False, "time_step_rank": 3, **OTHER}),
    "mamba2-1-group": (
        "Mamba2",
        {"state_size": 6, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4, "tie_word_embeddings": True},
    ),
    "mamba2-2-groups": (
        "Mamba2",
        {
            "state_size": 3,
            "num_heads": 4,
            "head_dim": 12,
            "n_groups": 2,
            "chunk_size": 5,
            "time_step_limit": (0.02, 0.5),
            **OTHER,
        },
    ),
}
LENGTHS = (11, 3)  # more than two chunks and no multiple of one, and less than one
BATCH = 2
NOISE = 0.3


def perturbed(name: str, seed: int = 0, noise: float = NOISE, **changes: Any) -> Any:
    """The model of a name, with other sizes if they are given, and random parameters."""
    import torch
    import transformers

    kind, options = CONFIGS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **NO_TOKENS, **options, **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * torch.randn(parameter.shape)
    return model


def computed(model: Any, length: int) -> dict[str, Any]:
    """Random tokens (B, L), their logits (B, L, V), and the hidden states behind each block (layers, B, L, D)."""
    import torch

    tokens = torch.randint(model.config.vocab_size, (BATCH, length))
    with torch.no_grad():
        out = model(tokens, output_hidden_states=True, use_cache=False)
    # The last hidden state is behind the final norm.
    return {"tokens": tokens, "logits": out.logits, "hidden": torch.stack(out.hidden_states[:-1])}


def main() -> None:
    """Write all of them."""
    import safetensors
    import torch
    import transformers
    from safetensors.torch import save_file

    versions = {module.__name__: module.__version__ for module in (torch, transformers, safetensors)}
    for seed, name in enumerate(CONFIGS):
        folder = HERE / name
        model = perturbed(name, seed)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        found = {f"{key}_{length}": x for length in LENGTHS for key, x in computed(model, length).items()}
        save_file(found, folder / "reference.safetensors", metadata=versions)
        print(name, json.dumps(versions), float(found[f"logits_{LENGTHS[0]}"].abs().max()))


if __name__ == "__main__":
    main()
