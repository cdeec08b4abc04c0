"""A corpus that a model writes, by transformers' `generate` with its key/value cache.

As `burn-lti sample-corpus`: documents that begin with BOS, drawn at a temperature from a nucleus, each until EOS
or its full length. A batch is written until its last document is at its end, then comes the next; as many
documents as are asked for. Prints a line of JSON; `tokens` are those of the documents, and what is drawn after an
EOS is none of them.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import peak_mib, threads

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--documents", type=int, default=128)
parser.add_argument("--document-tokens", type=int, default=128)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--temperature", type=float, default=0.8)
parser.add_argument("--top-p", type=float, default=0.95)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--device", default="cpu", help="where to compute: cpu, cuda")
arguments = parser.parse_args()
torch.set_num_threads(threads())
torch.manual_seed(arguments.seed)

tokenizer = AutoTokenizer.from_pretrained(arguments.model)
model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
model = model.to(arguments.device).eval()
ends = model.config.eos_token_id
ends = torch.tensor(ends if isinstance(ends, list) else [ends], device=arguments.device)


def lengths(documents):
    """Tokens of each document, with its EOS."""
    is_end = torch.isin(documents[:, 1:], ends)
    first = torch.where(is_end.any(1), is_end.int().argmax(1) + 2, documents.shape[1])
    return int(first.sum())


began, tokens, left = time.perf_counter(), 0, arguments.documents
while left > 0:
    rows = min(left, arguments.batch_size)
    prompts = torch.full((rows, 1), tokenizer.bos_token_id, device=arguments.device)
    with torch.inference_mode():
        documents = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            top_k=0,
            max_length=arguments.document_tokens,
            pad_token_id=int(ends[0]),
        )
    tokens, left = tokens + lengths(documents), left - rows
seconds = time.perf_counter() - began
report = {"documents": arguments.documents, "tokens": tokens, "seconds": seconds}
print(json.dumps({**report, "peak_mib": peak_mib()}), flush=True)
