#!/usr/bin/env python3
"""Draws what bench_adapters wrote (--out) as an SVG: plot.py RESULT.json PICTURE.svg

Needs nothing but Python. Left: throughput of few and of many adapters. Middle: the share of requests
of `many` whose first token came within a time. Right: TTFT when all adapters fit and when not.
"""

import json
import sys

WIDTH, HEIGHT, PAD = 900, 300, 50
INK, BLUE, GREY = "#222", "#2a6fb0", "#9aa5b1"


def text(x, y, words, anchor="middle", size=12):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}">{words}</text>'


def bars(x, width, title, unit, values):
    """values: [(label, number, colour)]"""
    top = max(v for _, v, _ in values) * 1.15
    out = [text(x + width / 2, 24, title, size=14)]
    step = width / len(values)
    for i, (label, value, colour) in enumerate(values):
        h = (HEIGHT - 2 * PAD) * value / top
        left = x + i * step + step * 0.2
        out.append(f'<rect x="{left:.1f}" y="{HEIGHT - PAD - h:.1f}" width="{step * 0.6:.1f}" '
                   f'height="{h:.1f}" fill="{colour}"/>')
        out.append(text(left + step * 0.3, HEIGHT - PAD - h - 6, f"{value:,.0f} {unit}"))
        out.append(text(left + step * 0.3, HEIGHT - PAD + 18, label))
    return out


def shares(x, width, title, values):
    """values: percentiles 0 to 100"""
    top = values[-1] or 1
    out = [text(x + width / 2, 24, title, size=14)]
    points = []
    for i, v in enumerate(values):
        px = x + width * v / top
        py = HEIGHT - PAD - (HEIGHT - 2 * PAD) * i / (len(values) - 1)
        points.append(f"{px:.1f},{py:.1f}")
    out.append(f'<polyline fill="none" stroke="{BLUE}" stroke-width="2" points="{" ".join(points)}"/>')
    out.append(f'<path d="M{x} {PAD} V{HEIGHT - PAD} H{x + width}" fill="none" stroke="{INK}"/>')
    out.append(text(x, HEIGHT - PAD + 18, "0", "start"))
    out.append(text(x + width, HEIGHT - PAD + 18, f"{top:.0f} ms", "end"))
    out.append(text(x - 6, PAD + 4, "100 %", "end"))
    return out


def draw(report):
    many, active = report["many"], report["active"]
    parts = bars(40, 220, "Throughput", "tok/s",
                 [("few adapters", many["few_tokens_per_s"], GREY),
                  (f'{report["adapters"]:,} adapters', many["tokens_per_s"], BLUE)])
    parts += shares(350, 220, "Requests with a first token within", many["ttft_ms_percentiles"])
    parts += bars(640, 220, f'TTFT, {active["clients"]} adapters in use', "ms",
                  [("all fit", active["ttft_all_fit_ms"], GREY),
                   (f'room for {active["fit"]}', active["ttft_ms"], BLUE)])
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="sans-serif"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
            + "".join(parts) + "</svg>\n")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        report = json.load(file)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        file.write(draw(report))


if __name__ == "__main__":
    main()
