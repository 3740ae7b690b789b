#!/usr/bin/env python3
"""Compares what `loralei verify step` wrote with a reference, as relative norms, and judges them.

    golden_compare.py OURS.safetensors EXPECTED.safetensors [--worst 5] [--pred 1e-4] [--grad 1e-3] [--loss 1e-3] [--final 1e-3]

Both files hold: pred (b, 4, h, w) of step 0; loss (steps); grad.<key> of step 0; final.<key>, the factors after all
steps. A relative norm is |ours - expected| / |expected|, in f64. The limits on pred, grad and loss are those of
docs/design.md; for scale, a reference in f32 is itself within 1e-6 (pred) and 2e-5 (grad, final) of the same in f64.

Prints a table on stderr and one JSON line on stdout. Exit status: 0 within the limits, 1 beyond them or a tensor is
missing, unexpected, wrongly shaped or not finite; 2 a file cannot be read. Needs numpy and safetensors, no PyTorch.
"""
import argparse
import json
import sys

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

KINDS = ("pred", "loss", "grad", "final")


def kind_of(key):
    """The part of a key before its first dot: "grad.lora_unet_..." -> "grad"."""
    return key.split(".", 1)[0]


def relative_norm(ours, expected):
    """|ours - expected| / |expected|; an expected zero must be met exactly."""
    ours, expected = ours.astype(np.float64), expected.astype(np.float64)
    difference, size = np.linalg.norm(ours - expected), np.linalg.norm(expected)
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(difference / size)


def faults(ours, expected):
    """What cannot be compared: missing, unexpected or wrongly shaped tensors, and numbers that are not finite."""
    found = [f"missing {key}" for key in sorted(expected.keys() - ours.keys())]
    found += [f"unexpected {key}" for key in sorted(ours.keys() - expected.keys())]
    for key in sorted(ours.keys() & expected.keys()):
        if ours[key].shape != expected[key].shape:
            found.append(f"{key} has shape {ours[key].shape}, not {expected[key].shape}")
        elif not np.isfinite(ours[key]).all():
            found.append(f"{key} is not finite")
    return found


def compare(ours, expected):
    """Every comparable tensor's relative norm, by kind: {kind: [(norm, key), ...] worst first}."""
    norms = {kind: [] for kind in KINDS}
    for key in sorted(ours.keys() & expected.keys()):
        if ours[key].shape == expected[key].shape:
            norm = relative_norm(ours[key], expected[key])
            norms.setdefault(kind_of(key), []).append((norm if np.isfinite(norm) else float("inf"), key))
    return {kind: sorted(found, key=lambda pair: (-pair[0], pair[1])) for kind, found in norms.items()}


def main():
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ours")
    parser.add_argument("expected")
    parser.add_argument("--worst", type=int, default=5, help="how many of the worst tensors of each kind to list")
    for kind, limit in zip(KINDS, (1e-4, 1e-3, 1e-3, 1e-3)):
        parser.add_argument(f"--{kind}", type=float, default=limit, help=f"limit on {kind} (default {limit:g})")
    options = parser.parse_args()
    try:
        ours, expected = load_file(options.ours), load_file(options.expected)
    except (OSError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    wrong, norms, report = faults(ours, expected), compare(ours, expected), {}
    print(f"{'kind':6} {'tensors':>7} {'median':>9} {'worst':>9} {'limit':>7}  worst tensor", file=sys.stderr)
    for kind in KINDS:
        found, limit = norms[kind], getattr(options, kind)
        if not found:
            wrong.append(f"nothing to compare of kind {kind}")
            continue
        worst, key = found[0]
        median = float(np.median([norm for norm, _ in found]))
        report[kind] = dict(tensors=len(found), median=median, worst=worst, key=key, limit=limit, ok=worst <= limit)
        verdict = "ok" if worst <= limit else "TOO FAR"
        print(f"{kind:6} {len(found):7} {median:9.2e} {worst:9.2e} {limit:7.0e}  {key}  {verdict}", file=sys.stderr)
        beyond = sum(norm > limit for norm, _ in found)
        if beyond:
            print(f"       {beyond} of {len(found)} beyond the limit:", file=sys.stderr)
            for norm, name in found[: options.worst]:
                sizes = np.linalg.norm(ours[name]), np.linalg.norm(expected[name])
                print(f"         {norm:.2e}  {name}  |ours| {sizes[0]:.4g}, |expected| {sizes[1]:.4g}", file=sys.stderr)
    for fault in wrong[:20]:
        print(f"fault: {fault}", file=sys.stderr)
    if len(wrong) > 20:
        print(f"... and {len(wrong) - 20} more faults", file=sys.stderr)
    ok = not wrong and all(part["ok"] for part in report.values())
    # JSON has no infinity: a norm that is not finite is written as null.
    finite = lambda value: None if isinstance(value, float) and not np.isfinite(value) else value
    report = {kind: {name: finite(value) for name, value in part.items()} for kind, part in report.items()}
    print(json.dumps(dict(ok=ok, faults=len(wrong), examples=wrong[:3], **report)))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
