"""Text as burn-lti reads it: documents of a line each, in windows of so many tokens.

`burn-lti-llama/src/data` does the same in Rust. A document begins with BOS and ends with EOS, each once.
"""

import bisect
import os

import torch

# Windows that have room left, at most.
OPEN = 64


def read(path, tokenizer, bos, eos):
    """The tokens of the documents of a text file, of one a line."""
    with open(path) as file:
        lines = [line.strip() for line in file]
    if "" in lines:
        lines = [line for line in lines if line]
    encoded = tokenizer.encode_batch(lines, add_special_tokens=False)
    return [[bos] + document.ids + [eos] for document in encoded]


class Windows:
    """Windows of `length` tokens: ids, positions in their documents, numbers of these (0 in the padding), and
    whether the next token of the same document is known."""

    def __init__(self, rows, length):
        self.length = length
        padded = [row + [(0, 0, 0, False)] * (length - len(row)) for row in rows]
        columns = torch.tensor(padded, dtype=torch.long).unbind(-1)
        self.ids, self.positions, self.segments = columns[:3]
        self.counts = columns[3].bool()

    def __len__(self):
        return len(self.ids)

    def batch(self, rows):
        """These windows, as a model reads them."""
        segments = self.segments[rows]
        sees = segments[:, :, None] == segments[:, None, :]
        mask = torch.full(sees.shape, float("-inf")).masked_fill_(sees.tril(), 0.0)
        return {
            "ids": self.ids[rows],
            "positions": self.positions[rows],
            "mask": mask[:, None],
            "there": segments > 0,
            "counts": self.counts[rows],
        }

    def batches(self, first, last, size):
        """The windows `first..last`, so many at a time."""
        return [self.batch(torch.arange(at, min(at + size, last))) for at in range(first, last, size)]


def whole(documents, length):
    """A document that fits into a window stays whole; a longer one is cut from its beginning. Each piece goes to
    the window that it fills best, among the last that have room."""
    rows, room = [], []
    for number, document in enumerate(documents, 1):
        for start in range(0, len(document), length):
            piece = document[start : start + length]
            at = bisect.bisect_left(room, (len(piece), 0))
            left, row = room.pop(at) if at < len(room) else (length, len(rows))
            if row == len(rows):
                rows.append([])
            segment = rows[row][-1][2] + 1 if rows[row] else 1
            last = len(document) - 1
            for position, token in enumerate(piece):
                rows[row].append((token, position, segment, start + position < last))
            if left > len(piece):
                bisect.insort(room, (left - len(piece), row))
            if len(room) > OPEN:
                room.pop(0)
    return Windows(rows, length)


def cut(documents, length):
    """Documents end to end, cut where a window is full, but kept apart: as earlier versions of burn-lti read, and
    the figures of that time."""
    stream = [
        (token, number, position + 1 < len(document), position)
        for number, document in enumerate(documents, 1)
        for position, token in enumerate(document)
    ]
    rows = []
    for start in range(0, len(stream) - length + 1, length):
        row = []
        for token, number, counts, position in stream[start : start + length]:
            follows = row and row[-1][2] == number
            row.append((token, row[-1][1] + 1 if follows else 0, number, counts))
        rows.append(row)
    return Windows(rows, length)


def joined(documents, length):
    """Documents end to end, as one text."""
    stream = [token for document in documents for token in document]
    rows = [
        [(token, position, 1, True) for position, token in enumerate(stream[start : start + length])]
        for start in range(0, len(stream) - length, length)
    ]
    return Windows(rows, length)


def one_by_one(documents, length):
    """Each document alone, to its token `length + 1`, which is only a target."""
    rows = [
        [(token, position, 1, position + 1 < len(document)) for position, token in enumerate(document[:length])]
        for document in documents
    ]
    return Windows(rows, length)


LAYOUTS = {"whole": whole, "cut": cut, "joined": joined}


def load(paths, teacher, config, length, layout):
    """The windows of text files, and their documents, by the tokenizer of the folder `teacher`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(teacher, "tokenizer.json"))
    documents = [
        document
        for path in paths
        for document in read(path, tokenizer, config["bos_token_id"], config["eos_token_id"])
    ]
    return LAYOUTS[layout](documents, length), documents
