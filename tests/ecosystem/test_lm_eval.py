"""The harness's local-completions says of `lorry serve` what its own hf model says of transformers and
PEFT with the same weights (golden.json, made by make_golden.py)."""

import json

import pytest

from harness import HERE, MODEL, evaluate

GOLDEN = json.loads((HERE / "golden.json").read_text())
TOLERANCE = 2e-3  # of a text's log-likelihood: some 50 tokens


def assert_same(said, expected):
    """Texts and what was greedy are equal, log-likelihoods nearly."""
    if isinstance(expected, list):
        assert isinstance(said, list) and len(said) == len(expected)
        for one, other in zip(said, expected):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert abs(said - expected) <= TOLERANCE, (said, expected)
    else:
        assert said == expected


# Many requests at once, several prompts in one, one after the other.
@pytest.mark.parametrize(("name", "concurrent", "batch"),
                         [("demo", 8, 1), ("summary", 1, 4), ("pirate", 1, 1)])
def test_lorry_is_evaluated_as_transformers(server, tmp_path, name, concurrent, batch):
    found, output = evaluate("local-completions", {
        "model": name, "base_url": server.url + "/v1/completions", "tokenizer": MODEL,
        "max_length": 1024, "add_bos_token": True, "num_concurrent": concurrent}, tmp_path,
        "--batch_size", str(batch))
    assert "API request failed" not in output, output
    expected = GOLDEN[name]
    assert found.keys() == expected.keys()
    for task, values in expected.items():
        assert_same(found[task]["answers"], values["answers"])
        for metric, value in values["metrics"].items():
            assert found[task]["metrics"][metric] == pytest.approx(value, rel=1e-3, abs=1e-9), metric


def test_the_tasks_tell_models_apart():
    """Else equal results would say little."""
    metrics = {name: golden["lorry_choice"]["metrics"]["acc,none"] for name, golden in GOLDEN.items()}
    assert metrics["demo"] > 0.9
    texts = {json.dumps(golden["lorry_answer"]["answers"]) for golden in GOLDEN.values()}
    assert len(texts) == len(GOLDEN)
