"""A text that a model goes on with, by transformers with its key/value cache or by llama.cpp: greedily, float32.

As `burn-lti generate --prompt - --json`. Prints a line of JSON for each round: tokens a second of the prompt, whose
reading gives the first token, and of those after it. llama.cpp is read through `llama-cpp-python` from a float32
GGUF file (`burn-lti convert --dtype float32`), with the same token ids, which the folder's tokenizer makes.
"""

import argparse
import json
import sys
import time

import numpy as np
from transformers import AutoTokenizer

from common import threads

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("engine", choices=["transformers", "llama.cpp"])
parser.add_argument("--model", required=True, help="the model's folder")
parser.add_argument("--gguf", help="the same model for llama.cpp")
parser.add_argument("--tokens", type=int, default=64)
parser.add_argument("--rounds", type=int, default=3, help="the first warms up")
arguments = parser.parse_args()
prompt = AutoTokenizer.from_pretrained(arguments.model)(sys.stdin.read())["input_ids"]


def transformers():
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads())
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()

    def step(ids, cache):
        with torch.inference_mode():
            read = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        return int(read.logits[0, -1].argmax()), read.past_key_values

    return lambda: None, step


def llama_cpp():
    import llama_cpp

    room = len(prompt) + arguments.tokens
    model = llama_cpp.Llama(
        arguments.gguf, n_ctx=room, n_batch=512, n_threads=threads(), n_threads_batch=threads(), verbose=False
    )

    def step(ids, _):
        model.eval(ids)
        logits = llama_cpp.llama_get_logits(model.ctx)
        return int(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax()), None

    return model.reset, step


reset, step = transformers() if arguments.engine == "transformers" else llama_cpp()
for _ in range(arguments.rounds):
    reset()
    began = time.perf_counter()
    token, cache = step(prompt, None)
    written, first = [token], time.perf_counter()
    while len(written) < arguments.tokens:
        token, cache = step([token], cache)
        written.append(token)
    ended = time.perf_counter()
    speed = {
        "engine": arguments.engine,
        "prompt_tokens": len(prompt),
        "prompt_tokens_per_second": len(prompt) / (first - began),
        "tokens_per_second": (arguments.tokens - 1) / (ended - first),
        "tokens": written,
    }
    print(json.dumps(speed), flush=True)
