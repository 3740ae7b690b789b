#!/usr/bin/env python3
"""Makes the tokenizer: CLIP's format (bytes, bytes with </w>, merges, two marks), every word of the captions one token.

    tokenizer.py --out DIR        writes DIR/tokenizer
"""
import argparse
import json
import re
from collections import Counter
from pathlib import Path

from transformers import CLIPTokenizer

from pictures import COLOURS, Emoji, add_picture_options

TOKENS = 77
OTHER_WORDS = ["a", "an", "the", "picture", "photo", "of", "on", "with", "in", "and", "background", ",", "-", "sks"]
END_OF_WORD = "</w>"


def byte_letters():
    """A printable stand-in for each of the 256 bytes, as GPT-2 and CLIP have them: printable bytes first."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in kept] + [chr(256 + index) for index in range(256 - len(kept))]


def merge_pair(pieces, pair):
    """The pieces of a word with every occurrence of pair joined, left to right."""
    merged, at = [], 0
    while at < len(pieces):
        joined = tuple(pieces[at : at + 2]) == pair
        merged.append(pieces[at] + pieces[at + 1] if joined else pieces[at])
        at += 2 if joined else 1
    return merged


def learn_merges(words):
    """Byte-pair encoding until every word is one piece; words: Counter. Returns the pairs in order."""
    pieces = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in words}
    merges = []
    while any(len(split) > 1 for split in pieces.values()):
        pairs = Counter()
        for word, split in pieces.items():
            for pair in zip(split, split[1:]):
                pairs[pair] += words[word]
        best = max(sorted(pairs), key=pairs.get)
        merges.append(best)
        pieces = {word: merge_pair(split, best) for word, split in pieces.items()}
    return merges


def main():
    parser = argparse.ArgumentParser(description="Makes the bundled base's tokenizer.")
    parser.add_argument("--out", type=Path, required=True)
    add_picture_options(parser)
    options = parser.parse_args()
    emoji = Emoji.from_options(options)
    words = Counter(word for name in emoji.names + emoji.held for word in re.findall(r"[a-z]+|[^\sa-z]+", name))
    words.update([*COLOURS, *OTHER_WORDS])
    merges, letters = learn_merges(words), byte_letters()
    entries = letters + [letter + END_OF_WORD for letter in letters] + ["".join(pair) for pair in merges]
    entries = list(dict.fromkeys(entries + ["<|startoftext|>", "<|endoftext|>"]))

    folder = options.out / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({entry: index for index, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in merges))
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    print(f"{len(emoji.names)} names, {len(words)} words, {len(entries)} entries")


if __name__ == "__main__":
    main()
