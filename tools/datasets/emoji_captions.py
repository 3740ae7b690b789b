#!/usr/bin/env python3
"""Writes datasets/emoji-captions.txt: what the bundled base must still draw after it has learned something new.

    emoji_captions.py

Every name that the base knows, on three of its twelve backgrounds each: the captions of the quickstart's prior.
"""
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "emoji"))
from pictures import COLOURS, FONT, Emoji, load_masters  # noqa: E402

colours = list(COLOURS)
names = Emoji(load_masters(FONT, os.environ.get("LORALEI_EMOJI_CACHE"))).names
lines = [f"a {name} on {colours[(i + shift) % len(colours)]}\n" for i, name in enumerate(names) for shift in (0, 4, 8)]
(HERE.parent.parent / "datasets/emoji-captions.txt").write_text("".join(lines))
