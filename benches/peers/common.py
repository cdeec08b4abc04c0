"""What the peers share: numbers that burn-lti makes too, the peak of memory, the line of JSON.

`benches/src/numbers.rs`, `memory.rs` and `measurement.rs` are the same in Rust.
"""

import json
import os
import time

import numpy as np


def threads():
    """The threads to compute with: whoever starts a peer says how many."""
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))


def bits(seed, count):
    """The first numbers of the sequence `seed`, by splitmix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        counter = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 40)
        z = counter * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(seed, shape, std):
    """Numbers evenly spread around 0 with this standard deviation."""
    part = (bits(seed, int(np.prod(shape))) >> np.uint64(40)).astype(np.float64) / 2**24
    return (std * 3**0.5 * (2 * part - 1)).astype(np.float32).reshape(shape)


def tokens(seed, shape, vocab):
    """Tokens of a vocabulary."""
    drawn = bits(seed, int(np.prod(shape))) % np.uint64(vocab)
    return drawn.astype(np.int64).reshape(shape)


def grouped(t_heads, s_heads, head_dim, output):
    """The factors of the start `grouped`: a mean of neighbouring heads, for the output a sum."""
    group = t_heads // s_heads
    a = np.zeros((t_heads, s_heads), np.float32)
    a[np.arange(t_heads), np.arange(t_heads) // group] = 1.0 if output else 1.0 / group
    return a, np.eye(head_dim, dtype=np.float32)


def grouped_general(t_heads, s_heads, head_dim, output):
    """The same start as one tensor over both grids."""
    return np.einsum("xu,yv->xyuv", *grouped(t_heads, s_heads, head_dim, output))


# Name, model width, teacher heads, student heads, head size, general map, output projection.
CASES = {
    "smol_q_factored": (576, 9, 3, 64, False, False),
    "smol_out_factored": (576, 9, 3, 64, False, True),
    "smol_q_general": (576, 9, 3, 64, True, False),
    "llama8b_q_factored": (4096, 32, 16, 128, False, False),
    "llama8b_out_factored": (4096, 32, 16, 128, False, True),
}
TOKENS = 512


def peak_mib():
    """The most memory that this process had, or None where the system does not say."""
    try:
        with open("/proc/self/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        return int(lines["VmHWM"].split()[0]) / 1024
    except (OSError, KeyError):
        return None


def forget_peak():
    """Has the peak begin anew, where the system can."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def measure(count, step):
    """Takes steps, each of which waits until it is done and gives its loss; prints what they took."""
    measured = {"losses": [], "seconds": [], "start_peak_mib": peak_mib()}
    forget_peak()
    for _ in range(count):
        began = time.perf_counter()
        measured["losses"].append(float(step()))
        measured["seconds"].append(time.perf_counter() - began)
    measured["step_peak_mib"] = peak_mib()
    print(json.dumps(measured), flush=True)
