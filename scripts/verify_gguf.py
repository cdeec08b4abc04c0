"""Compares an exported GGUF file, as llama.cpp computes it, with logits of `burn-lti logits`.

usage: python scripts/verify_gguf.py MODEL.gguf LOGITS.safetensors [TOLERANCE]

LOGITS holds `input_ids` and `logits`, as `burn-lti logits --model FOLDER` writes them, and the fixtures in
tests/fixtures/families. The difference is a part of the largest logit; above TOLERANCE (default 1e-4) the script fails.
Needs gguf, llama-cpp-python, numpy and safetensors.
"""

import sys

import gguf
import numpy as np
from llama_cpp import Llama
from safetensors.numpy import load_file


def main(model: str, logits: str, tolerance: float = 1e-4) -> None:
    reader = gguf.GGUFReader(model)
    kinds = sorted({tensor.tensor_type.name for tensor in reader.tensors})
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(numbers).all(), tensor.name
    print(f"gguf: {len(reader.tensors)} tensors of {', '.join(kinds)}, {len(reader.fields)} keys")

    expected = load_file(logits)
    rows, tokens = expected["input_ids"].shape
    # Keys and values in float32, as ours; llama.cpp keeps them in float16 unless told.
    llama = Llama(model, n_ctx=max(tokens, 32), logits_all=True, type_k=0, type_v=0, verbose=False)
    largest, agree = 0.0, 0
    for ids, theirs in zip(expected["input_ids"], expected["logits"]):
        llama.reset()
        llama.eval(ids.tolist())
        ours = llama.scores[:tokens]
        assert ours.shape == theirs.shape and np.isfinite(ours).all()
        largest = max(largest, float(np.abs(ours - theirs).max()))
        agree += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    part = largest / float(np.abs(expected["logits"]).max())
    share = agree / (rows * tokens)
    print(f"llama.cpp: {part:.1e} of the largest logit, the likeliest token the same in {share:.1%}")
    if not part <= tolerance:
        sys.exit(f"{part} is more than {tolerance}")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:3], *map(float, sys.argv[3:]))
