"""Prompts in the world of the demo model."""

NAMES = ["Tom", "Mia", "Ben", "Lily", "Max", "Zoe", "Leo", "Anna"]
COLOURS = ["red", "blue", "green", "white", "black", "golden", "gray", "brown"]
ANIMALS = ["fox", "cat", "bear", "rabbit", "owl", "horse", "wolf"]
THINGS = ["lamp", "key", "bell", "map", "coin"]
PLACES = ["forest", "garden", "cave"]


def story(i):
    """A different one for every i below 840."""
    def pick(words):
        return words[i % len(words)]
    return (f"Tell a story about {pick(NAMES)}, a {pick(COLOURS)} {pick(ANIMALS)} who finds a "
            f"{pick(THINGS)} in the {pick(PLACES)}.")


def as_turn(text):
    """For the routes without a chat template: what the demo's own makes of one user message."""
    return f"<|user|>\n{text}<|end|>\n<|assistant|>\n"


def chat(text):
    return [{"role": "user", "content": text}]
