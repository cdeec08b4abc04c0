"""A plain Llama in PyTorch, as a Hugging Face folder has it: what the rivals of burn-lti are made of.

It reads windows in which several documents lie apart, and gives final hidden states rather than logits, so that
whoever compares two models has the logits of a few tokens at a time.
"""

import copy
import json
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

# What a layer has, by short names.
NAMES = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
ATTENTION = ("q", "k", "v", "o")


def by_heads(weight, head_dim):
    """`[heads * head_dim, width]` as `[heads, head_dim, width]`."""
    return weight.view(-1, head_dim, weight.shape[1])


def flat(heads):
    """The other way round."""
    return heads.flatten(0, 1).contiguous()


class Llama:
    """Weights are `[out, in]`, as transformers has them."""

    def __init__(self, config, embedding, norm, head, layers):
        self.config, self.embedding, self.norm, self.layers = config, embedding, norm, layers
        # None: the embedding is the head too.
        self.head = head

    @classmethod
    def load(cls, folder):
        with open(os.path.join(folder, "config.json")) as file:
            config = json.load(file)
        wanted = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
        for name, value in wanted.items():
            if config.get(name, value) != value:
                raise SystemExit(f"{folder}: {name} is {config[name]!r}; the rivals are made of plain Llamas alone")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise SystemExit(f"{folder}: {rope}; the rivals are made of Llamas with the plain rotary embedding")
        config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
        if config.get("head_dim") is None:
            config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
        files = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
        tensors = {}
        for name in files:
            tensors.update(load_file(os.path.join(folder, name)))
        tensors = {name: tensor.float() for name, tensor in tensors.items()}

        def layer(index):
            return {short: tensors[f"model.layers.{index}.{name}.weight"] for short, name in NAMES.items()}

        tied = config.get("tie_word_embeddings", False)
        return cls(
            config,
            tensors["model.embed_tokens.weight"],
            tensors["model.norm.weight"],
            None if tied else tensors["lm_head.weight"],
            [layer(index) for index in range(config["num_hidden_layers"])],
        )

    def copy(self):
        """With tensors of its own."""
        return copy.deepcopy(self)

    def like(self, **changes):
        """The same model with other fields; the rest is shared."""
        return self.as_a(type(self), **changes)

    def as_a(self, kind, **changes):
        """A model of another class with what this one has."""
        parts = {name: getattr(self, name) for name in ("config", "embedding", "norm", "head", "layers")} | changes
        parts["layers"] = [dict(layer) for layer in parts["layers"]]
        parts["config"] = parts["config"] | {
            "hidden_size": parts["embedding"].shape[1],
            "num_hidden_layers": len(parts["layers"]),
            "tie_word_embeddings": parts["head"] is None,
        }
        return kind(**parts)

    # What it is like.

    @property
    def width(self):
        return self.embedding.shape[1]

    @property
    def head_dim(self):
        return self.config["head_dim"]

    @property
    def heads(self):
        return self.config["num_attention_heads"]

    @property
    def kv_heads(self):
        return self.config["num_key_value_heads"]

    @property
    def units(self):
        return self.config["intermediate_size"]

    @property
    def eps(self):
        return self.config["rms_norm_eps"]

    @property
    def output(self):
        """The weight of the head."""
        return self.embedding if self.head is None else self.head

    @property
    def cache_bytes(self):
        """Of keys and values in float32, a token."""
        return 4 * len(self.layers) * 2 * self.kv_heads * self.head_dim

    @property
    def is_ordinary(self):
        """Whether transformers can load it."""
        return True

    def parameters(self, train="all"):
        """Those that train: `all`, or those of attention alone."""
        attention = [layer[name] for layer in self.layers for name in self.attention_names()]
        if train == "attention":
            return attention
        others = [layer[name] for layer in self.layers for name in NAMES if name not in ATTENTION]
        head = [] if self.head is None else [self.head]
        return attention + others + [self.embedding, self.norm] + head

    def attention_names(self):
        return ATTENTION

    # What it computes.

    def turns(self, positions):
        """Cosine and sine of the rotary embedding, `[batch, 1, tokens, head_dim]`."""
        pairs = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        angles = positions[..., None].float() / self.config["rope_theta"] ** pairs
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos(), angles.sin()

    def normed(self, hidden, gain):
        return F.rms_norm(hidden, hidden.shape[-1:], gain, self.eps)

    def queries_keys_values(self, layer, normed):
        """`[batch, tokens, heads * head_dim]`, not turned yet; keys and values may have fewer heads."""
        return tuple(normed @ layer[name].t() for name in ("q", "k", "v"))

    def out(self, layer):
        """The output projection."""
        return layer["o"]

    def mixed(self, layer, normed, turns, mask):
        """What the heads read: the input of the output projection."""
        batch, tokens, _ = normed.shape
        cos, sin = turns
        half = self.head_dim // 2

        def split(x):
            return x.view(batch, tokens, -1, self.head_dim).transpose(1, 2)

        def turned(x):
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

        q, k, v = (split(x) for x in self.queries_keys_values(layer, normed))
        q, k = turned(q), turned(k)
        group = q.shape[1] // k.shape[1]
        k, v = (x[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    def activations(self, layer, hidden):
        """What the units of a feed-forward block put out."""
        normed = self.normed(hidden, layer["ff_norm"])
        return F.silu(normed @ layer["gate"].t()) * (normed @ layer["up"].t())

    def hidden(self, batch, see=None):
        """Final hidden states before the last norm. `see` is shown, of each layer, its number, what comes in, its
        norm, what its heads read, the stream behind the attention, the activations of its units."""
        turns = self.turns(batch["positions"])
        hidden = F.embedding(batch["ids"], self.embedding)
        for index, layer in enumerate(self.layers):
            normed = self.normed(hidden, layer["attention_norm"])
            read = self.mixed(layer, normed, turns, batch["mask"])
            middle = hidden + read @ self.out(layer).t()
            active = self.activations(layer, middle)
            if see is not None:
                see(index, hidden, normed, read, middle, active)
            hidden = middle + active @ layer["down"].t()
        return hidden

    def features(self, batch):
        """What the head reads, of the tokens that count: `[tokens, width]`."""
        return self.normed(self.hidden(batch), self.norm)[batch["counts"]]

    def logits(self, batch):
        """Of the tokens that count."""
        return self.features(batch) @ self.output.t()

    def save(self, folder, teacher):
        """As a Hugging Face folder, with the tokenizer of the folder `teacher`."""
        os.makedirs(folder, exist_ok=True)
        tensors = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if self.head is not None:
            tensors["lm_head.weight"] = self.head
        for index, layer in enumerate(self.layers):
            for short, name in NAMES.items():
                tensors[f"model.layers.{index}.{name}.weight"] = layer[short]
        tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump(self.config | {"torch_dtype": "float32"}, file, indent=2)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            path = os.path.join(teacher, name)
            if os.path.exists(path):
                with open(path) as file, open(os.path.join(folder, name), "w") as to:
                    to.write(file.read())
