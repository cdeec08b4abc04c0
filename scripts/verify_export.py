"""Checks with transformers that a model burn-lti exported is the model burn-lti has.

usage: python scripts/verify_export.py MODEL_DIR [LOGITS.safetensors]

MODEL_DIR is a Hugging Face folder, such as the `student` that `burn-lti distill` writes. It must
load in float32 with no tensor missing, left over or of another shape. LOGITS.safetensors, as
`burn-lti logits` writes it, holds `input_ids` (int64 [batch, tokens]) and `logits` (float32
[batch, tokens, vocabulary]); transformers' logits may differ from them by at most 1e-3.

Exit status: 0 if all holds, 1 if the export is wrong, 2 if the command line is.
Needs torch, transformers and safetensors; nothing is fetched from the network.
"""

import argparse
import os
import sys
from pathlib import Path

# Set before the import, which reads it: a folder on disk is all there is to look at.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

TOLERANCE = 1e-3
PROMPT = "There was a"
NEW_TOKENS = 40


def fail(message: str) -> None:
    sys.exit(f"FAILED: {message}")


def load(folder: Path):
    """The model in float32, after every tensor has found its place."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    # transformers forgives some names without listing them (a tied head, old buffers): count too.
    files = sorted(folder.glob("*.safetensors"))
    stored = set()
    for file in files:
        with safe_open(file, "pt") as tensors:
            stored |= set(tensors.keys())
    info = {key: sorted(map(str, info.get(key) or [])) for key in
            ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}
    info["unused_keys"] = sorted(stored - set(model.state_dict()))
    for key, names in info.items():
        print(f"{key:16} {', '.join(names) or 'none'}")
    if any(info.values()):
        fail("the file and the model do not have the same tensors")
    return model.eval()


@torch.no_grad()
def compare(model, file: Path) -> None:
    """Exits if the logits in `file` are not those of the model."""
    ours = load_file(file)
    for name, dtype in {"input_ids": torch.int64, "logits": torch.float32}.items():
        if name not in ours:
            fail(f"{file} has no tensor '{name}'")
        if ours[name].dtype != dtype:
            fail(f"'{name}' in {file} is {ours[name].dtype}, not {dtype}")
    ids, expected = ours["input_ids"], ours["logits"]
    theirs = model(ids).logits
    if theirs.shape != expected.shape:
        fail(f"logits have shape {list(expected.shape)}, transformers gives {list(theirs.shape)}")
    if not (expected.isfinite().all() and theirs.isfinite().all()):
        fail("there are logits that are not finite")
    difference = (theirs - expected).abs().max().item()
    same = (theirs.argmax(-1) == expected.argmax(-1)).float().mean().item()
    print(f"logits           {list(expected.shape)}, largest {expected.abs().max().item():.3f}")
    print(f"difference       {difference:.3e} at most (allowed {TOLERANCE:.0e})")
    print(f"same top token   {100 * same:.2f} %")
    if difference > TOLERANCE:
        fail("the logits differ by more than that")


@torch.no_grad()
def continuation(model, folder: Path) -> None:
    """Prints a greedy continuation, as text if the folder has a tokenizer."""
    if not (folder / "tokenizer.json").exists():
        fail(f"{folder} has no tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    limit = min(start + NEW_TOKENS, model.config.max_position_embeddings)
    while ids.shape[1] < limit:
        following = model(ids).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, following], dim=1)
        if following.item() == tokenizer.eos_token_id:
            break
    print(f"tokens           {ids[0, start:].tolist()}")
    print(f"continuation     {tokenizer.decode(ids[0], skip_special_tokens=True)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("logits", type=Path, nargs="?")
    arguments = parser.parse_args()
    for path in filter(None, [arguments.model_dir, arguments.logits]):
        if not path.exists():
            parser.error(f"{path} does not exist")
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    model = load(arguments.model_dir)
    config = model.config
    print(f"architecture     {type(model).__name__}, {config.num_hidden_layers} layers, "
          f"{config.num_attention_heads} heads, {config.num_key_value_heads} key/value heads")
    print(f"parameters       {sum(p.numel() for p in model.parameters()):,}")
    if arguments.logits:
        compare(model, arguments.logits)
    continuation(model, arguments.model_dir)
    print("OK")


if __name__ == "__main__":
    main()
